"""Composing plan and decisions: what a decision may change, and what it may not."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mixers.errors import ConfigError
from data_mixers.mixture import PlannedPhase, Reweight, compose, ratios_at, topic_ratios
from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule
from tests.data_mixers.orders import addresses, index_of
from tests.data_mixers.test_curriculum import entry

ENTRIES = {
    e.name: e for e in [entry("law", 0), entry("law", 1), entry("food", 0), entry("general", None, language="en")]
}
LAW_0, LAW_1, FOOD, ENGLISH = ENTRIES
WEIGHTS = {LAW_0: Fraction(1, 10), LAW_1: Fraction(2, 10), FOOD: Fraction(1, 10), ENGLISH: Fraction(6, 10)}
PLAN = [
    PlannedPhase(name="one", stage="one", num_samples=300, weights=WEIGHTS),
    PlannedPhase(name="two", stage="two", num_samples=200, weights=WEIGHTS),
]


def composed(*reweights: Reweight, plan: list[PlannedPhase] = PLAN) -> Schedule:
    return compose(plan, reweights, ENTRIES, seed=1, seq_length=64)


def weights_at(schedule: Schedule, sample: int) -> dict[str, float]:
    phase = next(phase for phase in schedule.phases if sample < phase.end_sample)
    return {name: weight / 2**32 for name, weight in phase.weights}


def test_a_decision_scales_topics_and_nothing_else() -> None:
    schedule = composed(Reweight(start_sample=120, group="zh/web", ratios=(("law", 0.5), ("food", 0.5))))
    assert [phase.end_sample for phase in schedule.phases] == [120, 300, 500]
    assert weights_at(schedule, 119) == pytest.approx({LAW_0: 0.1, LAW_1: 0.2, FOOD: 0.1, ENGLISH: 0.6}, abs=1e-9)
    # The group has 0.4: 0.2 each; inside law the buckets stay 1 : 2.
    expected = {LAW_0: 0.2 / 3, LAW_1: 0.4 / 3, FOOD: 0.2, ENGLISH: 0.6}
    assert weights_at(schedule, 120) == pytest.approx(expected, abs=1e-9)
    assert weights_at(schedule, 499) == pytest.approx(expected, abs=1e-9)
    assert topic_ratios(dict(schedule.phases[1].weights), "zh/web", ENTRIES) == pytest.approx({"law": 0.5, "food": 0.5})


def test_a_decision_where_a_stage_only_goes_on_is_an_entry_of_its_own() -> None:
    """A curriculum cuts a stage in steps; at such a cut the stage does not change, but the decision does."""
    steps = [replace(phase, stage="one", name=f"one, step {number}") for number, phase in enumerate(PLAN)]
    decision = Reweight(start_sample=300, group="zh/web", ratios=(("law", 0.5), ("food", 0.5)))
    assert [phase.kind for phase in composed(plan=steps).phases] == ["stage", "stage"]
    assert [phase.kind for phase in composed(decision, plan=steps).phases] == ["stage", "reweight"]
    assert [phase.kind for phase in composed(decision).phases] == ["stage", "stage"]  # the change of stage comes first


def test_a_stage_that_names_its_topics_ends_earlier_decisions_but_takes_its_own() -> None:
    written = [PLAN[0], PlannedPhase(name="two", stage="two", num_samples=200, weights=WEIGHTS,
                                     written_groups=frozenset({"zh/web"}))]  # fmt: skip
    early = Reweight(start_sample=120, group="zh/web", ratios=(("law", 0.5), ("food", 0.5)))
    assert weights_at(composed(early, plan=written), 300)[FOOD] == pytest.approx(0.1, abs=1e-9)
    late = Reweight(start_sample=400, group="zh/web", ratios=(("law", 0.25), ("food", 0.75)))
    schedule = composed(early, late, plan=written)
    assert weights_at(schedule, 399)[FOOD] == pytest.approx(0.1, abs=1e-9)
    assert weights_at(schedule, 400)[FOOD] == pytest.approx(0.3, abs=1e-9)


@pytest.mark.parametrize("food", [Fraction(1, 10), Fraction(0)], ids=["read before", "joins"])
def test_decisions_that_a_stage_has_ended_do_not_come_back_in_the_next(food: Fraction) -> None:
    first = WEIGHTS | {FOOD: food, ENGLISH: Fraction(7, 10) - food}
    plan = [replace(PLAN[0], weights=first), replace(PLAN[1], written_groups=frozenset({"zh/web"})),
            replace(PLAN[1], name="three", stage="three")]  # fmt: skip
    ratios = (("law", 0.5), ("food", 0.5)) if food else (("law", 1.0),)
    decision = Reweight(start_sample=120, group="zh/web", ratios=ratios)
    schedule = composed(decision, plan=plan)
    for sample in (300, 500):
        assert weights_at(schedule, sample) == pytest.approx({k: float(v) for k, v in WEIGHTS.items()}, abs=1e-9)
    assert ratios_at(plan, (decision,), ENTRIES, "zh/web", 500) == pytest.approx({"law": 0.75, "food": 0.25})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 499), st.floats(0.01, 0.99)), max_size=8, unique_by=lambda d: d[0]))
def test_a_later_decision_never_changes_an_earlier_sample(decisions: list[tuple[int, float]]) -> None:
    decisions.sort()
    reweights = [Reweight(start_sample=s, group="zh/web", ratios=(("law", r), ("food", 1 - r))) for s, r in decisions]
    full = addresses(Sampler(composed(*reweights)), 0, 500)
    for count, (start, _) in enumerate(decisions):
        part = composed(*reweights[:count])
        assert addresses(Sampler(part), 0, start) == full[:start]
        assert part.past_digest(start) == composed(*reweights).past_digest(start)
    english = sum(place.source_index == index_of(composed(), ENGLISH) for place in full)
    assert abs(english - 300) <= 2  # 0.6 of 500, whatever the topics do


def test_a_decision_that_does_not_know_a_topic_is_refused() -> None:
    with pytest.raises(ConfigError, match="know nothing of food"):
        composed(Reweight(start_sample=10, group="zh/web", ratios=(("law", 1.0),)))
