"""Sample number -> source and tokens: a pure function of the schedule, the same at any parallel layout.

schedule ─ phase of i, skips ─ merge (source, its how-many-eth draw) ─ windows (epoch, shard, offset) ─> SampleAddress
"""

from bisect import bisect_right
from dataclasses import dataclass

from data_mixers.errors import ConfigError
from data_mixers.merge import Merge
from data_mixers.schedule import Schedule
from data_mixers.windows import SourceWindows


@dataclass(frozen=True, slots=True)
class SampleAddress:
    """Where the seq_length + 1 tokens of a sample lie."""

    source_index: int
    epoch: int
    shard_index: int
    token_offset: int


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Samples from `start` on that follow one merge without a break; a skip begins another."""

    start: int
    drawn: int
    """Samples of the merge drawn or skipped before `start`."""
    merge: Merge
    cursors: tuple[int, ...]
    """Draws of each source before the merge."""
    skipped: tuple[int, ...]
    """Those of them, and of the merge's before `start`, that no sample got."""


class Sampler:
    """A schedule prepared for look-ups. Cost: one tree per change of weights; memory: a few numbers per source."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        weighed = {name for phase in schedule.phases for name, _ in phase.weights}
        self._windows = [
            SourceWindows(source, seed=schedule.seed, seq_length=schedule.seq_length)
            if source.name in weighed
            else None
            for source in schedule.sources
        ]
        self._stretches: list[_Stretch] = []
        cursors = credits = lost = (0,) * len(schedule.sources)
        for start, end, weights in _blends(schedule):
            merge = Merge(weights, credits)
            skips = [(skip.at_sample, skip.num_samples) for skip in schedule.skips if start <= skip.at_sample < end]
            skipped = 0
            for at, num_samples in [(start, 0), *skips]:
                drawn = at - start + skipped
                skipped += num_samples
                if num_samples:
                    lost = _added(lost, _less(merge.counts(drawn + num_samples), merge.counts(drawn)))
                self._stretches.append(_Stretch(at, drawn + num_samples, merge, cursors, lost))
            drawn = end - start + skipped
            cursors = _added(cursors, merge.counts(drawn))
            credits = merge.credits_after(drawn)
        self._end_cursors, self._end_skipped = cursors, lost
        self._starts = [stretch.start for stretch in self._stretches]

    def address(self, sample: int) -> SampleAddress:
        """Where a sample lies. Cost: well below a millisecond.

        Errors: ConfigError if the schedule does not reach it.
        """
        stretch = self._stretches[self._stretch_of(sample)]
        source, count = stretch.merge.draw(sample - stretch.start + stretch.drawn)
        windows = self._windows[source]
        assert windows is not None  # only weighed sources are drawn
        return SampleAddress(source, *windows.address(stretch.cursors[source] + count))

    def cursors(self, sample: int) -> tuple[int, ...]:
        """Samples of each source read or skipped before `sample` is: the per-source cursors of a checkpoint."""
        if sample == self.schedule.num_samples:
            return self._end_cursors
        stretch = self._stretches[self._stretch_of(sample)]
        return _added(stretch.cursors, stretch.merge.counts(sample - stretch.start + stretch.drawn))

    def read(self, sample: int) -> tuple[int, ...]:
        """Samples of each source among the first `sample`, without what was skipped."""
        is_end = sample == self.schedule.num_samples
        skipped = self._end_skipped if is_end else self._stretches[self._stretch_of(sample)].skipped
        return _less(self.cursors(sample), skipped)

    def epochs_read(self, sample: int | None = None) -> dict[str, float]:
        """How often each source that the schedule weighs is read before `sample`, or in all of it, in epochs."""
        cursors = self._end_cursors if sample is None else self.cursors(sample)
        return {
            source.name: cursor / windows.windows_per_epoch
            for source, cursor, windows in zip(self.schedule.sources, cursors, self._windows, strict=True)
            if windows is not None
        }

    def _stretch_of(self, sample: int) -> int:
        if not 0 <= sample < self.schedule.num_samples:
            raise ConfigError(f"sample {sample} is outside the schedule, which has {self.schedule.num_samples} samples")
        return bisect_right(self._starts, sample) - 1


def _blends(schedule: Schedule) -> list[tuple[int, int, tuple[int, ...]]]:
    """(start, end, weights by source index): phases, one for neighbours of equal weights.

    So that splitting a phase in two changes nothing.
    """
    index_of = {source.name: index for index, source in enumerate(schedule.sources)}
    blends: list[tuple[int, int, tuple[int, ...]]] = []
    for phase in schedule.phases:
        weights = [0] * len(schedule.sources)
        for name, weight in phase.weights:
            weights[index_of[name]] = weight
        if blends and blends[-1][2] == tuple(weights):
            start = blends.pop()[0]
            blends.append((start, phase.end_sample, tuple(weights)))
        else:
            blends.append((phase.start_sample, phase.end_sample, tuple(weights)))
    return blends


def _less(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(left, right, strict=True))


def _added(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))
