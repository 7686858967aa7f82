"""What seeds can tell: the smallest difference that a study finds, the seeds it needs, and intervals of differences.

Arms are compared inside a seed: d_s = outcome of the arm less that of the reference, both with seed s. The d_s of n
seeds are taken as draws from one normal distribution, so mean(d) / (sd(d) / sqrt(n)) follows Student's t with n - 1
degrees of freedom, and under a true difference D the noncentral one with noncentrality D sqrt(n) / sd.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

MOST_SEEDS = 1000
NODES = 4000  # of the mean over standard deviations: the power is right to 1e-4
UPPER = 0.9
"""Level of the upper bound of a spread: few seeds tell a standard deviation badly, and rather too small."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Standard deviation of a paired difference between arms, in nats."""

    sd: float
    upper: float
    """Above the true one in UPPER of all pilots; the same as sd where the user gave it."""
    seeds: int | None
    """It was measured on; None: given."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm less a reference, over the seeds that both have."""

    mean: float
    low: float
    high: float
    """Ends of the interval of outcome.level."""
    is_resolved: bool
    """Zero lies outside the interval that shares the error between all comparisons of the study."""
    seeds: int


def spread_of(differences: Sequence[float]) -> Spread:
    """From the paired differences of a pilot, one a seed, at least two."""
    sd, df = float(np.std(differences, ddof=1)), len(differences) - 1
    upper = sd * math.sqrt(df / float(stats.chi2.ppf(1 - UPPER, df)))
    return Spread(sd=sd, upper=upper, seeds=len(differences))


def power_at(difference: float, *, sd: float, seeds: int, alpha: float) -> float:
    """The chance that a two-sided paired t test at `alpha` finds a true difference.

    The noncentral t distribution as the mean of a normal one over the sample's standard deviation, because scipy's own
    (1.17) gives NaN a few standard deviations out.
    """
    df = seeds - 1
    critical = float(stats.t.ppf(1 - alpha / 2, df))
    shift = abs(difference) * math.sqrt(seeds) / sd
    scaled = critical * _sample_sds(df)
    return float(np.mean(special.ndtr(shift - scaled) + special.ndtr(-shift - scaled)))


@cache
def _sample_sds(df: int) -> NDArray[np.float64]:
    """Equally likely values of a sample's standard deviation where the true one is 1."""
    middles = (np.arange(NODES) + 0.5) / NODES
    sds: NDArray[np.float64] = np.sqrt(stats.chi2.ppf(middles, df) / df)
    return sds


def detectable(*, sd: float, seeds: int, alpha: float, power: float) -> float:
    """The smallest true difference that is found with this power. Unit: that of sd.

    alpha: of one comparison; a study of k comparisons gives each its k-th part.
    """
    if sd <= 0.0:
        return 0.0

    def lacking(difference: float) -> float:
        return power_at(difference * sd, sd=sd, seeds=seeds, alpha=alpha) - power

    high = 1.0  # in units of sd
    while lacking(high) < 0:
        high *= 2
    return sd * float(optimize.brentq(lacking, 0.0, high))


def seeds_needed(difference: float, *, sd: float, alpha: float, power: float) -> int | None:
    """The fewest seeds that find this difference; None above MOST_SEEDS."""
    counts = range(2, MOST_SEEDS + 1)
    place = bisect_left(
        counts, True, key=lambda seeds: detectable(sd=sd, seeds=seeds, alpha=alpha, power=power) <= difference
    )
    return counts[place] if place < len(counts) else None


def compare(differences: Sequence[float], *, level: float, comparisons: int) -> Difference:
    """Mean and interval of paired differences, one a seed, at least two."""
    values = np.asarray(differences, dtype=np.float64)
    seeds, mean = len(values), float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(seeds)
    half = error * float(stats.t.ppf(0.5 + level / 2, seeds - 1))
    shared = error * float(stats.t.ppf(1 - (1 - level) / comparisons / 2, seeds - 1))
    return Difference(mean=mean, low=mean - half, high=mean + half, is_resolved=abs(mean) > shared, seeds=seeds)
