"""The simulation against what can be worked out without it."""

from pathlib import Path

import numpy as np
import pytest

from data_mixers.controllers import ControllerSettings
from tools.mix_simulate import Trace, World, difference, draw_world, follow, plot, report


def test_a_static_run_ends_where_the_curves_say() -> None:
    world = draw_world(3, transfer=0.1, label_noise=0.2, tokens=1e9)
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
    base = draw_world(0, transfer=0.0, label_noise=0.0, tokens=1e9)
    reducible = np.zeros(11)
    reducible[0] = 1.0
    world = World(base.floor, reducible, np.full(11, 0.5), np.full(11, 1e7), np.eye(11), np.full(11, 1 / 11))
    trace = follow(world, ControllerSettings(name="ado"), tokens=1e9, interval=5e7, seed=0)
    assert trace.ratios[-1][0] > 0.15 > 1 / 11  # ado goes where learning is fastest
    against = follow(world, ControllerSettings(name="syne"), tokens=1e9, interval=5e7, seed=0)
    assert against.ratios[-1][0] < 1 / 11  # the recipe's rule takes from what improves


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
