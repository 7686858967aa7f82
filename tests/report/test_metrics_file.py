"""metrics.jsonl as a report reads it: nothing in a line makes it fail, and thinning loses no extreme and no share."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.run_folders import train_row
from tools.report.metrics_file import MOST_READINGS, MetricsFile, Readings
from tools.report.reads import stretches
from tools.report.thinning import thinned


def fed(*lines: str) -> MetricsFile:
    metrics = MetricsFile()
    metrics.feed(lines)
    return metrics


@pytest.mark.parametrize(
    "line",
    ['{"kind": "tra', "[1]", "null", "{}", '{"kind": 3, "iteration": 1}', '{"kind": "train"}', "\x00\x01",
     '{"kind": "train", "iteration": "7"}', '{"kind": "train", "iteration": NaN}', "[" * 100_000],
)  # fmt: skip
def test_a_line_that_is_no_row_is_counted_and_left_out(line: str) -> None:
    good = json.dumps(train_row(1))
    metrics = fed(good, line, good)
    assert (metrics.num_steps, metrics.num_bad, metrics.first_bad) == (2, 1, 2)


@pytest.mark.parametrize("value", [None, "3", True, [1], math.nan, math.inf, 10**400, -1.7e308, {}])
def test_a_value_that_is_no_number_leaves_a_gap(value: Any) -> None:
    metrics = fed(json.dumps(train_row(1, lm_loss=value)), json.dumps(train_row(2)))
    loss = metrics.column("lm_loss")
    assert np.isnan(loss[0]) and loss[1] == 2 + 1 / math.sqrt(2)
    assert metrics.column("iteration").tolist() == [1, 2]


def test_rows_of_kinds_that_are_not_known_are_named() -> None:
    assert fed('{"kind": "weather", "iteration": 1}').unknown_kinds == {"weather": 1}


def test_slow_ranks_are_added_up() -> None:
    row = {"kind": "ranks", "iteration": 10, "compute_seconds": [1.0, 1.0, 3.0], "slow_ranks": [2]}
    slow = fed(json.dumps(row), json.dumps(row)).slowness
    assert (slow.num_comparisons, slow.num_ranks, slow.times_slow, slow.worst_ratio) == (2, 3, {2: 2}, 3.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000), st.integers(1, 60))
def test_a_thinned_curve_keeps_its_extremes_its_ends_and_its_mean(values: list[float], stretches: int) -> None:
    y = np.array(values)
    curve = thinned(np.arange(len(y), dtype=np.float64), y, stretches=stretches)
    assert len(curve.x) == min(len(y), stretches)
    assert curve.low.min() == y.min() and curve.high.max() == y.max()
    assert curve.x[-1] == len(y) - 1
    assert (curve.low <= curve.y + 1e-6).all() and (curve.y <= curve.high + 1e-6).all()
    counts = np.diff(curve.x, prepend=-1.0)  # of a stretch: its points end at its x
    assert float(curve.y @ counts) == pytest.approx(float(y.sum()), abs=1e-6 * len(y) * 1e6)


def test_thinned_readings_keep_first_and_last_and_give_the_shares_of_all() -> None:
    """Against the same from every reading."""
    rng = np.random.default_rng(3)
    counts = np.cumsum(rng.integers(0, 5, size=(5 * MOST_READINGS + 77, 2)), axis=0)
    readings = Readings()
    for index, (zh, en) in enumerate(counts.tolist()):
        readings.add(float(index), {"zh": float(zh), "en": float(en)})
        assert readings.all()[-1][0] == index
    kept = readings.all()
    assert kept[0][0] == 0
    assert MOST_READINGS < len(kept) <= 2 * MOST_READINGS + 1
    x = np.array([tokens for tokens, _ in kept])
    assert len(set(np.diff(x)[:-1])) == 1  # evenly spread, but for the last
    for begin, end, shares in stretches(kept):
        zh, en = counts[int(end)] - counts[int(begin)]
        assert shares["zh"] == pytest.approx(zh / (zh + en))
