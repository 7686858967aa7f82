"""What a run writes about itself when it starts, and what every checkpoint says of where it comes from."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from data_mixers.schedule import Schedule
from megatron_synE.checkpoint import layout
from megatron_synE.config.examine import Examination
from megatron_synE.config.load import LoadedConfig, dump_yaml, resolved_tree
from megatron_synE.config.schema import RunConfig
from megatron_synE.runtime.run_dir import RunDir, masked, read_run_manifest, versions, write_run_manifest
from megatron_synE.start import Start

logger = logging.getLogger(__name__)

JOBS_OWN = ("training.stop_after_iterations", "run.takeover")
"""How long a job is to work on the run, and from whom it took it."""


def run_config(config: RunConfig) -> str:
    """The run as YAML, to go on with.

    Without what is the job's own (JOBS_OWN), which stands in manifest.json.
    """
    training = dataclasses.replace(config.training, stop_after_iterations=None)
    run = dataclasses.replace(config.run, takeover=False)
    return dump_yaml(resolved_tree(dataclasses.replace(config, training=training, run=run)))


def config_digest(config: RunConfig) -> str:
    return hashlib.sha256(run_config(config).encode()).hexdigest()


def write_run_files(
    loaded: LoadedConfig, run_dir: RunDir, examination: Examination, schedule: Schedule, start: Start
) -> None:
    """run_config.yaml, schedule.json and manifest.json. The holder of the lease calls it.

    A resumed run may have another configuration; what has changed since the last start is logged, and kept with it.
    """
    previous = read_run_manifest(run_dir)
    changes = {}
    if start.mode == "resume" and start.state is not None and "resolved" in previous:
        changes = config_changes(previous["resolved"], masked(resolved_tree(loaded.resolved)))
        for key, (was, now) in changes.items():
            logger.warning(
                "%s was %s at the last start and is %s at this one, which goes on from iteration %d",
                key, was, now, start.state.iteration,
            )  # fmt: skip
    run_dir.write("run_config.yaml", run_config(loaded.resolved))
    run_dir.write("schedule.json", schedule.to_json() + "\n")
    write_run_manifest(
        run_dir,
        previous,
        changes=changes,
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


def config_changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value in `was`, value in `now`) where they differ, None for no such key.

    Of two trees as manifest.json holds them; without what is a job's own and not the run's.
    """
    before, after = _flat(was), _flat(json.loads(json.dumps(now, default=str)))
    return {
        key: (before.get(key), after.get(key))
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key) and key not in JOBS_OWN
    }


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key; an item of a list by its number."""
    if not isinstance(tree, dict | list) or not tree:
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for name, item in items for k, v in _flat(item, f"{prefix}.{name}".lstrip(".")).items()}


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
