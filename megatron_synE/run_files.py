"""What a run writes about itself when it starts, and what every checkpoint says of where it comes from."""

import dataclasses
import hashlib
import logging
from typing import Any

from data_mixers.schedule import Schedule
from megatron_synE.checkpoint import layout
from megatron_synE.config.examine import Examination
from megatron_synE.config.load import LoadedConfig, dump_yaml, resolved_tree
from megatron_synE.config.schema import RunConfig
from megatron_synE.runtime.run_dir import RunDir, masked, versions, write_run_manifest
from megatron_synE.start import Start

logger = logging.getLogger(__name__)


def run_config(config: RunConfig) -> str:
    """The run as YAML, to go on with.

    How long this job was to work on it, and from whom it took it, is the job's, and stands in manifest.json.
    """
    training = dataclasses.replace(config.training, stop_after_iterations=None)
    run = dataclasses.replace(config.run, takeover=False)
    return dump_yaml(resolved_tree(dataclasses.replace(config, training=training, run=run)))


def config_digest(config: RunConfig) -> str:
    """sha256 of `run_config`."""
    return hashlib.sha256(run_config(config).encode()).hexdigest()


def write_run_files(
    loaded: LoadedConfig, run_dir: RunDir, examination: Examination, schedule: Schedule, start: Start
) -> None:
    """run_config.yaml, schedule.json and manifest.json. The holder of the lease calls it."""
    run_dir.write("run_config.yaml", run_config(loaded.resolved))
    run_dir.write("schedule.json", schedule.to_json() + "\n")
    write_run_manifest(
        run_dir,
        run=loaded.resolved.run.name,
        written=masked(loaded.user),
        resolved=masked(resolved_tree(loaded.resolved)),
        seed=loaded.resolved.run.seed,
        schedule_hash=schedule.digest(),
        data={
            str(m.folder): {s.name: [shard.bin_sha256 for shard in s.shards] for s in m.sources}
            for m in examination.manifests
        },
        tokenizer_digest=examination.manifests[0].tokenizer.digest,
        started_from=str(start.folder or loaded.resolved.init.path or "random"),
        source_hashes=_source_hashes(loaded.resolved) if start.mode == "init" else {},
    )


def _source_hashes(config: RunConfig) -> dict[str, str]:
    """sha256 of the HF weight files the run starts from."""
    if config.init.source != "hf" or config.init.path is None:
        return {}
    hashes = {}
    for file in sorted(config.init.path.glob("*.safetensors")):
        if file.stat().st_size > 1 << 30:  # seconds at least: say what takes them
            logger.info("hashing %s for the run's manifest", file.name)
        hashes[file.name] = layout.sha256_of(file)
    return hashes


def lineage(config: RunConfig, examination: Examination, start: Start) -> dict[str, Any]:
    """What every checkpoint's manifest says of where it comes from."""
    assert examination.schedule is not None
    return {
        "run": config.run.name,
        "parent": str(start.folder or config.init.path or "random"),
        "parent_lineage_hash": layout.read_manifest(start.folder)["lineage_hash"] if start.folder else None,
        "schedule_hash": examination.schedule.digest(),
        "versions": versions(),
        "stages": [
            {"name": stage.name, "tokens": stage.tokens, "languages": stage.languages} for stage in config.data.stages
        ],
    }
