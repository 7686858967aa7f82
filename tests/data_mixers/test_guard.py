"""The forgetting guard: what counts as worse, how far a share moves, and what else stays as it was."""

import json
import math
from dataclasses import asdict, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mixers.controllers import TopicLosses
from data_mixers.errors import ConfigError, DataError
from data_mixers.exhaustion import window_limits
from data_mixers.guard import GuardObservation, GuardSettings, GuardState, ProbeAnswers, decide, sign_test
from data_mixers.mixture import GuardShift, PlannedPhase, Reweight, compose, topic_ratios
from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule
from data_mixers.strict_json import parse
from tests.data_mixers.orders import addresses
from tests.data_mixers.test_curriculum import entry

RAISE = GuardSettings(language="en", action="raise", step=0.02, max_rise=0.05)
TOKENS = tuple(int(n) for n in np.random.default_rng(0).integers(20, 200, 40))


def seen(shift: float, *, consumed: int, correct: tuple[int, ...] | None = None, seed: int = 1) -> GuardObservation:
    """Losses of 40 documents that all moved by about `shift` nats per token, each with noise of its own."""
    tokens = np.array(TOKENS)
    noise = 0.01 * np.random.default_rng(seed).standard_normal(40)
    base = 3 + np.random.default_rng(99).standard_normal(40)
    sums = tokens * (base + (noise + shift if consumed else 0))
    return GuardObservation(
        consumed_tokens=consumed,
        losses=TopicLosses(nll_sums=tuple(sums), tokens=TOKENS),
        answers=None if correct is None else ProbeAnswers(probe="p", correct=correct),
    )


def rises(shifts: list[float], options: GuardSettings = RAISE) -> list[float]:
    """Rise after each validation; the first, with no change, is the reference."""
    state, found = None, []
    for number, shift in enumerate([0.0, *shifts]):
        state = decide(options, state, seen(shift, consumed=number, seed=number)).state
        found.append(state.rise)
    return found


def test_worse_raises_by_a_step_up_to_the_bound_and_recovery_takes_it_back_step_by_step() -> None:
    assert rises([0.1] * 4 + [0.0] * 4) == [0.0, 0.02, 0.04, 0.05, 0.05, 0.03, 0.01, 0.0, 0.0]


def test_a_change_inside_its_noise_and_a_better_loss_move_nothing() -> None:
    assert rises([0.0005, -0.1, -0.1]) == [0.0] * 4
    one = GuardObservation(consumed_tokens=0, losses=TopicLosses(nll_sums=(9.0,), tokens=(3,)), answers=None)
    state = decide(RAISE, None, one).state
    lost = GuardObservation(consumed_tokens=1, losses=TopicLosses(nll_sums=(90.0,), tokens=(3,)), answers=None)
    assert decide(RAISE, state, lost).worse == ()  # one document has no noise to compare with


def test_small_losses_of_a_probe_add_up_because_the_first_validation_stays_the_reference() -> None:
    def answered(wrong: int, *, consumed: int) -> GuardObservation:
        answers = ProbeAnswers(probe="p", correct=(0,) * wrong + (1,) * (20 - wrong))
        return GuardObservation(consumed_tokens=consumed, losses=None, answers=answers)

    state = decide(RAISE, None, answered(0, consumed=0)).state
    found = []
    for number, wrong in enumerate((3, 6), start=1):  # 3 of 3 tosses: 1/8; 6 of 6: 1/64, below 0.025
        decision = decide(RAISE, state, answered(wrong, consumed=number))
        state = decision.state
        found.append(decision.worse)
    assert found == [(), ("probe",)]


def test_a_warning_moves_nothing_and_says_so_in_nats_per_token() -> None:
    warn = GuardSettings(language="en")
    state = decide(warn, None, seen(0.0, consumed=0)).state
    decision = decide(warn, state, seen(0.1, consumed=1))
    assert (decision.worse, decision.state.rise) == (("loss",), 0.0)
    # By hand: all documents moved by 0.1 and their own noise, weighted by tokens.
    noise = 0.01 * np.random.default_rng(1).standard_normal(40)
    assert decision.change == pytest.approx(0.1 + float(np.average(noise, weights=TOKENS)))
    assert any(f"{decision.change:.4f} nats per token" in note for note in decision.notes)


def test_the_probe_alone_can_raise_and_its_test_is_the_binomial_one() -> None:
    assert sign_test(5, 0) == 1 / 32
    assert sign_test(8, 2) == (45 + 10 + 1) / 1024
    assert sign_test(0, 0) == 1.0
    before = (1,) * 20
    first = GuardObservation(consumed_tokens=0, losses=None, answers=ProbeAnswers(probe="p", correct=before))
    state = decide(RAISE, None, first).state
    # 1/32 is above, 1/64 below the 2.5 % of one side
    five = GuardObservation(
        consumed_tokens=1, losses=None, answers=ProbeAnswers(probe="p", correct=(0,) * 5 + (1,) * 15)
    )
    six = GuardObservation(
        consumed_tokens=1, losses=None, answers=ProbeAnswers(probe="p", correct=(0,) * 6 + (1,) * 14)
    )
    assert decide(RAISE, state, five).worse == ()
    assert (decide(RAISE, state, six).worse, decide(RAISE, state, six).state.rise) == (("probe",), 0.02)
    other = GuardObservation(consumed_tokens=1, losses=None, answers=ProbeAnswers(probe="q", correct=(0,) * 20))
    assert decide(RAISE, state, other).worse == ()  # other items: nothing to compare with


def test_other_documents_are_a_new_reference_and_move_nothing() -> None:
    state = decide(RAISE, None, seen(0.0, consumed=0)).state
    other = GuardObservation(
        consumed_tokens=1, losses=TopicLosses(nll_sums=(900.0, 800.0), tokens=(3, 4)), answers=None
    )
    decision = decide(RAISE, state, other)
    assert (decision.change, decision.state.rise, decision.state.losses) == (None, 0.0, other.losses)
    assert any("changed" in note for note in decision.notes)


def test_another_language_does_not_inherit_the_rise_of_the_one_before() -> None:
    state = decide(RAISE, decide(RAISE, None, seen(0.0, consumed=0)).state, seen(0.1, consumed=1)).state
    assert state.rise == 0.02
    for consumed, options in ((2, replace(RAISE, language="zh")), (3, GuardSettings(language="zh"))):
        decision = decide(options, state, seen(0.0, consumed=consumed))
        assert (decision.state.language, decision.state.rise, decision.worse) == ("zh", 0.0, ())
        assert any("was en" in note for note in decision.notes)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([-0.1, 0.0, 0.1]), min_size=1, max_size=8), st.floats(0.001, 0.05))
def test_no_decision_moves_more_than_a_step_and_the_rise_stays_in_its_bounds(shifts: list[float], step: float) -> None:
    found = rises(shifts, GuardSettings(action="raise", step=step, max_rise=0.05))
    assert all(abs(b - a) <= step + 1e-12 for a, b in zip(found[:-1], found[1:], strict=True))
    assert all(0 <= rise <= 0.05 for rise in found)


def test_where_the_share_cannot_move_it_stays() -> None:
    state = decide(RAISE, None, seen(0.0, consumed=0)).state
    assert decide(RAISE, state, seen(0.1, consumed=1), can_move=False).state.rise == 0.0


def test_a_state_survives_json_to_the_bit() -> None:
    state = decide(RAISE, None, seen(0.0, consumed=0, correct=(1, 0, 1))).state
    state = decide(RAISE, state, seen(0.1, consumed=1, correct=(1, 1, 1))).state
    assert parse(GuardState, json.loads(json.dumps(asdict(state))), where="guard_state", fault=DataError) == state


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"step": 0.0}, "guard.step"),
        ({"step": 0.2}, "guard.step"),
        ({"max_rise": 1.0}, "guard.max_rise"),
        ({"max_rise": math.nan}, "guard.max_rise"),
        ({"noise_level": 1.0}, "guard.noise_level"),
        ({"language": ""}, "guard.language"),
        ({"action": "stop"}, "guard.action"),
    ],
)
def test_settings_without_sense_are_refused_by_name(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        GuardSettings(**changes)  # type: ignore[arg-type]


LONG = 64 * 5000 + 1
ENTRIES = {
    e.name: e
    for e in [
        entry("law", None, tokens=LONG), entry("food", None, tokens=LONG), entry("sea", None, tokens=64 * 31),
        entry("wiki", None, language="de", tokens=LONG),
        entry("general", None, language="en", tokens=LONG), entry("news", None, language="en", tokens=LONG),
    ]
}  # fmt: skip
LAW, FOOD, SEA, GERMAN, ENGLISH, NEWS = ENTRIES
WEIGHTS = {
    LAW: Fraction(2, 10), FOOD: Fraction(1, 10), SEA: Fraction(1, 10), GERMAN: Fraction(2, 10),
    ENGLISH: Fraction(3, 10), NEWS: Fraction(1, 10),
}  # fmt: skip
PLAN = [
    PlannedPhase(name="one", stage="one", num_samples=300, weights=WEIGHTS),
    PlannedPhase(name="two", stage="two", num_samples=200, weights=WEIGHTS),
    PlannedPhase(name="zh", stage="zh", num_samples=100, weights={LAW: Fraction(1)}),
]
LIMITS = window_limits(ENTRIES, seq_length=64, max_epochs=1.0)
Decision = GuardShift | Reweight


def composed(*decisions: Decision, limits: dict[str, int] | None = None) -> Schedule:
    return compose(
        PLAN,
        [d for d in decisions if isinstance(d, Reweight)],
        ENTRIES,
        seed=1,
        seq_length=64,
        limits=limits,
        shifts=[d for d in decisions if isinstance(d, GuardShift)],
    )


def shift(start: int, rise: float) -> GuardShift:
    return GuardShift(start_sample=start, language="en", rise=rise)


def shares_at(schedule: Schedule, sample: int) -> dict[str, float]:
    phase = next(phase for phase in schedule.phases if sample < phase.end_sample)
    return {name: weight / 2**32 for name, weight in phase.weights}


def test_a_rise_comes_from_the_other_languages_in_proportion_and_leaves_their_insides_alone() -> None:
    schedule = composed(shift(120, 0.06))
    assert [(p.kind, p.end_sample) for p in schedule.phases] == [
        ("stage", 120), ("guard", 300), ("stage", 500), ("stage", 600),
    ]  # fmt: skip
    # en 0.4 -> 0.46, times 1.15; the other 0.6 -> 0.54, times 0.9
    raised = {LAW: 0.18, FOOD: 0.09, SEA: 0.09, GERMAN: 0.18, ENGLISH: 0.345, NEWS: 0.115}
    assert shares_at(schedule, 119) == pytest.approx({n: float(w) for n, w in WEIGHTS.items()}, abs=1e-9)
    assert shares_at(schedule, 120) == pytest.approx(raised, abs=1e-9)
    assert shares_at(schedule, 499) == pytest.approx(raised, abs=1e-9)  # the next stage keeps it
    assert shares_at(schedule, 500) == {LAW: 1.0}  # nothing to raise there
    assert shares_at(composed(shift(120, 0.06), shift(400, 0.0)), 400) == shares_at(schedule, 0)


def test_a_phase_says_why_it_begins() -> None:
    half = Reweight(start_sample=200, group="zh/web", ratios=(("law", 0.4), ("food", 0.4), ("sea", 0.2)))
    kinds = {p.start_sample: p.kind for p in composed(shift(100, 0.02), half, shift(300, 0.04)).phases}
    assert kinds == {0: "stage", 100: "guard", 200: "reweight", 300: "stage", 500: "stage"}


def test_a_rise_that_leaves_the_others_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"phase one .*lower the planned share"):
        composed(shift(120, 0.7))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 499), st.floats(0.0, 0.5), st.booleans()), max_size=7, unique_by=lambda d: d[0]),
    st.booleans(),
)
def test_with_reweights_and_exhaustion_languages_keep_their_shares_and_the_past_stays(
    drawn: list[tuple[int, float, bool]], is_limited: bool
) -> None:
    decisions: list[Decision] = []
    for start, value, is_shift in sorted(drawn):
        ratios = (("law", 0.5 - value / 2), ("food", value / 2), ("sea", 0.5))
        decisions.append(
            shift(start, value) if is_shift else Reweight(start_sample=start, group="zh/web", ratios=ratios)
        )
    limits = LIMITS if is_limited else None
    full = composed(*decisions, limits=limits)
    read = addresses(Sampler(full), 0, 600)
    for count, decision in enumerate(decisions):
        part = composed(*decisions[:count], limits=limits)
        assert part.past_digest(decision.start_sample) == full.past_digest(decision.start_sample)
        assert addresses(Sampler(part), 0, decision.start_sample) == read[: decision.start_sample]
    for phase in full.phases:
        if phase.start_sample >= 500:
            continue
        rise = next(
            (d.rise for d in reversed(decisions) if isinstance(d, GuardShift) and d.start_sample <= phase.start_sample),
            0.0,
        )
        weights = dict(phase.weights)
        english = sum(w for name, w in weights.items() if ENTRIES[name].language == "en") / 2**32
        german = weights[GERMAN] / 2**32
        assert sum(weights.values()) == 2**32
        assert english == pytest.approx(0.4 + rise, abs=1e-8)
        assert german == pytest.approx(0.2 / 0.6 * (0.6 - rise), abs=1e-8)
        assert topic_ratios(weights, "en/web", ENTRIES) == pytest.approx({"general": 0.75, "news": 0.25}, abs=1e-8)
        plain = composed(*(d for d in decisions if isinstance(d, Reweight)))
        if not is_limited:
            before = dict(next(p for p in plain.phases if phase.start_sample < p.end_sample).weights)
            same = topic_ratios(before, "zh/web", ENTRIES)
            assert topic_ratios(weights, "zh/web", ENTRIES) == pytest.approx(same, abs=1e-7)
