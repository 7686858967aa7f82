"""The paired interval against every resample there is, and against SciPy's bootstrap."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tools.data.topic_difference import RESAMPLES, Difference, macro_f1_difference


def macro_f1(truth: Sequence[str], given: Sequence[str], topics: Sequence[str]) -> float:
    """The plain way: precision and recall of each topic."""
    found = []
    for topic in topics:
        hits = sum(a == b == topic for a, b in zip(truth, given, strict=True))
        precision, recall = hits / max(1, list(given).count(topic)), hits / max(1, list(truth).count(topic))
        found.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return sum(found) / len(topics)


def test_the_difference_by_hand() -> None:
    """Ours has one b wrong: a 4/5, b 2/3; the other one of each: 1/2, 1/2. A document a source: one resample alone."""
    truth, ours, other = list("aabb"), list("aaab"), list("abab")
    found = macro_f1_difference(truth, ours, other, sources=list("wxyz"))
    assert found.value == pytest.approx((4 / 5 + 2 / 3) / 2 - 1 / 2)
    assert (found.low, found.high) == pytest.approx((found.value, found.value))
    found = macro_f1_difference(truth, truth, list("aaaa"), sources=list("wxyz"))
    assert found.value == found.low == pytest.approx(1 - (2 / 3 + 0) / 2)


def test_the_interval_is_that_of_all_resamples() -> None:
    """Two sources of 3 and 2 documents: 3³ · 2² equally likely resamples, each worked out."""
    truth, ours, other, sources = list("aabba"), list("aabbb"), list("abaza"), list("xxxyy")
    of_all = []
    for x in product((0, 1, 2), repeat=3):
        for y in product((3, 4), repeat=2):
            drawn = [[labels[place] for place in (*x, *y)] for labels in (truth, ours, other)]
            of_all.append(macro_f1(drawn[0], drawn[1], "ab") - macro_f1(drawn[0], drawn[2], "ab"))
    assert len(of_all) == 108
    found = macro_f1_difference(truth, ours, other, sources)
    low, high = np.quantile(of_all, [0.025, 0.975], method="inverted_cdf")
    assert found.value == pytest.approx(macro_f1(truth, ours, "ab") - macro_f1(truth, other, "ab"))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_of_one_source_the_interval_is_scipys() -> None:
    """80 documents of 4 topics; SciPy draws documents, not counts. An end of the interval has a standard error of
    sqrt(0.025 · 0.975 / 10,000) over the density there, about 1 (a normal one of deviation 0.06): 0.0016 for either
    bootstrap; the bound is five of those of their difference."""
    random = np.random.default_rng(7)
    truth = random.integers(0, 4, size=80)
    ours, other = (np.where(random.random(80) < right, truth, random.integers(0, 4, size=80)) for right in (0.7, 0.55))

    def difference(a: NDArray[np.int64], b: NDArray[np.int64], c: NDArray[np.int64]) -> float:
        labels = [[str(number) for number in some] for some in (a, b, c)]
        return macro_f1(labels[0], labels[1], "0123") - macro_f1(labels[0], labels[2], "0123")

    expected = stats.bootstrap(
        (truth, ours, other), difference, paired=True, vectorized=False, n_resamples=RESAMPLES, method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    labels = [[str(number) for number in some] for some in (truth, ours, other)]
    found = macro_f1_difference(labels[0], labels[1], labels[2], sources=["x"] * 80)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.011)


def test_pairs_count_and_sources_keep_their_size() -> None:
    """The same labels for both: no difference in any resample. An easy source and a hard one: their shares stay, so
    that ours, right on the one and wrong on the other, is exactly as far ahead in every resample."""
    random = np.random.default_rng(1)
    truth, given = (random.choice(list("abc"), size=50).tolist() for _ in range(2))
    assert macro_f1_difference(truth, given, given, ["x"] * 50) == Difference(0.0, 0.0, 0.0)
    found = macro_f1_difference(list("a" * 30), list("a" * 10 + "b" * 20), list("b" * 30), list("x" * 10 + "y" * 20))
    assert (found.low, found.value, found.high) == pytest.approx((0.5, 0.5, 0.5))  # 2 · 10 / (30 + 10)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.001, 0.1, "ahead of"),
        (-0.1, -0.001, "behind"),
        (-0.1, 0.1, "not resolved against"),
        (0.0, 0.1, "not resolved against"),
    ],
)
def test_only_an_interval_without_0_decides(low: float, high: float, verdict: str) -> None:
    found = Difference((low + high) / 2, low, high)
    assert found.verdict == verdict
    assert str(Difference(-0.0186, -0.04, 0.002)) == "-0.019 [-0.040, +0.002]"


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="no documents"):
        macro_f1_difference([], [], [], [])
    with pytest.raises(ValueError, match="shorter"):
        macro_f1_difference(["a"], ["a"], [], ["x"])
