"""The stages of a config and the manifests, turned into the schedule of a whole run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Literal

from data_mixers.curriculum import Curriculum, bucket_shares, buckets_of, paced, steps
from data_mixers.errors import ConfigError, DataError
from data_mixers.exhaustion import window_limits
from data_mixers.manifest import DatasetManifest, SourceEntry
from data_mixers.mixture import PlannedPhase, compose
from data_mixers.ratios import stage_weights
from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule
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
    exhaustion: Literal["repeat", "stop", "renormalize"] = "repeat",
    skips: Sequence[tuple[int, int]] = (),
) -> Schedule:
    """The plan without any decision; each stage is a whole number of global batches.

    manifests: those of data.manifests, then those of each stage in turn (`config.examine.manifest_paths`).
    skips: ranges of samples to leave out; a source comes to its end the sooner.
    Order: sources rank by the stage that first reads them, then by name; so a stage added at the end, with its own
    manifests, leaves earlier samples unchanged.
    Errors: ConfigError for shares that do not fit the data, a source that is too small, or one read more than
    `max_epochs` times (once, with exhaustion="stop"; with "renormalize" only a language with nothing left);
    DataError if manifests differ in tokenizer or share a name.
    """
    entries = all_entries(manifests)
    planned = planned_phases(stages, manifests, seq_length=seq_length, global_batch_size=global_batch_size)
    if exhaustion == "renormalize":
        limits = window_limits(entries, seq_length=seq_length, max_epochs=max_epochs)
        return _skipping(compose(planned, (), entries, seed=seed, seq_length=seq_length, limits=limits), skips)
    schedule = _skipping(compose(planned, (), entries, seed=seed, seq_length=seq_length), skips)
    if exhaustion == "stop":
        check_epochs(schedule, limit=1.0, key="data.exhaustion is stop", cure="set data.exhaustion=repeat")
    else:
        cure = "raise data.max_epochs if you mean it"
        check_epochs(schedule, limit=max_epochs, key=f"data.max_epochs={max_epochs:g}", cure=cure)
    return schedule


def _skipping(schedule: Schedule, skips: Sequence[tuple[int, int]]) -> Schedule:
    for start, stop in skips:
        schedule = schedule.skip(start, stop, consumed_samples=0)
    return schedule


def planned_phases(
    stages: Sequence[StageSection], manifests: Sequence[DatasetManifest], *, seq_length: int, global_batch_size: int
) -> list[PlannedPhase]:
    """What the configuration plans: one phase per stage, or one per step of a stage's curriculum.

    Errors: as build_schedule, but for epochs.
    """
    if not stages:
        raise ConfigError("data.stages is empty; a run needs at least one stage")
    all_entries(manifests)
    planned: list[PlannedPhase] = []
    for index, stage in enumerate(stages):
        where = f"data.stages[{index}]"
        entries = all_entries(known_at(stages, index, manifests))
        weights = stage_weights(stage.languages, stage.sources, stage.topics, list(entries.values()), where=where)
        samples = math.ceil(stage.tokens / (seq_length * global_batch_size)) * global_batch_size
        written = frozenset(f"{language}/{source}" for language in stage.topics for source in stage.topics[language])
        for name, count, shares in _stretches(stage, weights, samples, entries, where=where):
            planned.append(
                PlannedPhase(name=name, stage=stage.name, num_samples=count, weights=shares, written_groups=written)
            )
    return planned


def known_at(
    stages: Sequence[StageSection], index: int, manifests: Sequence[DatasetManifest]
) -> Sequence[DatasetManifest]:
    """The manifests that stage `index` may read: all but those that join with a later one."""
    return manifests[: len(manifests) - sum(len(stage.manifests) for stage in stages[index + 1 :])]


def _stretches(
    stage: StageSection,
    weights: Mapping[str, Fraction],
    samples: int,
    entries: Mapping[str, SourceEntry],
    *,
    where: str,
) -> Iterator[tuple[str, int, Mapping[str, Fraction]]]:
    """(name, samples, weights) of the stage, cut where its curriculum turns to other buckets."""
    if stage.curriculum is None:
        yield stage.name, samples, weights
        return
    section = stage.curriculum
    curriculum = Curriculum(pacing=section.pacing, languages=section.languages, warmup_share=section.warmup_share)
    num_buckets = buckets_of(curriculum, list(entries.values()), where=f"{where}.curriculum")
    # The language's share is the same in the whole stage, so its progress is that of the samples.
    begin, done = Fraction(0), 0
    for number, end in enumerate(steps(curriculum, num_buckets), start=1):
        upto = round(end * samples)
        if upto > done:
            shares = bucket_shares(curriculum, num_buckets, begin, end)
            yield f"{stage.name}, step {number}", upto - done, paced(curriculum, weights, shares, entries)
        begin, done = end, upto


def all_entries(manifests: Sequence[DatasetManifest]) -> dict[str, SourceEntry]:
    """Every source by name. Errors: DataError if manifests differ in tokenizer or share a name."""
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


def check_epochs(schedule: Schedule, *, limit: float, key: str, cure: str) -> None:
    """Errors: ConfigError naming every source that the whole schedule reads more than `limit` times, and `key`."""
    beyond = {name: epochs for name, epochs in Sampler(schedule).epochs_read().items() if epochs > limit}
    if beyond:
        listed = ", ".join(f"{name} {epochs:.2f}" for name, epochs in sorted(beyond.items(), key=lambda item: -item[1]))
        raise ConfigError(
            f"the plan reads sources more often than allowed ({key}), in epochs: {listed}; lower their "
            f"share or the stage's tokens, add data, or {cure}"
        )
