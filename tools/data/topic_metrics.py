"""How good labels are: confusion, F1, Cohen's kappa, calibration, and the confidence below which a label is refused."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
BINS = 15  # of the calibration error, as in Guo et al. (arXiv 1706.04599)


@dataclass(frozen=True)
class Scores:
    topics: tuple[str, ...]
    confusion: NDArray[np.int64]
    """[true topic, given topic]."""

    @property
    def num_documents(self) -> int:
        return int(self.confusion.sum())

    @property
    def tested(self) -> tuple[str, ...]:
        """Topics that are the truth of any document."""
        return tuple(topic for topic, row in zip(self.topics, self.confusion, strict=True) if row.sum())

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / max(1, self.confusion.sum()))

    def f1(self, topic: str) -> float:
        """2 · hits / (truly there + given); 0 where there is neither."""
        index = self.topics.index(topic)
        there = int(self.confusion[index].sum()) + int(self.confusion[:, index].sum())
        return 2 * int(self.confusion[index, index]) / there if there else 0.0

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the tested topics; a label that is no tested topic is a miss of the true one."""
        return sum(self.f1(topic) for topic in self.tested) / max(1, len(self.tested))


def score(truth: Sequence[str], given: Sequence[str], *, topics: Sequence[str]) -> Scores:
    """Errors: ValueError for a label outside `topics`."""
    place = {topic: index for index, topic in enumerate(topics)}
    confusion = np.zeros((len(place), len(place)), dtype=np.int64)
    for true, label in zip(truth, given, strict=True):
        if true not in place or label not in place:
            raise ValueError(f"{true!r} or {label!r} is none of the topics {sorted(place)}")
        confusion[place[true], place[label]] += 1
    return Scores(tuple(topics), confusion)


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Agreement of two labellers beyond chance: (agreed - by chance) / (1 - by chance).

    NaN where both give one same label to everything: then there is nothing that chance could not do.
    Source: Cohen 1960.
    """
    count = len(first)
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / count
    labels = set(first) | set(second)
    chance = sum(sum(a == label for a in first) / count * (sum(b == label for b in second) / count) for label in labels)
    return math.nan if chance >= 1 else (agreed - chance) / (1 - chance)


def topic_kappa(first: Sequence[str], second: Sequence[str], topic: str) -> float:
    """Cohen's kappa of "is it this topic or not"."""
    return cohen_kappa([str(a == topic) for a in first], [str(b == topic) for b in second])


def softmax(logits: Array, *, temperature: float = 1.0) -> Array:
    """[documents, topics] -> probabilities of the same shape."""
    return np.asarray(special.softmax(logits / temperature, axis=1))


def calibration_error(confidence: Array, correct: NDArray[np.bool_]) -> float:
    """Expected calibration error: mean |confidence - accuracy| over BINS equal bins, weighted by their documents.

    NaN, of a training that went astray, is in no bin.
    """
    known = np.flatnonzero(~np.isnan(confidence))
    bins = np.minimum((confidence[known] * BINS).astype(int), BINS - 1)
    # A bin's share of the documents times the mean of its gaps is their sum over the number of all documents.
    gaps = np.bincount(bins, weights=confidence[known] - correct[known])
    return float(np.abs(gaps).sum() / max(1, len(confidence)))


def fit_temperature(logits: Array, truth: NDArray[np.int64]) -> float:
    """The temperature in [0.05, 20] with the lowest mean NLL of the true topics.

    The NLL is convex in 1 / temperature, so a search over that finds the minimum.
    Source: Guo et al., arXiv 1706.04599.
    """
    from scipy.optimize import minimize_scalar

    def loss(inverse: float) -> float:
        chosen = special.log_softmax(logits * inverse, axis=1)[np.arange(len(truth)), truth]
        return -float(chosen.mean())

    return 1 / float(minimize_scalar(loss, bounds=(1 / 20, 20.0), method="bounded", options={"xatol": 1e-9}).x)


def choose_threshold(confidence: Array, correct: NDArray[np.bool_], *, accuracy: float) -> float:
    """The lowest confidence from which on the labels are right in at least this share of cases; 1 if there is none.

    Documents of equal confidence are kept or refused together.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence, right = confidence[order], np.cumsum(correct[order])
    share = right / np.arange(1, len(order) + 1)
    is_last = np.append(sorted_confidence[1:] != sorted_confidence[:-1], True)
    good = np.flatnonzero((share >= accuracy) & is_last)
    if not len(good):
        return 1.0
    return 0.0 if good[-1] == len(order) - 1 else float(sorted_confidence[good[-1]])
