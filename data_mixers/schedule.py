"""The blend schedule: seed, sources and a list of phases that is only ever appended to.

Everything that decides which tokens sample i holds is in here, and nothing else: the past is hashed and never edited.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from data_mixers.errors import ConfigError, DataError
from data_mixers.file_version import KEY as VERSION
from data_mixers.file_version import check_version
from data_mixers.manifest import SourceEntry
from data_mixers.ratios import WEIGHT_UNIT
from data_mixers.strict_json import parse

SCHEMA_VERSION = 4
OLD_SCHEDULE = "go on with the version of the program that began the run, or begin another from its checkpoint"
SCHEDULE_NAME = "schedule.json"
PhaseKind = Literal["stage", "reweight", "guard", "exhaustion"]


@dataclass(frozen=True, kw_only=True)
class ScheduledShard:
    """One token file, as far as sampling needs to know it."""

    num_tokens: int
    sha256: str
    """Of the .bin: other tokens under the same name are another past."""


@dataclass(frozen=True, kw_only=True)
class ScheduledSource:
    """A source that may be read; its index in the schedule is its rank in the merge."""

    name: str
    shards: tuple[ScheduledShard, ...]
    packed_seq_length: int | None = None
    """Its windows hold whole documents: they begin at multiples of this in every epoch."""

    def __post_init__(self) -> None:
        if "@" in self.name:
            raise ConfigError(f"source {self.name} is held out for validation and can never enter a schedule")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A range of samples blended with one set of weights."""

    name: str
    start_sample: int
    num_samples: int
    weights: tuple[tuple[str, int], ...]
    """(source name, weight over 2**32), in schedule order, zeros left out; they sum to exactly 2**32."""
    kind: PhaseKind = "stage"
    """Why the phase begins; decides no sample."""

    @property
    def end_sample(self) -> int:
        return self.start_sample + self.num_samples


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Data left out after a loss spike: the phase's order goes on `num_samples` later from `at_sample` on.

    Phases keep their sample numbers; only what is read from `at_sample` on moves up.
    """

    at_sample: int
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What to read, in which order, for the whole run."""

    seed: int
    seq_length: int
    sources: tuple[ScheduledSource, ...]
    phases: tuple[Phase, ...] = ()
    skips: tuple[Skip, ...] = ()
    """In order of at_sample."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ConfigError(f"schedule: a source occurs twice: {sorted(n for n in set(names) if names.count(n) > 1)}")
        if self.seq_length < 1:
            raise ConfigError(f"schedule: seq_length={self.seq_length} must be at least 1")
        for source in self.sources:
            if source.packed_seq_length not in (None, self.seq_length):
                raise ConfigError(
                    f"source {source.name} is packed for training.seq_length={source.packed_seq_length}, not "
                    f"{self.seq_length}: set that, or preprocess it again with --seq-length {self.seq_length}"
                )
        start, rank_of = 0, {name: rank for rank, name in enumerate(names)}
        for index, phase in enumerate(self.phases):
            _check_phase(phase, rank_of, start=start, where=f"schedule.phases[{index}]")
            start = phase.end_sample
        for index, skip in enumerate(self.skips):
            if skip.num_samples < 1 or not 0 <= skip.at_sample < start:
                raise ConfigError(f"schedule.skips[{index}]={skip} is empty or outside the {start} samples")
            if index and skip.at_sample < self.skips[index - 1].at_sample:
                raise ConfigError(
                    f"schedule.skips[{index}] at {skip.at_sample} is before the one at its left; sort them"
                )

    @property
    def num_samples(self) -> int:
        return self.phases[-1].end_sample if self.phases else 0

    def append_weights(
        self,
        name: str,
        *,
        num_samples: int,
        weights: Mapping[str, int],
        new_sources: tuple[ScheduledSource, ...] = (),
        kind: PhaseKind = "stage",
    ) -> "Schedule":
        """This schedule with one more phase; samples before it are unchanged. Weights as `ratios.quantise` gives them.

        new_sources: sources no earlier phase knew; they rank after all others.
        Errors: ConfigError if the weights do not fit.
        """
        known = dict.fromkeys(source.name for source in self.sources + new_sources)
        for source in weights:
            if source not in known:
                raise ConfigError(f"phase {name} weighs {source}, which the schedule does not have: {', '.join(known)}")
        ordered = tuple((source, weights[source]) for source in known if weights.get(source, 0))
        phase = Phase(name=name, start_sample=self.num_samples, num_samples=num_samples, weights=ordered, kind=kind)
        return replace(self, sources=self.sources + new_sources, phases=(*self.phases, phase))

    def until(self, sample: int) -> "Schedule":
        """The first `sample` samples of this schedule, to append another future to.

        Errors: ConfigError if it has fewer.
        """
        if not 0 <= sample <= self.num_samples:
            raise ConfigError(f"sample {sample} is outside the schedule, which has {self.num_samples} samples")
        kept = [phase for phase in self.phases if phase.start_sample < sample]
        return replace(
            self,
            phases=tuple(
                replace(phase, num_samples=min(phase.end_sample, sample) - phase.start_sample) for phase in kept
            ),
            skips=tuple(skip for skip in self.skips if skip.at_sample < sample),
        )

    def skip(self, start: int, stop: int, *, consumed_samples: int) -> "Schedule":
        """This schedule without the data of samples start..stop-1: from `start` on it reads what came from `stop` on.

        Sample numbers are those of this schedule, so earlier skips are counted already. A later phase starts where it
        did; a source's cursor counts what was skipped. Across a change of weights: `ranges_left_out`.
        Errors: ConfigError if the range is empty, or starts before what is consumed or before an earlier skip.
        """
        if not consumed_samples <= start < stop <= self.num_samples:
            raise ConfigError(
                f"skip {start}:{stop} must be a range of samples that are not read yet, inside {consumed_samples}:"
                f"{self.num_samples}; what is consumed can not be left out"
            )
        if self.skips and start < self.skips[-1].at_sample:
            raise ConfigError(f"skip {start}:{stop} begins before the last one, at sample {self.skips[-1].at_sample}")
        ranges = ranges_left_out(self.phases, start, stop)
        return replace(self, skips=(*self.skips, *(Skip(at_sample=a, num_samples=b - a) for a, b in ranges)))

    def to_json(self) -> str:
        """Canonical: equal schedules give equal text."""
        return _canonical(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Schedule":
        """Errors: ConfigError naming the key for anything but what `to_json` writes."""
        try:
            content = json.loads(text, object_hook=_since_version_3)
        except json.JSONDecodeError as error:
            raise ConfigError(f"the schedule is not JSON: {error}") from error
        check_version(content, understood=SCHEMA_VERSION, file="the schedule", cure=OLD_SCHEDULE, fault=ConfigError)
        return parse(cls, content, where="schedule", fault=ConfigError)

    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def past_digest(self, sample: int) -> str:
        """sha256 of everything that decides the samples before `sample`, and of nothing else.

        Equal for two schedules exactly when they differ only in what comes later: names of phases, a split of a phase
        into two with equal weights, later phases and skips and sources that no earlier phase reads leave it unchanged.
        """
        segments: list[tuple[int, tuple[tuple[str, int], ...]]] = []
        for phase in self.phases:
            end = min(phase.end_sample, sample)
            if end <= phase.start_sample:
                continue
            if segments and segments[-1][1] == phase.weights:
                segments.pop()
            segments.append((end, phase.weights))
        read = {name for _, weights in segments for name, _ in weights}
        skipped: dict[int, int] = {}
        for skip in self.skips:
            if skip.at_sample < sample:
                skipped[skip.at_sample] = skipped.get(skip.at_sample, 0) + skip.num_samples
        past = {
            "seed": self.seed,
            "seq_length": self.seq_length,
            # the index is the rank in the merge, so it belongs to the past
            "sources": [(index, asdict(source)) for index, source in enumerate(self.sources) if source.name in read],
            "segments": segments,
            "skipped": sorted(skipped.items()),
        }
        return hashlib.sha256(_canonical(past).encode()).hexdigest()


def ranges_left_out(phases: Sequence[Phase], start: int, stop: int) -> list[tuple[int, int]]:
    """What has to be left out so that samples start..stop-1 are not read: that range, and parts of it once more.

    The phase at `start` leaves out as many samples as there are, by its own weights. A phase in between whose sources
    nothing before it in the range has read begins with its part of the range again, or it would read that. What is
    left: of a source whose share rises inside the range, as much as it has risen by is read, in the part behind.
    """
    inside = [phase for phase in phases if phase.start_sample < stop and phase.end_sample > start]
    ranges = [(start, stop)]
    known: set[str] = set()
    for phase in inside:
        names = {name for name, _ in phase.weights}
        if known and not names <= known:
            ranges.append((phase.start_sample, stop))
        known |= names
    return ranges


def read_schedule(path: Path) -> Schedule:
    """A schedule.json, or the one of a run folder. Errors: DataError naming the file."""
    file = path / SCHEDULE_NAME if path.is_dir() else path
    try:
        return Schedule.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}; name a run folder or its {SCHEDULE_NAME}") from error
    except ConfigError as error:
        raise DataError(f"{file}: {error}") from error


def scheduled_source(entry: SourceEntry) -> ScheduledSource:
    """A manifest's source as the schedule holds it.

    Errors: ConfigError if it is held out for validation.
    """
    if entry.role != "train":
        raise ConfigError(f"source {entry.name} has role {entry.role}: it is held out and can never enter a schedule")
    shards = tuple(ScheduledShard(num_tokens=shard.num_tokens, sha256=shard.bin_sha256) for shard in entry.shards)
    return ScheduledSource(name=entry.name, shards=shards, packed_seq_length=entry.packed_seq_length)


def _since_version_3(found: dict[str, object]) -> dict[str, object]:
    """Version 3 said of each source in which order it is read; no run ever wrote another than this one."""
    only = {"order": "permuted", "prefix": 0.0, "windows_planned": None}
    kept = {key: value for key, value in found.items() if key not in only or value != only[key]}
    return kept | {VERSION: SCHEMA_VERSION} if kept.get(VERSION) == 3 else kept


def _check_phase(phase: Phase, rank_of: Mapping[str, int], *, start: int, where: str) -> None:
    if phase.start_sample != start:
        raise ConfigError(
            f"{where} ({phase.name}) starts at sample {phase.start_sample}; the phase before ends at {start}"
        )
    if phase.num_samples < 1:
        raise ConfigError(f"{where} ({phase.name}) has {phase.num_samples} samples; it needs at least one")
    ranks = []
    for name, weight in phase.weights:
        if name not in rank_of:
            raise ConfigError(
                f"{where} ({phase.name}) weighs {name}, which is not among its sources: {', '.join(rank_of)}"
            )
        if weight < 1:
            raise ConfigError(f"{where} ({phase.name}): weight {weight} of {name} is not positive; leave it out")
        ranks.append(rank_of[name])
    if ranks != sorted(set(ranks)):
        raise ConfigError(f"{where} ({phase.name}): weights must be in the order of the sources, each once")
    total = sum(weight for _, weight in phase.weights)
    if total != WEIGHT_UNIT:
        raise ConfigError(f"{where} ({phase.name}): weights sum to {total}, not 2**32; make them with ratios.quantise")


def _canonical(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
