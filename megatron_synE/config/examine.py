"""The third gate: one run looked at whole, on a login node, with everything that is wrong with it."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from data_mixers.errors import ConfigError, UserError
from data_mixers.manifest import DatasetManifest, read_manifest
from data_mixers.schedule import Schedule
from megatron_synE.checkpoint.layout import read_state, resolve_checkpoint
from megatron_synE.config.derive import Device, RunPlan, derive, resolve_architecture
from megatron_synE.config.fault import Fault
from megatron_synE.config.schema import RunConfig
from megatron_synE.config.topic_rules import cautions
from megatron_synE.config.validate import validate
from megatron_synE.data.build_schedule import build_schedule
from megatron_synE.data.probe import Probe, read_probe
from megatron_synE.data.tokenizers import digest_of
from megatron_synE.model.llama import LlamaArchitecture

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What is known about a run before it starts; what could not be read is None or left out, and is in `faults`."""

    faults: tuple[Fault, ...]
    architecture: LlamaArchitecture | None
    hf_config: dict[str, Any] | None
    manifests: tuple[DatasetManifest, ...]
    validation_manifests: tuple[DatasetManifest, ...]
    probe: Probe | None
    schedule: Schedule | None
    """What will be read, in which order; None without data or with faults in it."""
    plan: RunPlan | None
    """None where the faults leave nothing to compute."""
    cautions: tuple[str, ...]
    """What is no fault, but hardly what was meant; left out while data, mixture or validation have faults."""


def examine(
    config: RunConfig, *, world_size: int, device: Device | None = None, reads_data: bool = True
) -> Examination:
    """Architecture, manifests, plan and every fault of `config` on `world_size` ranks.

    reads_data: False leaves the manifests alone (planning before the data is there).
    """
    faults: list[Fault] = []
    reads_init = config.init.source != "random" and config.model.preset is None and config.model.hf_config is None
    place = "init.path" if reads_init else "model"
    found = _or_fault(partial(resolve_architecture, config), place, faults)
    architecture, hf_config = found if found is not None else (None, None)
    manifests = _read(manifest_paths(config), "data.manifests", faults) if reads_data else None
    validation = _read(config.validation.manifests, "validation.manifests", faults) if reads_data else None
    probe: Probe | None = None
    if reads_data and config.mixture.guard.probe is not None:
        probe = _or_fault(partial(read_probe, config.mixture.guard.probe), "mixture.guard.probe", faults)
    rules = validate(
        config,
        world_size=world_size,
        architecture=architecture,
        manifests=manifests,
        validation_manifests=validation,
        probe=probe,
    )
    # A folder that is not there is one fault, not one of init.path and one of the architecture in it.
    known = {fault.key for fault in rules if fault.key == "init.path"}
    faults = [*rules, *(fault for fault in faults if fault.key not in known)]
    if manifests and not known:
        faults += _model_tokenizer(config, manifests[0])
    schedule: Schedule | None = None
    if manifests and not any(fault.key.startswith("data.") for fault in faults):
        schedule = _or_fault(partial(_schedule, config, manifests, ()), "data.stages", faults)
        if schedule is not None and (skipped := config.data.skip_samples):
            schedule = _or_fault(partial(_schedule, config, manifests, skipped), "data.skip_samples", faults)
    said: list[str] = []
    if manifests and not any(fault.key.startswith(("data.", "mixture.", "validation.")) for fault in faults):
        said = list(cautions(config, manifests, validation or (), probe))
    plan: RunPlan | None = None
    if architecture is not None:
        with suppress(ConfigError):  # the division that fails here is among the faults already
            plan = derive(config, architecture, world_size, device=device)
    return Examination(
        faults=tuple(faults),
        architecture=architecture,
        hf_config=hf_config,
        manifests=tuple(manifests or ()),
        validation_manifests=tuple(validation or ()),
        probe=probe,
        schedule=schedule,
        plan=plan,
        cautions=tuple(said),
    )


def manifest_paths(config: RunConfig) -> list[Path]:
    """data.manifests, then those that join with each stage."""
    return [*config.data.manifests, *(path for stage in config.data.stages for path in stage.manifests)]


def _model_tokenizer(config: RunConfig, manifest: DatasetManifest) -> list[Fault]:
    """A model whose own tokenizer gives other ids than the data's would train without complaint, and learn nonsense."""
    if config.init.source == "random" or config.init.path is None:
        return []
    faults: list[Fault] = []
    folder = config.init.path
    if config.init.source == "checkpoint":
        checkpoint = _or_fault(partial(resolve_checkpoint, folder, verify_hashes=False), "init.path", faults)
        if checkpoint is None:
            return faults
        folder = checkpoint / "tokenizer"
    digest = _or_fault(partial(digest_of, folder), "init.path", faults)
    if digest is None and not faults and config.init.source == "checkpoint":
        digest = read_state(folder.parent).tokenizer_digest
    if digest is not None and digest != manifest.tokenizer.digest:
        message = (
            f"the tokenizer in {folder} ({digest[:12]}) gives other ids than the one that {manifest.folder} was made"
            f" with ({manifest.tokenizer.digest[:12]})"
        )
        faults.append(Fault("data.manifests", message, f"preprocess the data again with --tokenizer {folder}"))
    return faults


def _schedule(config: RunConfig, manifests: Sequence[DatasetManifest], skip_samples: Sequence[str]) -> Schedule:
    ranges = (text.split(":") for text in skip_samples)
    return build_schedule(
        config.data.stages,
        manifests,
        config.run.seed,
        config.training.seq_length,
        config.training.global_batch_size,
        max_epochs=config.data.max_epochs,
        exhaustion=config.data.exhaustion,
        skips=[(int(start), int(stop)) for start, stop in ranges],
    )


def _read(paths: Sequence[Path], key: str, faults: list[Fault]) -> list[DatasetManifest] | None:
    """All manifests, or None when one cannot be read: what hangs on their sum would then be reported wrongly."""
    read = [_or_fault(partial(read_manifest, path), key, faults) for path in paths]
    return [manifest for manifest in read if manifest is not None] if None not in read else None


def _or_fault(read: Callable[[], T], key: str, faults: list[Fault]) -> T | None:
    try:
        return read()
    except UserError as error:
        message, _, cure = str(error).rpartition("; ")
        faults.append(
            Fault(key, message or str(error), cure if message else "name another, or make it again", error.exit_code)
        )
        return None
