"""Intervals and tests against published examples, exact enumeration and independent formulas."""

import math
from itertools import product

import numpy as np
import pytest

from tools.evaluation import statistics


def test_wilsons_interval_is_that_of_his_formula() -> None:
    # 81 of 263: Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3: 0.2553 to 0.3662.
    low, high = statistics.wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert statistics.wilson(0, 10)[0] == 0.0
    assert statistics.wilson(10, 10)[1] == 1.0


def test_newcombes_interval_of_a_difference_is_that_of_his_paper() -> None:
    # 56/70 against 48/80: Newcombe 1998 (Statistics in Medicine 17, 873), table II, method 10: 0.0524 to 0.3339.
    (low, high), _ = statistics.two_proportions(48 / 80, 56 / 70, num_a=80, num_b=70)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_the_z_test_of_two_shares_is_the_chi_square_test_of_the_table() -> None:
    from scipy.stats import chi2_contingency

    _, p_value = statistics.two_proportions(48 / 80, 56 / 70, num_a=80, num_b=70)
    expected = chi2_contingency([[48, 32], [56, 14]], correction=False).pvalue
    assert p_value == pytest.approx(expected, rel=1e-9)


def test_mcnemar_is_the_binomial_of_the_discordant_pairs() -> None:
    # 12 items only A has, 3 only B: 2 * sum_{k<=3} C(15, k) / 2^15 = 2 * 576 / 32768.
    a = [1.0] * 12 + [0.0] * 3 + [1.0] * 30 + [0.0] * 5
    b = [0.0] * 12 + [1.0] * 3 + [1.0] * 30 + [0.0] * 5
    test = statistics.paired([a], [b])
    assert (test.only_a, test.only_b) == (12, 3)
    assert test.p_value == pytest.approx(2 * 576 / 32768, abs=1e-12)
    assert test.difference == pytest.approx(-9 / 50)
    assert statistics.paired([a], [a]).p_value == 1.0


def test_the_bootstrap_is_that_over_resampled_items() -> None:
    """All 5^5 resamples of five items, each as likely as another: the same percentiles."""
    a, b = [1.0, 0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0, 1.0]
    differences = np.asarray(b) - np.asarray(a)
    means = [float(np.mean(differences[list(chosen)])) for chosen in product(range(5), repeat=5)]
    low, high = np.percentile(means, [2.5, 97.5])
    test = statistics.paired([a], [b])
    assert (test.interval[0], test.interval[1]) == pytest.approx((low, high), abs=1e-12)  # both are multiples of 1/5


def test_the_bootstrap_agrees_with_scipys_on_many_items() -> None:
    from scipy.stats import bootstrap

    random = np.random.default_rng(3)
    a, b = (random.random(400) < 0.5).astype(float), (random.random(400) < 0.56).astype(float)
    expected = bootstrap((b - a,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1))
    found = statistics.paired([list(a)], [list(b)]).interval
    # A percentile of 10,000 draws with a standard error of 0.035 is known to 0.001.
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.003)


def test_a_macro_average_weighs_tasks_alike_and_keeps_their_variances() -> None:
    score, (low, high), method = statistics.interval_of([[1.0, 1.0, 0.0, 0.0], [1.0] * 6], "macro")
    assert (score, method) == (0.75, "wilson")
    # Wilson's of 2 in 4: 0.1500 to 0.8500; of 6 in 6: 0.6097 to 1. The distances add squared, halved.
    assert low == pytest.approx(0.75 - math.hypot(0.35, 0.3903) / 2, abs=1e-4)
    assert high == pytest.approx(0.75 + 0.35 / 2, abs=1e-4)
    assert statistics.interval_of([[0.5, 0.0], [1.0]], "macro")[2] == "normal"
    assert statistics.interval_of([[1.0, 1.0, 0.0, 0.0], [1.0]], "micro")[0] == 0.6
    groups = [[1.0] * 60 + [0.0] * 40, [1.0] * 10 + [0.0] * 10]
    error = math.sqrt(0.6 * 0.4 / 99 + 0.5 * 0.5 / 19) / 2
    low, high = statistics.normal(groups)
    assert (low, high) == pytest.approx((0.55 - 1.959964 * error, 0.55 + 1.959964 * error), abs=1e-6)
    worse = [[0.0] * 100, [1.0] * 10 + [0.0] * 10]
    test = statistics.paired(groups, worse, average="macro")
    assert test.difference == pytest.approx(-0.3)
    # Only the first group changes: 60 of 100 by one, halved.
    error = math.sqrt(0.6 * 0.4 / 99) / 2
    assert test.interval == pytest.approx((-0.3 - 1.96 * error, -0.3 + 1.96 * error), abs=0.01)


def test_scores_between_0_and_1_have_the_normal_interval_and_the_z_test() -> None:
    scores = [0.0, 0.5, 1.0, 0.5]
    error = math.sqrt((0.25 + 0.25) / 3 / 4)
    mean, interval, method = statistics.interval_of([scores], "micro")
    assert (mean, method) == (0.5, "normal")
    assert interval == pytest.approx((0.5 - 1.959964 * error, 0.5 + 1.959964 * error), abs=1e-6)
    test = statistics.paired([scores], [[0.5, 1.0, 1.0, 0.5]])
    # Differences 0.5, 0.5, 0, 0: mean 0.25, deviation sqrt(1/12), z = 0.25 / sqrt(1/48) = sqrt(3).
    assert test.p_value == pytest.approx(math.erfc(math.sqrt(3) / math.sqrt(2)), rel=1e-9)


def test_the_mean_of_two_independent_differences_has_their_variances_together() -> None:
    """Symmetric intervals are normal ones: half widths 1.96 s; the mean of two has s = sqrt(s1^2 + s2^2) / 2."""
    parts = [(0.03, (0.03 - 0.0392, 0.03 + 0.0392)), (0.05, (0.05 - 0.0294, 0.05 + 0.0294))]
    (low, high), p_value = statistics.mean_of_independent(parts)
    error = math.hypot(0.02, 0.015) / 2
    assert (low, high) == pytest.approx((0.04 - 1.96 * error, 0.04 + 1.96 * error), abs=1e-9)
    assert p_value == pytest.approx(math.erfc(0.04 / error / math.sqrt(2)), rel=1e-3)  # 1.96 is rounded


def test_holm_is_that_of_the_worked_example() -> None:
    # 0.01, 0.04, 0.03, 0.005 sorted: 4 * 0.005, 3 * 0.01, 2 * 0.03, 1 * 0.04 (not below the one before).
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.7, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@pytest.mark.parametrize(("only_b", "is_noise"), [(3, True), (4, True), (5, True), (6, False)])
def test_a_handful_of_items_that_differ_is_noise_however_the_bootstrap_falls(only_b: int, is_noise: bool) -> None:
    """All on one side: the exact test gives 2 / 2^n, below 0.05 from six on; percentiles leave zero from four on."""
    test = statistics.paired([[0.0] * 100], [[1.0] * only_b + [0.0] * (100 - only_b)])
    assert test.p_value == pytest.approx(2 / 2**only_b)
    assert (test.interval[0] > 0) == (only_b >= 4)
    assert statistics.is_noise(test.interval, test.p_value) == is_noise


@pytest.mark.parametrize("interval", [(-0.1, 0.0), (0.0, 0.1), (-0.1, 0.1)])
def test_an_interval_that_touches_zero_holds_it(interval: tuple[float, float]) -> None:
    """Percentiles of few items are multiples of 1/n, so that zero itself is often an end."""
    assert statistics.is_noise(interval, 0.001)
    assert not statistics.is_noise((interval[0] - 0.2, interval[1] - 0.2), 0.001)
    assert statistics.is_noise((interval[0] - 0.2, interval[1] - 0.2), 0.051)


def test_differences_without_spread_are_no_certainty() -> None:
    """Three items better by one half each have no standard error; the sign test gives 2 / 2^3."""
    assert statistics.paired([[0.0] * 3], [[0.5] * 3]).p_value == 0.25


def test_what_is_no_pair_is_refused() -> None:
    for a, b in (([[1.0]], [[1.0, 0.0]]), ([[]], [[]]), ([], [])):
        with pytest.raises(ValueError, match="are not pairs"):
            statistics.paired(a, b)
