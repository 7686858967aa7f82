"""What the first hand-worked cases leave equal: unequal plans, more than one decision, a gate that holds one topic."""

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data_mixers.control_guards import inside_noise
from data_mixers.control_rules import Signals, ado, learning_speed, normalised, velocitune
from data_mixers.control_settings import ControllerSettings
from data_mixers.controllers import Observation, TopicLosses, decide
from tests.data_mixers.validations import free, losses, run


def signals(topics: tuple[str, ...], **arrays: Any) -> Signals:
    """What a rule sees; what is not given is alike for all topics."""
    size = len(topics)
    names = ("shares", "planned", "ppl", "previous_ppl", "first_ppl", "recent_shares", "average_shares")
    even = {name: np.full(size, 1 / size) for name in names}
    given = {name: np.array(value) for name, value in arrays.items() if name in names}
    rest = {"histories": ((),) * size, "num_decisions": 0} | {k: v for k, v in arrays.items() if k not in names}
    return Signals(topics=topics, **(even | given), **rest)  # type: ignore[arg-type]


def test_a_change_beyond_a_doubling_counts_as_one() -> None:
    # 10 -> 30 and 10 -> 5: +2 is cut to +1, -0.5 stays; ln 3 = 1.0986 is cut, ln 0.5 stays
    now, before = np.array([30.0, 5.0]), np.array([10.0, 10.0])
    assert normalised("relative", now, before) == pytest.approx([1.0, -0.5])
    assert normalised("log_ppl", now, before) == pytest.approx([1.0, math.log(0.5)])


def test_exponentiated_gradient_takes_the_last_change_and_the_importance() -> None:
    # ln 12 - ln 11 for law, with importance 3 and eta 2: (12 / 11) ** 6; the first change, 10 -> 11, is in the shares
    plan = {"law": 0.5, "math": 0.5}
    controller = free("exponentiated_gradient", step_size=2.0, importance={"law": 3.0})
    checks = [{"law": 10.0, "math": 10.0}, {"law": 11.0, "math": 10.0}, {"law": 12.0, "math": 10.0}]
    odds = (11 / 10) ** 6 * (12 / 11) ** 6
    assert run(controller, plan, *checks).ratios["law"] == pytest.approx(odds / (1 + odds), abs=1e-7)


def test_ado_weighs_by_plan_and_by_what_was_read() -> None:
    # both at 2 + 1000 n ** -1/2, so speeds are equal: rho ~ mu_k sqrt(h_k (1 - h_k)) with mu and h as given
    history = tuple((n, 2 + 1000 / math.sqrt(n)) for n in (1_000_000, 2_000_000, 3_000_000))
    seen = signals(
        topics=("law", "math", "art"), histories=(history,) * 3, planned=(0.2, 0.5, 0.3), recent_shares=(0.1, 0.6, 0.3),
        average_shares=(0.3, 0.3, 0.4), num_decisions=3,
    )  # fmt: skip
    rho = [0.2 * math.sqrt(0.1 * 0.9), 0.5 * math.sqrt(0.6 * 0.4), 0.3 * math.sqrt(0.3 * 0.7)]
    rho = [value / sum(rho) for value in rho]
    proposal = ado(free("ado"), seen)
    assert proposal.wanted is not None and proposal.average_shares is not None
    expected = [0.9 * old + 0.1 * new for old, new in zip((0.3, 0.3, 0.4), rho, strict=True)]
    assert list(proposal.wanted) == pytest.approx(expected, abs=1e-9)
    mean = [(3 * old + new) / 4 for old, new in zip((0.3, 0.3, 0.4), rho, strict=True)]
    assert list(proposal.average_shares) == pytest.approx(mean, abs=1e-9)


def test_the_learning_speed_is_the_slope_in_nats_per_token() -> None:
    # L = 2 + 1000 n ** -1/2: -dL/dn = 500 n ** -3/2, at 3e6: 500 / 5.196e9
    history = tuple((n, 2 + 1000 / math.sqrt(n)) for n in (1_000_000, 2_000_000, 3_000_000))
    assert learning_speed(history) == pytest.approx(500 * 3e6**-1.5, rel=1e-6)


def test_velocitune_counts_a_target_above_the_start_as_reached() -> None:
    seen = signals(topics=("law", "math"), ppl=(math.exp(2), math.exp(2)), first_ppl=(math.exp(2), math.exp(2)))
    proposal = velocitune(free("velocitune", targets={"law": 2.5, "math": 1.0}), seen)
    assert proposal.wanted is not None
    assert proposal.wanted[1] / proposal.wanted[0] == pytest.approx(math.e)


def test_ado_remembers_shares_read_and_tokens_of_all_topics() -> None:
    controller = free("ado")
    plan = {"law": 0.25, "math": 0.75}

    def seen(consumed: int) -> Observation:  # a fifth was read of a topic that an earlier stage had
        tokens = {"law": consumed // 5, "math": consumed - 2 * (consumed // 5), "art": consumed // 5}
        return Observation(
            consumed_tokens=consumed, losses={"law": losses(9.0), "math": losses(8.0)}, tokens_by_topic=tokens
        )

    state = decide(controller, plan, None, seen(0)).state
    state = decide(controller, plan, state, seen(1000)).state
    for _, memory in state.topics:
        assert [tokens for tokens, _ in memory.history] == [1000]  # of all topics; none before training began
    moved = decide(controller, {"law": 0.25, "math": 0.75}, state, seen(2000)).state
    assert dict(moved.recent)["law"] == pytest.approx(0.25)
    # a moving average of what was in force: 0.9 of the old, 0.1 of the new
    before = replace(moved, recent=(("law", 0.5), ("math", 0.5)))
    after = decide(controller, plan, before, seen(3000)).state
    assert dict(after.recent) == pytest.approx({"law": 0.475, "math": 0.525})


def test_the_moving_average_gives_the_new_value_its_weight() -> None:
    # ema 0.2 on nats: ln 10 + 0.2 * ln 1.5; log_ppl makes the factor plain
    controller = free("syne", ema=0.2, normaliser="log_ppl")
    decision = run(controller, {"law": 0.5, "math": 0.5}, {"law": 10, "math": 10}, {"law": 15, "math": 10})
    factor = 1 + 0.3 * 0.2 * math.log(1.5)
    assert decision.ratios["law"] == pytest.approx(factor / (factor + 1), abs=1e-7)


def test_a_change_inside_its_noise_is_none_to_the_rule() -> None:
    # law +20 % in every document; math's documents move by +-5 % and +0.1 % on the whole: delta is 1 and exactly 0
    tokens = (100,) * 10
    wobble = [0.05, -0.05] * 5

    def seen(consumed: int, law: float, math_noise: float) -> Observation:
        law_losses = TopicLosses(nll_sums=(100 * (2 + law),) * 10, tokens=tokens)
        math_losses = TopicLosses(
            nll_sums=tuple(100 * (2 + math_noise * w + (0.001 if math_noise else 0)) for w in wobble), tokens=tokens
        )
        return Observation(
            consumed_tokens=consumed, losses={"law": law_losses, "math": math_losses}, tokens_by_topic={}
        )

    controller = free("syne", noise_level=0.95)
    first = decide(controller, {"law": 0.5, "math": 0.5}, None, seen(0, 0, 0))
    second = decide(controller, first.ratios, first.state, seen(1, 0.2, 1))
    assert "math: change of PPL inside its noise" in second.notes
    assert second.ratios["law"] == pytest.approx(1.3 / 2.3, abs=1e-12)


@pytest.mark.parametrize(("ppl", "bound"), [(1.5, 1.25), (0.7, 0.75)])
def test_floor_and_ceiling_are_factors_of_the_plan_however_often_a_topic_moves(ppl: float, bound: float) -> None:
    controller = ControllerSettings(
        name="syne", floor=0.75, ceiling=1.25, max_shift=1.0, ema=1.0, noise_level=0.0, alpha=0.9
    )
    checks = [{"law": 10.0 * ppl**step, "math": 10.0, "art": 10.0} for step in range(5)]
    plan = {"law": 0.2, "math": 0.4, "art": 0.4}
    assert run(controller, plan, *checks).ratios["law"] == pytest.approx(bound * 0.2, abs=1e-12)


def slowly_inside(before: list[float], now: list[float], tokens: list[int], *, level: float) -> bool:
    """The bootstrap-t interval by its definition, document by document, with another generator."""

    def estimate(rows: list[tuple[float, int]]) -> tuple[float, float]:
        total = sum(size for _, size in rows)
        value = sum(change for change, _ in rows) / total
        squares = sum((change - value * size) ** 2 for change, size in rows)
        return value, math.sqrt(len(rows) / (len(rows) - 1) * squares) / total

    rows = [(b - a, size) for a, b, size in zip(before, now, tokens, strict=True)]
    value, error = estimate(rows)
    draw = random.Random(3)
    scores = []
    for _ in range(2000):
        resample = [draw.choice(rows) for _ in rows]
        other, its_error = estimate(resample)
        if its_error > 0:
            scores.append((other - value) / its_error)
        else:
            scores.append(math.copysign(math.inf, other - value))
    scores.sort()
    low = scores[int((1 - level) / 2 * len(scores))]
    high = scores[int((1 + level) / 2 * len(scores)) - 1]
    return value - high * error <= 0 <= value - low * error


def skewed(shift: float, sign: int) -> tuple[list[float], list[float], list[int]]:
    """Thirty documents whose changes have a long tail to one side round `shift`."""
    rng = np.random.default_rng(4)
    tokens = [100] * 30
    tail = rng.exponential(1.0, 30) ** 2
    change = sign * (tail - tail.mean()) * 0.05 + shift
    return [200.0] * 30, [200 + 100 * value for value in change.tolist()], tokens


def test_the_gate_is_the_interval_of_its_definition_also_for_one_sided_tails() -> None:
    verdicts = []
    for sign in (1, -1):
        for step in range(-8, 9):
            before, now, tokens = skewed(0.01 * step, sign)
            slow = slowly_inside(before, now, tokens, level=0.9)
            fast = inside_noise(before, now, tokens, level=0.9, samples=2000, seed=(1,))
            verdicts.append((sign, step, slow, fast))
    differing = [row for row in verdicts if row[2] != row[3]]
    assert len(differing) <= 2, differing  # two random generators, where an end of the interval lies at 0
    assert {row[2] for row in verdicts} == {True, False}
    inside = {sign: [step for s, step, slow, _ in verdicts if s == sign and slow] for sign in (1, -1)}
    assert inside[1] == sorted(-step for step in inside[-1])  # mirrored, and not its own mirror image:
    assert inside[1] != inside[-1]
