"""The guards round a controller's rule: the noise gate, the moving average, the limits, and topics held back."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mixers.control_guards import inside_noise, limited
from data_mixers.control_settings import ControllerSettings
from data_mixers.controllers import Observation, TopicLosses, decide, without_rises
from tests.data_mixers.validations import ELEVEN, free, run


@pytest.mark.parametrize("num_documents", [8, 60])
def test_the_gate_lets_through_the_promised_share_of_noise(num_documents: int) -> None:
    rng = np.random.default_rng(11)
    trials, moved = 1500, 0
    for trial in range(trials):
        tokens = rng.integers(50, 2000, num_documents)
        before = 2.5 * tokens
        now = before + rng.normal(0, 0.05, num_documents) * tokens  # every document changes, their law does not
        moved += not inside_noise(
            before.tolist(), now.tolist(), tokens.tolist(), level=0.9, samples=300, seed=(0, trial)
        )
    # binomial standard error 0.008; 8 documents of very different length cannot do better than some points
    assert moved / trials == pytest.approx(0.1, abs=0.05 if num_documents == 8 else 0.03)


def test_the_gate_holds_noise_and_passes_a_change() -> None:
    rng = np.random.default_rng(5)
    tokens = rng.integers(200, 1000, 40)
    controller = ControllerSettings(name="syne", ema=1.0)

    def seen(consumed: int, law: float, math_change: float) -> Observation:
        def noisy(change: float) -> TopicLosses:
            nll = (2.5 + change + rng.normal(0, 0.02, 40)) * tokens
            return TopicLosses(nll_sums=tuple(nll.tolist()), tokens=tuple(tokens.tolist()))

        topics = {"law": noisy(law), "math": noisy(math_change)}
        return Observation(consumed_tokens=consumed, losses=topics, tokens_by_topic={})

    start = decide(controller, {"law": 0.5, "math": 0.5}, None, seen(0, 0, 0))
    held = decide(controller, start.ratios, start.state, seen(1, 0, 0))
    assert held.ratios == start.ratios
    assert set(held.notes) == {f"{topic}: change of PPL inside its noise" for topic in ("law", "math")}
    passed = decide(controller, held.ratios, held.state, seen(2, 0.05, 0))
    assert passed.ratios["law"] > 0.5


def test_a_slow_drift_adds_up_until_it_leaves_the_noise() -> None:
    # documents move by 0.01 on the whole with +-0.04 between them: no single step stands out, their sum does
    tokens = tuple([100] * 8)
    wobble = [0.04, -0.04, 0.03, -0.03, 0.02, -0.02, 0.04, -0.04]

    def seen(step: int) -> Observation:
        nll = tuple(100 * (2.0 + 0.01 * step + wobble[(index + step) % 8]) for index in range(8))
        steady = TopicLosses(nll_sums=tuple([200.0] * 8), tokens=tokens)
        return Observation(
            consumed_tokens=step, losses={"law": TopicLosses(nll_sums=nll, tokens=tokens), "math": steady},
            tokens_by_topic={},
        )  # fmt: skip

    controller = ControllerSettings(name="syne", ema=1.0)
    decision = decide(controller, {"law": 0.5, "math": 0.5}, None, seen(0))
    gains = []
    for step in range(1, 9):
        decision = decide(controller, decision.ratios, decision.state, seen(step))
        gains.append(decision.ratios["law"])
    assert gains[0] == 0.5
    assert gains[-1] > 0.5


def test_one_document_has_no_interval_and_a_common_change_has_no_noise() -> None:
    assert inside_noise([5.0], [9.0], [4], level=0.95, samples=100, seed=(0,))
    assert not inside_noise([5.0, 7.0], [5.4, 7.6], [4, 6], level=0.95, samples=100, seed=(0,))
    assert inside_noise([5.0, 7.0], [5.0, 7.0], [4, 6], level=0.95, samples=100, seed=(0,))


def test_the_moving_average_halves_a_jump() -> None:
    # ema 1/2 on nats: law ln 10 -> ln 10.24 counts as sqrt(10 * 10.24) = 10.119..; log_ppl makes the factor plain
    controller = free("syne", ema=0.5, normaliser="log_ppl")
    decision = run(controller, {"law": 0.5, "math": 0.5}, {"law": 10, "math": 10}, {"law": 10.24, "math": 10})
    factor = 1 + 0.3 * math.log(1.024) / 2
    assert decision.ratios["law"] == pytest.approx(factor / (factor + 1), abs=1e-7)  # PPL has 6 decimals


def test_limits_by_hand() -> None:
    current = np.array([0.5, 0.3, 0.2])
    # wanted 0.1 : 0.6 : 0.3; the first may not go under 0.25, so 0.75 is left for 0.6 : 0.3 = 0.5 and 0.25
    reached = limited(np.array([1.0, 6.0, 3.0]), current, low=current / 2, high=current * 3, max_shift=1.0)
    assert reached == pytest.approx([0.25, 0.5, 0.25], abs=1e-12)
    # that shift is 0.25; a fifth of the way is 0.05
    reached = limited(np.array([1.0, 6.0, 3.0]), current, low=current / 2, high=current * 3, max_shift=0.05)
    assert reached == pytest.approx([0.45, 0.34, 0.21], abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e-6, 1), st.floats(1e-9, 1e9)), min_size=2, max_size=30),
    st.floats(0, 1), st.floats(1, 50), st.floats(0.001, 1),
)  # fmt: skip
def test_limits_hold_all_three(pairs: list[tuple[float, float]], floor: float, ceiling: float, shift: float) -> None:
    current = np.array([pair[0] for pair in pairs])
    current /= current.sum()
    low, high = floor * current, np.minimum(ceiling * current, 1.0)
    reached = limited(np.array([pair[1] for pair in pairs]), current, low=low, high=high, max_shift=shift)
    assert reached.sum() == pytest.approx(1, abs=1e-12)
    assert np.all(reached >= low - 1e-12) and np.all(reached <= high + 1e-12)
    assert np.abs(reached - current).sum() / 2 <= shift + 1e-12


def test_a_held_topic_stays_and_the_others_fall_by_so_much_less_by_hand() -> None:
    # changes +2, +1, -1 and -2, shares 1/4 each: delta 1/3, 1/6, -1/6, -1/3, alpha 0.6: factors 1.2, 1.1, 0.9, 0.8,
    # shares 0.3, 0.275, 0.225, 0.2. Without the first rise (0.05 of 0.075) a third of the fall is left.
    before = dict.fromkeys(ELEVEN[:4], 0.25)
    first, second = dict.fromkeys(before, 100.0), dict(zip(before, (102.0, 101.0, 99.0, 98.0), strict=True))
    decision = run(ControllerSettings(name="syne_paper", alpha=0.6), before, first, second)
    assert list(decision.ratios.values()) == pytest.approx([0.3, 0.275, 0.225, 0.2])
    held = without_rises(decision, before, {ELEVEN[0], ELEVEN[3]}, "too little text")  # the last does not rise anyway
    expected = [0.25, 0.275, 0.25 - 0.025 / 3, 0.25 - 0.05 / 3]
    assert list(held.ratios.values()) == pytest.approx(expected, abs=1e-12)
    assert held.state.ratios == tuple(sorted(held.ratios.items()))
    assert held.notes == (*decision.notes, "topic 0: its share stays at 0.2500: too little text")
    assert without_rises(decision, before, {ELEVEN[3]}, "") == decision
    assert without_rises(decision, before, set(before), "").ratios == before
