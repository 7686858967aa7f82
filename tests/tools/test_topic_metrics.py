"""Scores, agreement and calibration against figures worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tools.data.topic_metrics import (
    calibration_error,
    choose_threshold,
    cohen_kappa,
    fit_temperature,
    score,
    softmax,
    topic_kappa,
)

LABELS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=40)


def test_f1_by_hand() -> None:
    """a: 2 of 3 found, 1 of 3 given wrong; b: 1 of 2 found, 1 of 2 given wrong; c is given once and never true."""
    scores = score(list("aaabb"), list("aabbc"), topics="abc")
    assert scores.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert scores.f1("a") == pytest.approx(4 / 5)  # precision 2/2, recall 2/3
    assert scores.f1("b") == pytest.approx(1 / 2)  # precision 1/2, recall 1/2
    assert scores.tested == ("a", "b")
    assert scores.macro_f1 == pytest.approx((4 / 5 + 1 / 2) / 2)
    assert scores.accuracy == pytest.approx(3 / 5)
    with pytest.raises(ValueError, match="'d'"):
        score(["a"], ["d"], topics="abc")


@given(LABELS)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(pairs: list[tuple[str, str]]) -> None:
    truth, labels = [a for a, _ in pairs], [b for _, b in pairs]
    scores = score(truth, labels, topics="abc")
    for topic in scores.tested:
        hits = sum(a == b == topic for a, b in pairs)
        precision, recall = hits / max(1, labels.count(topic)), hits / truth.count(topic)
        expected = 2 * precision * recall / (precision + recall) if hits else 0.0
        assert scores.f1(topic) == pytest.approx(expected)


def test_kappa_by_hand() -> None:
    """Cohen's own kind of table: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: (0.7 - 0.5) / (1 - 0.5) = 0.4."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert topic_kappa(first, second, "yes") == pytest.approx(0.4)
    assert cohen_kappa(first, first) == pytest.approx(1.0)
    assert math.isnan(cohen_kappa(["a", "a"], ["a", "a"]))


def test_topic_kappa_is_of_one_against_the_rest() -> None:
    """Of "c": 1 both, 1 first alone, 2 neither: (3/4 - (1/2 · 1/4 + 1/2 · 3/4)) / (1 - 1/2) = 1/2."""
    assert topic_kappa(list("abcc"), list("bacb"), "c") == pytest.approx(0.5)


def test_calibration_error_by_hand() -> None:
    """Bins of 1/15: two of confidence 0.95, one right (|0.95 - 0.5|); two of 0.5, both right (|0.5 - 1|)."""
    confidence, correct = np.array([0.95, 0.95, 0.5, 0.5]), np.array([True, False, True, True])
    assert calibration_error(confidence, correct) == pytest.approx(0.5 * 0.45 + 0.5 * 0.5)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0.0


def test_confidences_of_a_training_that_went_astray_are_in_no_bin() -> None:
    """(1/2) · |0.5 - 0| of the one that is known; a training whose weights are NaN gives none."""
    assert calibration_error(np.array([math.nan, 0.5]), np.array([True, False])) == pytest.approx(0.25)
    assert calibration_error(np.array([math.nan]), np.array([False])) == 0.0


def test_temperature_is_the_minimum_that_gradient_descent_finds() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, 400)
    logits = random.normal(0, 2, (400, 4)) + 3 * np.eye(4)[truth]
    logits *= 2.5  # far too sure
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse], max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits) * inverse, torch.from_numpy(truth))
        loss.backward()
        return loss

    optimizer.step(closure)
    temperature = fit_temperature(logits, truth)
    assert temperature == pytest.approx(1 / inverse.item(), rel=1e-4)
    assert temperature > 1
    raw, scaled = softmax(logits), softmax(logits, temperature=temperature)
    right = logits.argmax(axis=1) == truth
    assert calibration_error(scaled.max(axis=1), right) < calibration_error(raw.max(axis=1), right)


def test_threshold_by_hand() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    correct = np.array([True, True, False, True, False])
    assert choose_threshold(confidence, correct, accuracy=0.7) == 0.6  # 3 of 4 from 0.6 on; 3 of 5 from 0.5 on
    assert choose_threshold(confidence, correct, accuracy=1.0) == 0.8
    assert choose_threshold(confidence, correct, accuracy=0.6) == 0.0  # nothing need be refused
    assert choose_threshold(confidence, ~correct, accuracy=0.9) == 1.0  # nothing is good enough
    assert choose_threshold(np.array([0.9, 0.5, 0.5]), np.array([True, True, False]), accuracy=1.0) == 0.9


@given(
    st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=1, max_size=30), st.sampled_from([0.5, 0.8, 1.0])
)
def test_what_is_above_the_threshold_is_as_good_as_asked(rows: list[tuple[int, bool]], accuracy: float) -> None:
    confidence, correct = np.array([c / 10 for c, _ in rows]), np.array([r for _, r in rows])
    threshold = choose_threshold(confidence, correct, accuracy=accuracy)
    kept = correct[confidence >= threshold]
    assert threshold == 1.0 or kept.mean() >= accuracy
    lower = sorted({float(c) for c in confidence if c < threshold})
    assert all(correct[confidence >= other].mean() < accuracy for other in lower)
