"""The stages of a config and the manifests, turned into the schedule of a whole run."""

import math
from collections.abc import Sequence
from typing import Literal

from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import DatasetManifest, SourceEntry
from data_mixers.ratios import quantise, stage_weights
from data_mixers.sampling import epochs_read
from data_mixers.schedule import Schedule, scheduled_source
from megatron_synE.config.schema import StageSection

DEFAULT_MAX_EPOCHS = 4.0  # the default of data.max_epochs, where the reason stands


def build_schedule(
    stages: Sequence[StageSection],
    manifests: Sequence[DatasetManifest],
    seed: int,
    seq_length: int,
    global_batch_size: int,
    *,
    max_epochs: float = DEFAULT_MAX_EPOCHS,
    exhaustion: Literal["repeat", "stop"] = "repeat",
) -> Schedule:
    """One phase per stage, each a whole number of global batches.

    Order: sources rank by the stage that first reads them, then by name; so a stage added at the end, or a manifest
    that earlier stages do not read, leaves earlier samples unchanged.
    Errors: ConfigError for shares that do not fit the data, a source that is too small, or one read more than
    `max_epochs` times (once, with exhaustion="stop"); DataError if manifests differ in tokenizer or share a name.
    """
    if not stages:
        raise ConfigError("data.stages is empty; a run needs at least one stage")
    entries = _all_entries(manifests)
    schedule = Schedule(seed=seed, seq_length=seq_length, sources=())
    known: set[str] = set()
    for index, stage in enumerate(stages):
        shares = stage_weights(
            stage.languages, stage.sources, stage.topics, list(entries.values()), where=f"data.stages[{index}]"
        )
        weights = {name: weight for name, weight in quantise(shares).items() if weight}
        new = sorted(weights.keys() - known)
        known.update(new)
        batches = math.ceil(stage.tokens / (seq_length * global_batch_size))
        schedule = schedule.append_weights(
            stage.name,
            num_samples=batches * global_batch_size,
            weights=weights,
            new_sources=tuple(scheduled_source(entries[name]) for name in new),
        )
    _check_epochs(schedule, max_epochs=max_epochs, exhaustion=exhaustion)
    return schedule


def _all_entries(manifests: Sequence[DatasetManifest]) -> dict[str, SourceEntry]:
    if not manifests:
        raise ConfigError("data.manifests is empty; name at least one manifest.json written by `syne data preprocess`")
    entries: dict[str, SourceEntry] = {}
    for manifest in manifests:
        if manifest.tokenizer != manifests[0].tokenizer:
            raise DataError(
                f"{manifest.folder} was tokenised with another tokenizer than {manifests[0].folder} "
                f"({manifest.tokenizer} against {manifests[0].tokenizer}); preprocess one of them again"
            )
        for entry in manifest.sources:
            if entry.name in entries:
                raise DataError(
                    f"source {entry.name} occurs in two of data.manifests, once in {manifest.folder}; keep one"
                )
            entries[entry.name] = entry
    return entries


def _check_epochs(schedule: Schedule, *, max_epochs: float, exhaustion: Literal["repeat", "stop"]) -> None:
    limit = 1.0 if exhaustion == "stop" else max_epochs
    beyond = {name: epochs for name, epochs in epochs_read(schedule).items() if epochs > limit}
    if beyond:
        listed = ", ".join(f"{name} {epochs:.2f}" for name, epochs in sorted(beyond.items(), key=lambda item: -item[1]))
        key = "data.exhaustion is stop" if exhaustion == "stop" else f"data.max_epochs={max_epochs:g}"
        cure = "set data.exhaustion=repeat" if exhaustion == "stop" else "raise data.max_epochs if you mean it"
        raise ConfigError(
            f"the plan reads sources more often than allowed ({key}), in epochs: {listed}; lower their "
            f"share or the stage's tokens, add data, or {cure}"
        )
