"""Laws of every topic controller: sums, order, resumption, what is missing; and what is refused."""

import json
import math
from dataclasses import asdict
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mixers.control_rules import CONTROLLERS
from data_mixers.control_settings import ControllerName, ControllerSettings
from data_mixers.controllers import ControllerState, Observation, TopicLosses, decide
from data_mixers.errors import ConfigError, DataError
from data_mixers.strict_json import parse
from tests.data_mixers.validations import ELEVEN, PPL, free, losses, observation, run

HISTORY = st.lists(
    st.lists(st.one_of(PPL, st.just(math.nan), st.none()), min_size=4, max_size=4), min_size=2, max_size=7
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(CONTROLLERS)), HISTORY, st.lists(st.integers(0, 20), min_size=4, max_size=4))
def test_shares_sum_to_one_inside_bounds_and_shift_and_without_a_ppl_stay(
    name: str, history: list[list[float | None]], parts: list[int]
) -> None:
    if not sum(parts):
        parts = [1, 1, 1, 1]
    controller = (
        ControllerSettings(name=name, floor=0.5, ceiling=1.5, bootstrap_samples=100)
        if name != "syne_paper"
        else (ControllerSettings(name=name))
    )
    topics = ELEVEN[:4]
    plan = {topic: part / sum(parts) for topic, part in zip(topics, parts, strict=True)}
    ratios, state = plan, None
    for index, row in enumerate(history):
        ppl = {topic: value for topic, value in zip(topics, row, strict=True) if value is not None}
        decision = decide(controller, ratios, state, observation(ppl, index * 1000))
        assert list(decision.ratios) == list(ratios)
        assert math.fsum(decision.ratios.values()) == pytest.approx(1, abs=1e-12)
        shift = sum(abs(decision.ratios[topic] - ratios[topic]) for topic in topics) / 2
        for topic in topics:
            if math.isnan(ppl.get(topic, math.nan)):
                assert decision.ratios[topic] == ratios[topic]
                assert any(note.startswith(f"{topic}: PPL ") and "not moved" in note for note in decision.notes)
            if name not in ("syne_paper", "stratified"):
                assert 0.5 * plan[topic] - 1e-12 <= decision.ratios[topic] <= 1.5 * plan[topic] + 1e-12
        if name != "syne_paper":
            assert shift <= controller.max_shift + 1e-12
        if state is None:
            assert decision.ratios == ratios
        ratios, state = decision.ratios, decision.state


@pytest.mark.parametrize("name", sorted(CONTROLLERS))
def test_the_order_of_topics_plays_no_part(name: str) -> None:
    rng = np.random.default_rng(7)
    checks = [dict(zip(ELEVEN, rng.uniform(5, 30, 11).tolist(), strict=True)) for _ in range(6)]
    plan = dict(zip(ELEVEN, rng.dirichlet([5.0] * 11).tolist(), strict=True))
    turned = [dict(reversed(check.items())) for check in checks]
    one = run(ControllerSettings(name=name), plan, *checks)
    other = run(ControllerSettings(name=name), dict(reversed(plan.items())), *turned)
    assert one.ratios == other.ratios  # to the bit
    assert list(other.ratios) == list(reversed(plan))
    assert one.state == other.state


def read_back(text: str) -> ControllerState:
    """As a checkpoint is read."""
    return parse(ControllerState, json.loads(text), where="controller_state", fault=DataError)


@pytest.mark.parametrize("name", sorted(CONTROLLERS))
def test_a_state_through_json_decides_alike(name: str) -> None:
    rng = np.random.default_rng(3)
    topics = ELEVEN[:4]
    ratios, state = dict.fromkeys(topics, 0.25), None
    resumed: ControllerState | None = None
    resumed_ratios = ratios
    for index in range(7):
        ppl = dict(zip(topics, (rng.uniform(9, 11, 4) - 0.3 * index).tolist(), strict=True))
        if index == 3:
            del ppl[topics[1]]
        seen = observation(ppl, index * 1000)
        if index >= 3:
            assert resumed is not None
            text = json.dumps(asdict(resumed), allow_nan=False)
            again = decide(ControllerSettings(name=name), resumed_ratios, read_back(text), seen)
        decision = decide(ControllerSettings(name=name), ratios, state, seen)
        ratios, state = decision.ratios, decision.state
        if index >= 3:
            assert again == decision
        resumed, resumed_ratios = state, ratios


def test_a_damaged_state_names_the_key() -> None:
    content = asdict(run(ControllerSettings(name="syne"), {"law": 1.0}, {"law": 3.0}).state)
    with pytest.raises(DataError, match=r"missing key controller_state\.planned"):
        read_back(json.dumps({key: value for key, value in content.items() if key != "planned"}))
    with pytest.raises(DataError, match=r"unknown key controller_state\.colour"):
        read_back(json.dumps(content | {"colour": 1}))


def test_a_topic_the_plan_does_not_read_is_never_brought_in() -> None:
    for name in CONTROLLERS:
        decision = run(ControllerSettings(name=name), {"law": 0.5, "math": 0.5, "art": 0.0},
                       *[{"law": 9, "math": 8 - i, "art": 10 + i} for i in range(5)])  # fmt: skip
        assert decision.ratios["art"] == 0.0


def test_a_topic_back_after_a_gap_compares_with_its_last_ppl() -> None:
    first = {"law": 10.0, "math": 10.0, "art": 10.0}
    decision = run(ControllerSettings(name="syne_paper"), dict.fromkeys(first, 1 / 3),
                   first, {"math": 10.0, "art": 10.0}, {"law": 11.0, "math": 10.0, "art": 9.0})  # fmt: skip
    # law +1 since the first check, art -1: f = 1.15, 1, 0.85, which sum to 3
    assert decision.ratios == pytest.approx({"law": 1.15 / 3, "math": 1 / 3, "art": 0.85 / 3}, abs=1e-12)


def test_other_held_out_documents_are_not_compared() -> None:
    decision = run(ControllerSettings(name="syne_paper"), {"law": 0.5, "math": 0.5}, {"law": 10, "math": 10})
    changed = Observation(
        consumed_tokens=9,
        losses={"law": TopicLosses(nll_sums=(30.0,), tokens=(10,)), "math": losses(9)},
        tokens_by_topic={},
    )
    after = decide(ControllerSettings(name="syne_paper"), decision.ratios, decision.state, changed)
    assert after.ratios == decision.ratios
    assert "law: held-out documents changed, not moved" in after.notes


def test_ratios_set_from_outside_become_the_plan() -> None:
    controller = free("syne", ceiling=1.1, alpha=0.9)
    decision = run(controller, {"law": 0.2, "math": 0.8}, {"law": 10, "math": 10}, {"law": 12, "math": 10})
    assert decision.ratios["law"] == pytest.approx(0.22)  # 1.1 times the plan
    stage_2 = decide(controller, {"law": 0.5, "math": 0.5}, decision.state, observation({"law": 15, "math": 10}))
    assert stage_2.ratios["law"] == pytest.approx(0.55)
    assert "the ratios differ from the last decision: they are the plan now" in stage_2.notes


def test_the_others_trade_while_a_topic_has_ended_and_it_comes_back_with_its_share_and_its_plan() -> None:
    """law has half, so the others may move half of max_shift: 0.02 of all, which is 0.04 of what is read."""
    controller = free("syne", ceiling=1.1, alpha=0.9, max_shift=0.04)
    plan = {"law": 0.5, "math": 0.3, "art": 0.2}
    start = decide(controller, plan, None, observation(dict.fromkeys(plan, 10)))
    seen = observation({"law": 99, "math": 14, "art": 10}, 1000)
    ended = decide(controller, start.ratios, start.state, seen, ended={"law"})
    assert ended.ratios == pytest.approx({"law": 0.5, "math": 0.32, "art": 0.18})
    assert "law: its text has ended for now, not moved" in ended.notes
    assert dict(ended.state.topics)["law"] == dict(start.state.topics)["law"]
    back = decide(controller, ended.ratios, ended.state, observation({"law": 10, "math": 30, "art": 10}, 2000))
    assert back.ratios["math"] == pytest.approx(0.33)  # 1.1 times its plan, as if law had not been away
    assert dict(back.state.planned) == plan


def test_ppl_is_rounded_before_use() -> None:
    still = {"law": 10.0, "math": 10.0}
    decision = run(
        ControllerSettings(name="syne_paper"), {"law": 0.5, "math": 0.5}, still, still | {"law": 10.0 + 4e-7}
    )
    assert decision.ratios == {"law": 0.5, "math": 0.5}


def test_every_name_has_a_rule() -> None:
    assert set(CONTROLLERS) == set(get_args(ControllerName))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alpha", 1.0), ("alpha", 0.0), ("alpha", -0.1), ("alpha", math.nan), ("alpha", "0.3"),
        ("importance", {"law": -1.0}), ("importance", {"law": math.nan}), ("importance", 2.0),
        ("normaliser", "softmax"),
        ("floor", -0.1), ("floor", 1.1), ("ceiling", 0.9), ("ceiling", math.nan), ("max_shift", 0.0),
        ("max_shift", 1.5), ("ema", 0.0), ("ema", 1.1), ("noise_level", 1.0), ("noise_level", -0.1),
        ("bootstrap_samples", 10), ("bootstrap_samples", 200.5), ("bootstrap_samples", 10**9), ("seed", -1),
        ("step_size", 0.0), ("step_size", math.inf), ("target_drop", 0.0), ("targets", {"law": "low"}),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^mixture\.settings\.{key}"):
        ControllerSettings(**{"name": "syne", key: value})  # type: ignore[arg-type]


def test_an_unknown_controller_is_refused_by_the_key_that_the_run_file_has() -> None:
    with pytest.raises(ConfigError, match=r"^mixture\.controller='sine' is unknown"):
        ControllerSettings(name="sine")


def test_an_alpha_that_could_turn_a_factor_negative_is_refused_with_importance() -> None:
    ControllerSettings(name="syne", alpha=0.49, importance={"law": 2.0})
    with pytest.raises(ConfigError, match=r"mixture\.settings\.alpha=0\.5 .* use mixture\.settings\.alpha below 0\.5"):
        ControllerSettings(name="syne", alpha=0.5, importance={"law": 2.0})


@pytest.mark.parametrize(("key", "value"), [("floor", 0.5), ("ema", 0.9), ("noise_level", 0.9), ("max_shift", 0.1)])
def test_the_published_rule_refuses_guards(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^mixture\.settings\.{key}.*syne_paper"):
        ControllerSettings(name="syne_paper", **{key: value})  # type: ignore[arg-type]


def test_bad_ratios_and_losses_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sum to 0\.9"):
        decide(ControllerSettings(), {"law": 0.5, "math": 0.4}, None, observation({}))
    with pytest.raises(ConfigError, match="topic law is nan"):
        decide(ControllerSettings(), {"law": math.nan, "math": 1.0}, None, observation({}))
    with pytest.raises(DataError, match="2 documents with token counts of 1"):
        TopicLosses(nll_sums=(1.0, 2.0), tokens=(3,))


@pytest.mark.parametrize(("nats", "is_finite"), [(699.9, True), (700.0, False), (700.5, False)])
def test_an_absurd_loss_is_no_ppl(nats: float, is_finite: bool) -> None:
    assert math.isfinite(TopicLosses(nll_sums=(2 * nats,), tokens=(2,)).ppl) == is_finite
