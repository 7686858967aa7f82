"""Controllers: the published rule by hand, guards, missing losses, memory."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mixers.controllers import (
    CONTROLLERS,
    ControllerSettings,
    ControllerState,
    Decision,
    Observation,
    TopicLosses,
    decide,
)
from data_mixers.errors import ConfigError

PAPER = ControllerSettings(name="syne_paper")


def seen(ppl: dict[str, float], *, tokens: int = 0) -> Observation:
    """One document of 1,000 tokens per topic with exactly this PPL."""
    losses = {topic: TopicLosses(nll_sums=(1000 * math.log(value),), tokens=(1000,)) for topic, value in ppl.items()}
    return Observation(consumed_tokens=tokens, losses=losses, tokens_by_topic=dict.fromkeys(ppl, tokens))


def after(
    controller: ControllerSettings, ratios: dict[str, float], *ppls: dict[str, float], step: int = 1000
) -> list[Decision]:
    """Decisions at the second, third ... of these validations."""
    state, decisions, planned = None, [], ratios
    for number, ppl in enumerate(ppls):
        decision = decide(controller, ratios, state, seen(ppl, tokens=number * step))
        ratios, state = decision.ratios, decision.state
        decisions.append(decision)
    assert decisions[0].ratios == planned  # the first validation moves nothing
    return decisions[1:]


def test_the_published_rule_for_two_topics() -> None:
    """PPL 10 -> 11 and 20 -> 19: changes 1 and -1, delta 1/2 and -1/2, factors 1.15 and 0.85 (alpha 0.3)."""
    (decision,) = after(PAPER, {"law": 0.5, "food": 0.5}, {"law": 10, "food": 20}, {"law": 11, "food": 19})
    assert decision.ratios == pytest.approx({"law": 0.575, "food": 0.425}, abs=1e-6)  # PPL is rounded to 1e-6


def test_the_published_rule_with_unequal_shares_and_importance() -> None:
    """Changes 2, -1, -1: delta 1/2, -1/4, -1/4; f = 1 + 0.3 * 1/2 * 2 = 1.3, 1 - 0.075 = 0.925 twice.

    0.2 * 1.3 = 0.26, 0.3 * 0.925 = 0.2775, 0.5 * 0.925 = 0.4625; their sum is exactly 1.
    """
    controller = ControllerSettings(name="syne_paper", importance={"law": 2.0})
    ratios = {"law": 0.2, "food": 0.3, "music": 0.5}
    before, now = {"law": 10, "food": 10, "music": 10}, {"law": 12, "food": 9, "music": 9}
    (decision,) = after(controller, ratios, before, now)
    assert decision.ratios == pytest.approx({"law": 0.26, "food": 0.2775, "music": 0.4625}, abs=1e-6)


def test_the_published_rule_for_eleven_topics_against_fractions() -> None:
    topics = [f"t{i:02d}" for i in range(11)]
    before = {topic: 10 + i for i, topic in enumerate(topics)}
    change = {topic: Fraction(i - 4, 4) for i, topic in enumerate(topics)}  # -1 .. 1.5: up for the last six
    now = {topic: float(before[topic] + change[topic]) for topic in topics}
    total = sum(abs(value) for value in change.values())
    factors = {topic: 1 + Fraction(3, 10) * change[topic] / total for topic in topics}
    expected = {topic: float(factors[topic] / sum(factors.values())) for topic in topics}
    (decision,) = after(PAPER, dict.fromkeys(topics, 1 / 11), before, now)
    assert decision.ratios == pytest.approx(expected, abs=1e-6)
    assert decision.ratios["t10"] > 1 / 11 > decision.ratios["t00"]  # Figure 1: what rose gets more


ppls = st.lists(st.floats(2.0, 50.0), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(ppls, ppls, st.sampled_from(sorted(CONTROLLERS)), st.permutations(["law", "food", "music"]))
def test_laws_of_every_controller(first: list[float], second: list[float], name: str, order: list[str]) -> None:
    topics = ["law", "food", "music"]
    ratios = {"law": 0.5, "food": 0.3, "music": 0.2}
    controller = ControllerSettings(name=name)
    before, now = dict(zip(topics, first, strict=True)), dict(zip(topics, second, strict=True))
    (decision,) = after(controller, ratios, before, now)
    assert abs(sum(decision.ratios.values()) - 1) <= 1e-12
    assert all(share > 0 for share in decision.ratios.values())
    if name != "syne_paper":
        assert sum(abs(decision.ratios[t] - ratios[t]) for t in topics) / 2 <= 0.03 + 1e-12
        if name != "stratified":
            assert all(0.25 * ratios[t] - 1e-12 <= decision.ratios[t] <= 4 * ratios[t] + 1e-12 for t in topics)
    shuffled = {topic: ratios[topic] for topic in order}
    (again,) = after(controller, shuffled, {t: before[t] for t in order}, {t: now[t] for t in reversed(order)})
    assert again.ratios == decision.ratios


@settings(max_examples=60, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(0.01, 0.5))
def test_more_change_more_share(change: float, more: float) -> None:
    """Under `relative`, where a topic's change does not scale the others'."""
    controller = ControllerSettings(name="syne_paper", normaliser="relative")
    ratios, before = {"law": 0.5, "food": 0.5}, {"law": 10.0, "food": 10.0}
    low, high = (
        after(controller, ratios, before, {"law": 10 * (1 + value), "food": 10.0})[0].ratios["law"]
        for value in (change, change + more)
    )
    assert high > low


def test_a_topic_without_a_loss_keeps_its_share_to_the_bit_and_the_note_says_so() -> None:
    ratios = {"law": 0.5, "food": 0.3, "music": 0.2}
    start = {"law": 10.0, "food": 10.0, "music": 10.0}
    state = decide(PAPER, ratios, None, seen(start)).state
    missing = decide(PAPER, ratios, state, seen({"law": 12.0, "food": 9.0}))
    assert missing.ratios["music"] == 0.2
    assert missing.ratios["law"] > 0.5
    assert any("music" in note for note in missing.notes)
    broken = seen({"law": 12.0, "food": 9.0, "music": 10.0})
    broken = Observation(
        consumed_tokens=0,
        losses={**broken.losses, "music": TopicLosses(nll_sums=(math.nan,), tokens=(10,))},
        tokens_by_topic={},
    )
    decision = decide(PAPER, ratios, state, broken)
    assert decision.ratios == missing.ratios
    assert any("music" in note for note in decision.notes)


def noisy(random: np.random.Generator, truth: dict[str, float], base: dict[str, np.ndarray]) -> Observation:
    """200 documents per topic: each with its own level, plus fresh noise, plus the true change of the topic."""
    losses = {
        topic: TopicLosses(
            nll_sums=tuple(float(v) for v in 100 * (base[topic] + change + random.normal(0, 0.02, 200))),
            tokens=(100,) * 200,
        )
        for topic, change in truth.items()
    }
    return Observation(consumed_tokens=int(random.integers(1 << 30)), losses=losses, tokens_by_topic={})


def test_the_gate_holds_noise_back_and_lets_change_through() -> None:
    controller = ControllerSettings(name="syne", ema=1.0, noise_level=0.95, bootstrap_samples=300)
    ratios = {"law": 0.5, "food": 0.5}
    random = np.random.default_rng(0)
    moved, trials = 0, 60
    for _ in range(trials):
        base = {topic: random.normal(2.5, 0.3, 200) for topic in ratios}
        still = dict.fromkeys(ratios, 0.0)
        state = decide(controller, ratios, None, noisy(random, still, base)).state
        moved += decide(controller, ratios, state, noisy(random, still, base)).ratios != ratios
        rising = decide(controller, ratios, state, noisy(random, {"law": 0.02, "food": 0.0}, base))
        assert rising.ratios["law"] > 0.5  # ten standard errors (0.02 * sqrt(2 / 200) = 0.002)
    # Either of two topics leaves a 95 % interval in 1 - 0.95**2 = 10 % of trials: 6 of 60, three deviations are 13.
    assert moved <= 13


def test_what_is_remembered_survives_json() -> None:
    random = np.random.default_rng(1)
    for name in CONTROLLERS:
        controller = ControllerSettings(name=name)
        ratios = {"law": 0.5, "food": 0.5}
        kept: ControllerState | None = None
        through_json: ControllerState | None = None
        for number in range(6):
            observation = seen(dict(zip(ratios, random.uniform(5, 20, 2).tolist(), strict=True)), tokens=number * 1000)
            one, two = (
                decide(controller, ratios, kept, observation),
                decide(controller, ratios, through_json, observation),
            )
            assert one == two
            kept, ratios = one.state, one.ratios
            through_json = ControllerState.from_dict(json.loads(json.dumps(two.state.to_dict())))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": "syne", "alpha": 1.0}, "alpha"),
        ({"name": "syne", "alpha": 0.5, "importance": {"law": 2.0}}, "alpha"),
        ({"name": "syne", "floor": 1.5}, "floor"),
        ({"name": "syne", "ceiling": 0.5}, "ceiling"),
        ({"name": "syne", "max_shift": 0.0}, "max_shift"),
        ({"name": "syne_paper", "max_shift": 0.01}, "max_shift"),
        ({"name": "sine"}, "name"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ControllerSettings(**fields)  # type: ignore[arg-type]


def test_static_stays_and_stratified_heads_for_equal_shares() -> None:
    ratios, flat, risen = {"law": 0.8, "food": 0.2}, {"law": 10.0, "food": 10.0}, {"law": 20.0, "food": 5.0}
    assert after(ControllerSettings(name="static"), ratios, flat, risen)[0].ratios == ratios
    (decision,) = after(ControllerSettings(name="stratified"), ratios, flat, risen)
    assert decision.ratios == pytest.approx({"law": 0.77, "food": 0.23})  # max_shift 0.03 towards 0.5


def test_exponentiated_gradient_by_hand() -> None:
    """ln PPL of law up by ln 1.1, eta 1: 0.5 * 1.1 against 0.5 * 1: 1.1 / 2.1."""
    controller = ControllerSettings(
        name="exponentiated_gradient", step_size=1.0, ema=1.0, noise_level=0.0, max_shift=1.0
    )
    (decision,) = after(controller, {"law": 0.5, "food": 0.5}, {"law": 10.0, "food": 10.0}, {"law": 11.0, "food": 10.0})
    assert decision.ratios["law"] == pytest.approx(1.1 / 2.1, abs=1e-6)


def test_velocitune_gives_more_to_what_is_further_from_its_target() -> None:
    """Targets 0.1 nats below the start: law has all of the way left, V = 1; food has half, V = 1/2."""
    controller = ControllerSettings(name="velocitune", ema=1.0, noise_level=0.0, max_shift=1.0)
    start = {"law": 10.0, "food": 10.0}
    (decision,) = after(controller, {"law": 0.5, "food": 0.5}, start, {"law": 10.0, "food": 10.0 * math.exp(-0.05)})
    assert decision.ratios["law"] == pytest.approx(math.e / (math.e + math.exp(0.5)), abs=1e-5)


def test_ado_gives_more_to_what_learns_faster() -> None:
    """Held-out loss 2 + c n^-0.5 with c twice as large for law; the prior and the credit are equal."""
    controller = ControllerSettings(name="ado", ema=1.0, noise_level=0.0, max_shift=1.0)
    points = [{"law": 10.0, "food": 10.0}]
    points += [{"law": math.exp(2 + 2 * n**-0.5), "food": math.exp(2 + n**-0.5)} for n in (1, 2, 3, 4)]
    decisions = after(controller, {"law": 0.5, "food": 0.5}, *points)
    assert decisions[1].ratios == {"law": 0.5, "food": 0.5}  # two points after the start: too few for three parameters
    assert decisions[-1].ratios["law"] > 0.51
