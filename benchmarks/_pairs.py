"""Two things timed in turn: the median ratio of the pairs and its 95 % interval by bootstrap."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Of pairs measured one right after the other, so that what else the machine does falls on both."""

    median: float
    low: float
    high: float
    num_pairs: int


def ratio_of(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Median of first / second. The interval resamples pairs, 2.5 to 97.5 percent."""
    ratios = [first / second for first, second in pairs]
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    return Ratio(
        median=statistics.median(ratios),
        low=medians[int(0.025 * _RESAMPLES)],
        high=medians[int(0.975 * _RESAMPLES) - 1],
        num_pairs=len(ratios),
    )


def cpu_seconds_of(work: Callable[[], object], *, repeats: int) -> float:
    """CPU-seconds of this process for one call, the mean of several."""
    started = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - started) / repeats


def interleaved(
    first: Callable[[], float], second: Callable[[], float], *, num_pairs: int
) -> list[tuple[float, float]]:
    """(first, second) num_pairs times; every other pair runs in reverse order. One unmeasured pair warms both up."""
    found = rounds({"first": first, "second": second}, num_rounds=num_pairs)
    return list(zip(found["first"], found["second"], strict=True))


def rounds(sides: Mapping[str, Callable[[], float]], *, num_rounds: int) -> dict[str, list[float]]:
    """What each side gives, num_rounds times, all once a round; who begins moves on by one each round.

    One unmeasured round warms all up.
    """
    names = list(sides)
    found: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-1, num_rounds):
        first = max(index, 0) % len(names)
        for name in names[first:] + names[:first]:
            value = sides[name]()
            if index >= 0:
                found[name].append(value)
    return found
