"""The simulation against what can be worked out without it."""

from pathlib import Path

import numpy as np
import pytest

from data_mixers.control_settings import ControllerSettings
from tools.mix_simulate import (
    Trace,
    World,
    difference,
    draw_world,
    follow,
    labels_of_confusion,
    plot,
    report,
    uniform_labels,
)


def test_one_topic_has_no_other_to_be_taken_for() -> None:
    assert uniform_labels(0.3, 1).tolist() == [[1.0]]


def test_a_static_run_ends_where_the_curves_say() -> None:
    world = draw_world(3, transfer=0.1, labels=uniform_labels(0.2), tokens=1e9)
    trace = follow(world, ControllerSettings(name="static"), tokens=1e9, interval=1e8, seed=3)
    read = world.planned * 1e9
    labels = 0.8 * np.eye(11) + 0.02 * (1 - np.eye(11))  # one page in five belongs to one of the ten other topics
    similar = world.worth @ np.linalg.inv(labels)
    assert np.diag(similar) == pytest.approx(np.ones(11))
    by_hand = []
    for i in range(11):
        effective = sum(world.worth[i, j] * read[j] for j in range(11))
        by_hand.append(world.floor[i] + world.reducible[i] * (1 + effective / world.scale[i]) ** -world.exponent[i])
    assert trace.final_loss == pytest.approx(sum(by_hand) / 11, rel=1e-9)
    assert trace.moved == 0.0


def test_a_controller_leaves_a_topic_that_is_already_learnt() -> None:
    """Two kinds of topic: ten that cannot get better, one that can. Equal PPL changes of 0 must not attract tokens."""
    base = draw_world(0, transfer=0.0, labels=uniform_labels(0.0), tokens=1e9)
    reducible = np.zeros(11)
    reducible[0] = 1.0
    world = World(
        base.floor, reducible, np.full(11, 0.5), np.full(11, 1e7), np.eye(11), np.full(11, 1 / 11), np.eye(11)
    )
    trace = follow(world, ControllerSettings(name="ado"), tokens=1e9, interval=5e7, seed=0)
    assert trace.ratios[-1][0] > 0.15 > 1 / 11  # ado goes where learning is fastest
    against = follow(world, ControllerSettings(name="syne"), tokens=1e9, interval=5e7, seed=0)
    assert against.ratios[-1][0] < 1 / 11  # the recipe's rule takes from what improves


def test_labels_of_a_measured_confusion() -> None:
    """Two topics with as many pages: 90 + 40 bear the first label, 10 + 60 the second."""
    labels = labels_of_confusion(np.array([[0.9, 0.1], [0.4, 0.6]]))
    assert labels == pytest.approx(np.array([[90 / 130, 10 / 70], [40 / 130, 60 / 70]]))
    # A perfect classifier changes nothing, and one that never gives the second label knows nothing of it.
    assert labels_of_confusion(np.eye(3)) == pytest.approx(np.eye(3))
    assert labels_of_confusion(np.array([[1.0, 0.0], [1.0, 0.0]])) == pytest.approx(np.full((2, 2), 0.5))


def test_a_controller_sees_the_mixed_losses_of_mislabelled_held_out_sets() -> None:
    """Labels that are swapped: a controller that goes where learning is fastest goes to the wrong label."""
    base = draw_world(0, transfer=0.0, labels=np.eye(2), tokens=1e9)
    swapped = np.array([[0.0, 1.0], [1.0, 0.0]])
    curves = (base.floor, np.array([1.0, 0.0]), np.full(2, 0.5), np.full(2, 1e7))
    even = np.full(2, 0.5)
    settings = ControllerSettings(name="ado")
    right = follow(World(*curves, np.eye(2), even, np.eye(2)), settings, tokens=1e9, interval=5e7, seed=0)
    mixed = follow(World(*curves, np.eye(2), even, swapped), settings, tokens=1e9, interval=5e7, seed=0)
    assert right.ratios[-1][0] > 0.5
    assert mixed.ratios[-1][0] < 0.5


def test_difference_and_report(tmp_path: Path) -> None:
    mean, low, high = difference([1.0, 2.0, 3.0], [0.9, 1.9, 2.9])
    assert mean == pytest.approx(0.1)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)
    shares = np.full((3, 2), 0.5)
    found = {"stratified": [Trace(shares, 1.0, 1.0, 0.0)] * 2, "syne": [Trace(shares, 1.5, 1.25, 0.01)] * 2}
    text = report(found)
    assert "Simulated curves, not measurements" in text
    assert "| syne | 1.5000 (+0.5000 [+0.5000, +0.5000]) | 1.2500 (+0.2500 [+0.2500, +0.2500]) | 0.0100 |" in text
    plot(found, tmp_path / "shares.png", interval=1e9)
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")
