"""Which source sample i of a phase comes from: a merge of virtual times, in integers only.

Draw k of source j happens at virtual time (k + phi_j) / w_j; samples are the draws of all sources in order of time.
With weights over 2**32 that sum to 2**32, time advances by one per sample on average. Times are kept as
T_j(k) = floor(2**20 * ((k << 32) + phi_j) / w_j); equal times go to the smaller source index. Floats would repeat or
skip draws after a few million samples.
phi carries a source's credit from phase to phase: after n samples phi' = (count << 32) + phi - n * w, whose sum over
sources never changes. Splitting a phase in two therefore changes nothing.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TIME_BITS = 20
WEIGHT_BITS = 32


@dataclass(frozen=True)
class Merge:
    """The merge of one phase; sources with weight 0 are never drawn."""

    weights: tuple[int, ...]
    phis: tuple[int, ...]
    """Credit at the start of the phase, in units of 2**-32 draws; may be negative."""

    def counts(self, num_samples: int) -> tuple[int, ...]:
        """Draws of each source among the first `num_samples` samples."""
        if num_samples == 0:
            return (0,) * len(self.weights)
        time = self._time_of(num_samples - 1)
        counts = [self._draws_until(j, time - 1) for j in range(len(self.weights))]
        left = num_samples - sum(counts)
        for j in range(len(counts)):
            if left and self._draws_until(j, time) > counts[j]:
                counts[j] += 1
                left -= 1
        return tuple(counts)

    def draw(self, sample: int) -> tuple[int, int]:
        """(source index, draws of that source before it) of the sample'th sample of the phase."""
        time = self._time_of(sample)
        before = [self._draws_until(j, time - 1) for j in range(len(self.weights))]
        left = sample - sum(before)
        for j, count in enumerate(before):
            if self._draws_until(j, time) > count:
                if left == 0:
                    return j, count
                left -= 1
        raise AssertionError("the merge lost a draw")

    def draws(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(source index, draws of that source before) of samples start..stop-1 of the phase.

        Exact while stop - start < 2**30: times are taken relative to the first one, so int64 cannot overflow.
        """
        first, last = self.counts(start), self.counts(stop)
        active = [j for j in range(len(self.weights)) if last[j] > first[j]]
        starts = {j: divmod((first[j] << WEIGHT_BITS) + self.phis[j], self.weights[j]) for j in active}
        base = min((whole for whole, _ in starts.values()), default=0)
        times, indices, numbers = [], [], []
        for j in active:
            whole, rest = starts[j]
            steps = np.arange(last[j] - first[j], dtype=np.int64)
            quotient, remainder = np.divmod((steps << WEIGHT_BITS) + rest, self.weights[j])
            times.append(((quotient + (whole - base)) << TIME_BITS) + (remainder << TIME_BITS) // self.weights[j])
            indices.append(np.full(len(steps), j, dtype=np.int64))
            numbers.append(steps + first[j])
        if not active:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        order = np.argsort(np.concatenate(times), kind="stable")  # stable: ties stay in source order
        return np.concatenate(indices)[order], np.concatenate(numbers)[order]

    def phis_after(self, num_samples: int) -> tuple[int, ...]:
        """The credit to start the next phase with; a source with weight 0 keeps its own."""
        return tuple(
            (count << WEIGHT_BITS) + phi - num_samples * weight
            for count, phi, weight in zip(self.counts(num_samples), self.phis, self.weights, strict=True)
        )

    def _time_of(self, sample: int) -> int:
        """The smallest time at which more than `sample` draws have happened."""
        step = 1 << TIME_BITS
        high = (sample + 1) << TIME_BITS
        while self._total_until(high) <= sample:
            high += step
            step <<= 1
        step = 1 << TIME_BITS
        low = high - step
        while self._total_until(low) > sample:
            low -= step
            step <<= 1
        while high - low > 1:
            middle = (low + high) >> 1
            if self._total_until(middle) > sample:
                high = middle
            else:
                low = middle
        return high

    def _total_until(self, time: int) -> int:
        return sum(self._draws_until(j, time) for j in range(len(self.weights)))

    def _draws_until(self, j: int, time: int) -> int:
        """Draws of source j with T_j(k) <= time: T_j(k) <= t is the same as 2**20 * ((k << 32) + phi) < (t + 1) * w."""
        weight = self.weights[j]
        if weight == 0:
            return 0
        largest = ((time + 1) * weight - 1) >> TIME_BITS
        return max(0, ((largest - self.phis[j]) >> WEIGHT_BITS) + 1)
