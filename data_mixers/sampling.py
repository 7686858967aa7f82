"""Sample number -> source and tokens: a pure function of the schedule, the same at any parallel layout.

schedule ─ phase of i ─ merge (which source, its how-many-eth draw) ─ windows (epoch, shard, offset) ─> SampleAddress
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

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


@dataclass(frozen=True)
class SampleAddresses:
    """Addresses of consecutive samples as flat arrays; item n is the address of sample start + n."""

    start: int
    source_index: npt.NDArray[np.int64]
    epoch: npt.NDArray[np.int64]
    shard_index: npt.NDArray[np.int64]
    token_offset: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.source_index)

    def __getitem__(self, n: int) -> SampleAddress:
        return SampleAddress(
            int(self.source_index[n]), int(self.epoch[n]), int(self.shard_index[n]), int(self.token_offset[n])
        )

    def __iter__(self) -> Iterator[SampleAddress]:
        columns = (self.source_index, self.epoch, self.shard_index, self.token_offset)
        return (SampleAddress(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


class Sampler:
    """A schedule prepared for look-ups. Cost: one bisection per phase; memory: a few numbers per phase and source."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        weighed = {name for phase in schedule.phases for name, _ in phase.weights}
        self._windows = [
            SourceWindows(source, seed=schedule.seed, seq_length=schedule.seq_length)
            if source.name in weighed
            else None
            for source in schedule.sources
        ]
        self._starts: list[int] = []
        self._merges: list[Merge] = []
        self._cursors: list[tuple[int, ...]] = []
        cursors = credits = (0,) * len(schedule.sources)
        for start, num_samples, weights in _blends(schedule):
            merge = Merge(weights, credits)
            self._starts.append(start)
            self._merges.append(merge)
            self._cursors.append(cursors)
            cursors = _added(cursors, merge.counts(num_samples))
            credits = merge.credits_after(num_samples)
        self._cursors.append(cursors)

    def address(self, sample: int) -> SampleAddress:
        """Errors: ConfigError if the schedule does not reach that sample."""
        phase = self._phase_of(sample)
        source, count = self._merges[phase].draw(sample - self._starts[phase])
        window = self._source(source).address(self._cursors[phase][source] + count)
        return SampleAddress(source, window.epoch, window.shard_index, window.token_offset)

    def addresses(self, start: int, stop: int) -> SampleAddresses:
        """The addresses of samples start..stop-1."""
        if stop <= start:
            return SampleAddresses(start, *(np.zeros(0, dtype=np.int64) for _ in range(4)))
        first, last = self._phase_of(start), self._phase_of(stop - 1)
        sources, draws = [], []
        for phase in range(first, last + 1):
            begin, end = self._starts[phase], (*self._starts[1:], self.schedule.num_samples)[phase]
            indices, counts = self._merges[phase].draws(max(start, begin) - begin, min(stop, end) - begin)
            sources.append(indices)
            draws.append(counts + np.array(self._cursors[phase], dtype=np.int64)[indices])
        source_index, draw = np.concatenate(sources), np.concatenate(draws)
        epoch, shard, offset = (np.zeros_like(draw) for _ in range(3))
        order = np.argsort(source_index, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(source_index[order])) + 1):
            windows = self._source(int(source_index[rows[0]]))
            epoch[rows], shard[rows], offset[rows] = windows.addresses(draw[rows])
        return SampleAddresses(start, source_index, epoch, shard, offset)

    def cursors(self, sample: int) -> tuple[int, ...]:
        """How many samples of each source come before `sample`: the per-source cursors of a checkpoint."""
        if sample == self.schedule.num_samples:
            return self._cursors[-1]
        phase = self._phase_of(sample)
        counts = self._merges[phase].counts(sample - self._starts[phase])
        return _added(self._cursors[phase], counts)

    def epochs_read(self) -> dict[str, float]:
        """How often the whole schedule reads each source that it weighs, in epochs."""
        return {
            source.name: cursor / windows.windows_per_epoch
            for source, cursor, windows in zip(self.schedule.sources, self._cursors[-1], self._windows, strict=True)
            if windows is not None
        }

    def _phase_of(self, sample: int) -> int:
        if not 0 <= sample < self.schedule.num_samples:
            raise ConfigError(f"sample {sample} is outside the schedule, which has {self.schedule.num_samples} samples")
        return bisect_right(self._starts, sample) - 1

    def _source(self, index: int) -> SourceWindows:
        windows = self._windows[index]
        assert windows is not None  # only weighed sources are drawn
        return windows


def _blends(schedule: Schedule) -> list[tuple[int, int, tuple[int, ...]]]:
    """(start, samples, weights by source index): phases, one for neighbours of equal weights.

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
            blends.append((start, phase.end_sample - start, tuple(weights)))
        else:
            blends.append((phase.start_sample, phase.num_samples, tuple(weights)))
    return blends


def _added(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


@lru_cache(maxsize=4)
def sampler(schedule: Schedule) -> Sampler:
    """The prepared form of a schedule, kept for the few that are in use."""
    return Sampler(schedule)


def address(schedule: Schedule, sample: int) -> SampleAddress:
    """Where sample number `sample` lies. Cost: well below a millisecond; a loop should use `addresses`."""
    return sampler(schedule).address(sample)


def addresses(schedule: Schedule, start: int, stop: int) -> SampleAddresses:
    """Where samples start..stop-1 lie. Cost: about a second per million."""
    return sampler(schedule).addresses(start, stop)


def epochs_read(schedule: Schedule) -> dict[str, float]:
    """How often each weighed source is read by the whole schedule, in epochs."""
    return sampler(schedule).epochs_read()
