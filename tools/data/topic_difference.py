"""Who is ahead: the difference of two classifiers' macro-F1 on the same documents, with a paired bootstrap interval.

    documents of a source ─ drawn again, as many, with replacement ─ labels of both ─ difference of macro-F1
    RESAMPLES times ─ the middle 95 %
A document keeps the labels of both, so that what is hard for both does not widen the interval. Sources are strata:
their sizes are the test's own choice. They are too few to be drawn themselves, so the interval is that of other
documents of the same sources, not of other sources.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
SEED = 0
LEVELS = (0.025, 0.975)
AHEAD, UNRESOLVED, BEHIND = "ahead of", "not resolved against", "behind"


@dataclass(frozen=True)
class Difference:
    """Macro-F1 of ours minus that of another classifier."""

    value: float
    low: float
    """The interval of 95 %."""
    high: float

    @property
    def verdict(self) -> str:
        """AHEAD or BEHIND where the interval leaves out 0, else UNRESOLVED."""
        return AHEAD if self.low > 0 else BEHIND if self.high < 0 else UNRESOLVED

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def macro_f1_difference(
    truth: Sequence[str], ours: Sequence[str], other: Sequence[str], sources: Sequence[str]
) -> Difference:
    """Over the topics that are the truth of any document; one that a resample lacks has F1 0 there for both.

    truth, ours, other, sources: of each document. Errors: ValueError if there is none, or their numbers differ.
    Source: Efron and Tibshirani 1993, percentile interval.
    """
    if not truth:
        raise ValueError("no documents to compare on")
    tested = {topic: index for index, topic in enumerate(dict.fromkeys(truth))}
    untested = len(tested)  # a label that is no tested topic

    kinds: dict[tuple[int, int, int], int] = {}  # (truth, ours, other) -> its number
    of_source: dict[str, list[int]] = {}
    for *labels, source in zip(truth, ours, other, sources, strict=True):
        true, first, second = (tested.get(label, untested) for label in labels)
        of_source.setdefault(source, []).append(kinds.setdefault((true, first, second), len(kinds)))
    table = np.array(list(kinds))  # [kinds, 3]
    counted = [np.bincount(places, minlength=len(kinds)) for places in of_source.values()]

    random = np.random.default_rng(SEED)
    # Documents with the same three labels are alike, so that a draw of documents is a draw of counts of kinds.
    drawn = sum(random.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES) for counts in counted)
    found = _differences(np.asarray(drawn), table, len(tested))
    low, high = np.quantile(found, LEVELS)
    value = _differences(np.sum(counted, axis=0)[None], table, len(tested))
    return Difference(float(value[0]), float(low), float(high))


def _differences(counts: NDArray[np.int64], kinds: NDArray[np.int64], num_topics: int) -> NDArray[np.float64]:
    """[resamples, kinds] -> [resamples]. kinds: [kinds, 3] of truth, ours, other."""
    is_true, *is_given = kinds.T[:, :, None] == np.arange(num_topics)  # each [kinds, topics]
    there = counts @ is_true  # [resamples, topics]
    ours, other = (2 * (counts @ (is_true & given)) / np.maximum(there + counts @ given, 1) for given in is_given)
    return np.asarray(ours.mean(axis=1) - other.mean(axis=1))
