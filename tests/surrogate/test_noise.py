"""What a study can resolve, against simulation and a table of Student's t."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from tools.surrogate.noise import compare, detectable, power_at, seeds_needed, spread_of
from tools.surrogate.results import half_widths

SD = 0.004


@pytest.mark.parametrize(("seeds", "alpha"), [(3, 0.05), (5, 0.05), (5, 0.0125), (20, 0.05)])
def test_a_difference_of_the_stated_size_is_found_as_often_as_stated(seeds: int, alpha: float) -> None:
    """20,000 studies of normal seeds with that true difference, each tested as the table does."""
    stated = detectable(sd=SD, seeds=seeds, alpha=alpha, power=0.8)
    random = np.random.default_rng(seeds)
    differences = stated + SD * random.standard_normal((20_000, seeds))
    error = differences.std(axis=1, ddof=1) / math.sqrt(seeds)
    # two-sided critical values of Student's t, from a printed table (df 2, 4, 4 and 19)
    critical = {(3, 0.05): 4.3027, (5, 0.05): 2.7764, (5, 0.0125): 4.3147, (20, 0.05): 2.0930}[seeds, alpha]
    found = np.mean(np.abs(differences.mean(axis=1)) > critical * error)
    assert found == pytest.approx(0.8, abs=0.01)  # three standard errors of 20,000 draws
    assert power_at(stated, sd=SD, seeds=seeds, alpha=alpha) == pytest.approx(0.8, abs=1e-6)


def test_intervals_hold_the_true_difference_as_often_as_stated_and_verdicts_share_the_error() -> None:
    random = np.random.default_rng(1)
    inside = wrong = 0
    for draws in 0.001 + SD * random.standard_normal((3000, 5)):
        found = compare(draws.tolist(), level=0.95, comparisons=4)
        inside += found.low <= 0.001 <= found.high
        wrong += compare((draws - 0.001).tolist(), level=0.95, comparisons=4).is_resolved
    assert inside / 3000 == pytest.approx(0.95, abs=0.012)
    assert wrong / 3000 == pytest.approx(0.0125, abs=0.006)


def test_an_interval_by_hand() -> None:
    """1, 2, 3: mean 2, sd 1, standard error 1/sqrt 3, t of 2 degrees of freedom 4.3027."""
    found = compare([1.0, 2.0, 3.0], level=0.95, comparisons=1)
    assert (found.mean, found.seeds) == (2.0, 3)
    assert found.high - 2.0 == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert not found.is_resolved
    assert compare([1.9, 2.0, 2.1], level=0.95, comparisons=1).is_resolved


def test_bars_of_two_arms_are_as_wide_as_what_is_told_of_their_difference() -> None:
    """Equal bars of independent means: that of their difference is wider by the root of two."""
    losses = np.array([[1.0, 4.0, 2.0, 3.5], [0.5, 4.5, 2.5, 2.0]])  # [arms, seeds]
    bars = half_widths(losses - losses.mean(axis=0), 0.95)
    found = compare((losses[1] - losses[0]).tolist(), level=0.95, comparisons=1)
    assert bars * math.sqrt(2) == pytest.approx([found.high - found.mean] * 2)


def test_seeds_needed_are_the_fewest() -> None:
    for difference in (0.5, 1.0, 3.0):
        count = seeds_needed(difference, sd=1.0, alpha=0.05, power=0.8)
        assert count is not None
        assert detectable(sd=1.0, seeds=count, alpha=0.05, power=0.8) <= difference
        if count > 2:
            assert detectable(sd=1.0, seeds=count - 1, alpha=0.05, power=0.8) > difference
    # Printed tables of the paired t test: 34 pairs for half a standard deviation, 10 for a whole one.
    assert seeds_needed(0.5, sd=1.0, alpha=0.05, power=0.8) == 34
    assert seeds_needed(1.0, sd=1.0, alpha=0.05, power=0.8) == 10
    assert seeds_needed(0.001, sd=1.0, alpha=0.05, power=0.8) is None


def test_the_table_in_the_documentation_is_what_is_computed() -> None:
    text = (Path(__file__).parents[2] / "docs/surrogate.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for seeds, one, four in rows:
        for stated, comparisons in ((one, 1), (four, 4)):
            found = detectable(sd=1.0, seeds=int(seeds), alpha=0.05 / comparisons, power=0.8)
            assert float(stated) == pytest.approx(found, abs=0.006)


def test_the_upper_bound_of_a_spread_holds_as_often_as_stated() -> None:
    random = np.random.default_rng(3)
    held = [spread_of((SD * random.standard_normal(3)).tolist()).upper >= SD for _ in range(4000)]
    assert np.mean(held) == pytest.approx(0.9, abs=0.015)
