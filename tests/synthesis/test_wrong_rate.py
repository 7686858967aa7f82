"""The audit's interval against the posterior integrated on a grid: another way to the same numbers, without draws."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from tools.synthesis.wrong_rate import Calibration, Count, wrong_rates

Array = npt.NDArray[np.float64]
GRID = np.linspace(0, 1, 20_001)
NUM_PARTS = 60  # of each judge's share; 60 x 60 x 400 parts are integrated


def cumulative(count: Count) -> Array:
    """Of the beta density with Jeffreys' prior, on GRID."""
    middle = (GRID[1:] + GRID[:-1]) / 2
    log_density = (count.hits - 0.5) * np.log(middle) + (count.total - count.hits - 0.5) * np.log1p(-middle)
    mass = np.exp(log_density - log_density.max())
    return np.concatenate([[0.0], np.cumsum(mass) / mass.sum()])


def parts(count: Count, number: int) -> Array:
    """The middle of each of so many parts of equal probability."""
    return np.interp((np.arange(number) + 0.5) / number, cumulative(count), GRID)


def probability_below(
    bound: float, counts: list[Count], weights: list[float], calibration: Calibration | None
) -> float:
    """That the weighted sum of the two strata's corrected rates is at most `bound`."""
    first, second = parts(counts[0], 400), cumulative(counts[1])
    sensitivity = specificity = np.ones(1)
    if calibration is not None:
        sensitivity = parts(calibration.found_wrong, NUM_PARTS)
        specificity = parts(calibration.found_right, NUM_PARTS)
    total = 0.0
    for found_wrong in sensitivity:
        for found_right in specificity:
            rate = np.clip((first + found_right - 1) / (found_wrong + found_right - 1), 0, 1)
            left = (bound - weights[0] * rate) / weights[1]
            apparent = np.where(left >= 1, 1.0, left * (found_wrong + found_right - 1) + 1 - found_right)
            total += float(np.where(left < 0, 0.0, np.interp(apparent, GRID, second)).mean())
    return total / (len(sensitivity) * len(specificity))


@pytest.mark.parametrize(
    ("counts", "sizes", "calibration"),
    [
        ([Count(12, 60), Count(45, 100)], (900, 100), None),
        ([Count(0, 30), Count(3, 30)], (500, 500), None),
        ([Count(33, 100), Count(20, 80)], (300, 700), Calibration(Count(85, 100), Count(90, 100))),
        ([Count(50, 100), Count(60, 100)], (800, 200), Calibration(Count(60, 80), Count(50, 80))),
    ],
)
def test_the_ends_of_the_interval_leave_two_and_a_half_percent_outside(
    counts: list[Count], sizes: tuple[int, int], calibration: Calibration | None
) -> None:
    names = dict(zip("ab", counts, strict=True))
    rates, whole = wrong_rates(names, dict(zip("ab", sizes, strict=True)), calibration, seed=3)
    weights = [size / sum(sizes) for size in sizes]
    # 20,000 draws: the share below a quantile of 2.5 % errs by 0.11 points (one standard error); the grid by less.
    if whole.low > 0:
        assert probability_below(whole.low, counts, weights, calibration) == pytest.approx(0.025, abs=0.005)
    assert probability_below(whole.high, counts, weights, calibration) == pytest.approx(0.975, abs=0.005)
    shares = [count.share for count in counts]
    if calibration is not None:
        (wrong, right) = (count.hits / count.total for count in (calibration.found_wrong, calibration.found_right))
        shares = [(share + right - 1) / (wrong + right - 1) for share in shares]
    assert [rates[name].value for name in "ab"] == pytest.approx(shares)
    assert whole.value == pytest.approx(sum(weight * share for weight, share in zip(weights, shares, strict=True)))


def test_judging_more_strata_does_not_average_the_judges_errors_away() -> None:
    calibration = Calibration(Count(24, 30), Count(24, 30))
    many = {str(number): Count(400, 1000) for number in range(20)}
    _, one = wrong_rates({"0": Count(8000, 20_000)}, {"0": 1}, calibration, seed=1)
    _, all_of_them = wrong_rates(many, dict.fromkeys(many, 1), calibration, seed=1)
    assert all_of_them.high - all_of_them.low == pytest.approx(one.high - one.low, rel=0.05)
    assert math.isclose(all_of_them.value, (0.4 + 0.8 - 1) / 0.6)
