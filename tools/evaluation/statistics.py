"""Is a difference more than noise: intervals, paired and unpaired tests, Holm's correction. SciPy does the work."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
"""Ours: the ends of a 95 % interval then move by less than a hundredth of its width from seed to seed."""

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """B against A on the same items. difference: B's mean score minus A's. Unit: share."""

    difference: float
    interval: Interval
    """Paired bootstrap over items, percentile."""
    only_a: int
    """Items that A alone has right."""
    only_b: int
    p_value: float
    """McNemar's exact test, two-sided; for other scores than 0 and 1, or a macro average, the z-test of the mean (the
    sign test where all items differ alike, which have no spread)."""


def is_noise(interval: Interval, p_value: float) -> bool:
    """Whether a difference is inside noise: its interval holds zero, or its test does not find it.

    Both are asked: of items that differ, all for one side, four give a bootstrap interval without zero, and the exact
    test needs six.
    """
    return interval[0] <= 0.0 <= interval[1] or p_value >= 1 - CONFIDENCE


def wilson(right: int, total: int) -> Interval:
    """Of a share of right answers. Errors: ValueError for no items."""
    from scipy.stats import binomtest

    found = binomtest(right, total).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def normal(groups: Sequence[Sequence[float]]) -> Interval:
    """Of the mean of groups' means, for scores that are not only 0 and 1; within [0, 1]."""
    from scipy.stats import norm

    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    mean = float(np.mean([group.mean() for group in arrays]))
    width = float(norm.ppf((1 + CONFIDENCE) / 2)) * _standard_error(arrays)
    return max(0.0, mean - width), min(1.0, mean + width)


def interval_of(groups: Sequence[Sequence[float]], average: str) -> tuple[float, Interval, str]:
    """(score, interval, method) of a benchmark: its tasks' item scores, pooled (micro) or averaged (macro)."""
    if average == "micro":
        groups = [[score for group in groups for score in group]]
    mean = float(np.mean([np.mean(group) for group in groups]))
    if any(score not in (0.0, 1.0) for group in groups for score in group):
        return mean, normal(groups), "normal"
    # A task that is right throughout has no spread of its own, and is not known to a hair for that.
    parts = [(float(np.mean(group)), wilson(round(sum(group)), len(group))) for group in groups]
    return mean, mean_of_independent(parts)[0], "wilson"


def paired(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], *, average: str = "micro") -> PairedTest:
    """Two models' item scores by group (task), the same items in the same order.

    average: micro pools the groups, macro compares means of the groups' means.
    Errors: ValueError if they are not of the same number, or there are none.
    """
    from scipy.stats import binomtest, norm

    if [len(group) for group in a] != [len(group) for group in b] or not all(map(len, a)) or not a:
        raise ValueError(f"{[len(group) for group in a]} and {[len(group) for group in b]} scores are not pairs")
    groups = [np.asarray(y, dtype=np.float64) - np.asarray(x, dtype=np.float64) for x, y in zip(a, b, strict=True)]
    pooled = np.concatenate(groups)
    if average == "micro":
        groups = [pooled]
    only_a, only_b = int((pooled < 0).sum()), int((pooled > 0).sum())
    difference = float(np.mean([group.mean() for group in groups]))
    error = _standard_error(groups)
    if (len(groups) == 1 and set(np.unique(pooled)) <= {-1.0, 0.0, 1.0}) or error == 0:
        p_value = float(binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    else:
        p_value = 2 * float(norm.sf(abs(difference) / error))
    interval = _bootstrap(groups)
    return PairedTest(difference=difference, interval=interval, only_a=only_a, only_b=only_b, p_value=p_value)


def two_proportions(share_a: float, share_b: float, *, num_a: int, num_b: int) -> tuple[Interval, float]:
    """(interval of B minus A, two-sided p-value) of shares alone: Newcombe's interval, pooled z-test."""
    from scipy.stats import norm

    low_a, high_a = wilson(round(share_a * num_a), num_a)
    low_b, high_b = wilson(round(share_b * num_b), num_b)
    difference = share_b - share_a
    low = difference - math.hypot(share_b - low_b, high_a - share_a)
    high = difference + math.hypot(high_b - share_b, share_a - low_a)
    pooled = (share_a * num_a + share_b * num_b) / (num_a + num_b)
    error = math.sqrt(pooled * (1 - pooled) * (1 / num_a + 1 / num_b))
    p_value = 1.0 if error == 0 else 2 * float(norm.sf(abs(difference) / error))
    return (low, high), p_value


def mean_of_independent(parts: Sequence[tuple[float, Interval]]) -> tuple[Interval, float]:
    """(interval, two-sided p-value) of the mean of independent differences with intervals: distances add squared."""
    from scipy.stats import norm

    number = len(parts)
    mean = sum(difference for difference, _ in parts) / number
    below = math.sqrt(sum((difference - low) ** 2 for difference, (low, _) in parts)) / number
    above = math.sqrt(sum((high - difference) ** 2 for difference, (_, high) in parts)) / number
    error = (below if mean > 0 else above) / float(norm.ppf((1 + CONFIDENCE) / 2))
    return (mean - below, mean + above), 2 * float(norm.sf(abs(mean) / error)) if error > 0 else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for all of them being looked at (Holm 1979), in their order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _bootstrap(groups: Sequence[NDArray[np.float64]]) -> Interval:
    """Percentiles of the mean of groups' means over resampled items; each group keeps its size.

    Draws how often each distinct difference comes, not the items: a set of 14,000 costs no more than one of 100.
    """
    random = np.random.default_rng(0)
    means = np.zeros(RESAMPLES)
    for group in groups:
        values, counts = np.unique(group, return_counts=True)
        drawn = random.multinomial(len(group), counts / counts.sum(), size=RESAMPLES)
        means += drawn @ values / len(group)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means / len(groups), [tail, 100 - tail])
    return float(low), float(high)


def _standard_error(groups: Sequence[NDArray[np.float64]]) -> float:
    """Of the mean of groups' means: their variances add."""
    errors = [group.std(ddof=1) / math.sqrt(len(group)) if len(group) > 1 else 0.5 for group in groups]
    return math.hypot(*errors) / len(errors)
