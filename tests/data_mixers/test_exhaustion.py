"""A source that has been read as often as it may gives its share to its nearest kin."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mixers import exhaustion
from data_mixers.errors import ConfigError
from data_mixers.exhaustion import window_limits, without
from data_mixers.mixture import PlannedPhase, Reweight, compose
from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule
from tests.data_mixers.orders import addresses
from tests.data_mixers.test_curriculum import entry

LONG = 64 * 5000 + 1
SOURCES = [entry("law", None, tokens=64 * 101), entry("food", None, tokens=LONG), entry("sea", None, tokens=64 * 41)]
SOURCES += [entry("general", None, language="en", tokens=LONG)]
ENTRIES = {source.name: source for source in SOURCES}
LAW, FOOD, SEA, ENGLISH = ENTRIES
WEIGHTS = {LAW: Fraction(2, 10), FOOD: Fraction(2, 10), SEA: Fraction(1, 10), ENGLISH: Fraction(5, 10)}


def test_shares_go_to_kin_and_the_language_stays() -> None:
    once = without(WEIGHTS, {SEA}, ENTRIES)  # 0.1 to law and food alike
    assert once == {LAW: Fraction(1, 4), FOOD: Fraction(1, 4), ENGLISH: Fraction(1, 2)}
    assert without(WEIGHTS, {SEA, LAW}, ENTRIES) == {FOOD: Fraction(1, 2), ENGLISH: Fraction(1, 2)}
    with pytest.raises(ConfigError, match=r"language en .*data.max_epochs"):
        without(WEIGHTS, {ENGLISH}, ENTRIES)


def test_nothing_is_read_beyond_its_limit_and_everything_up_to_it() -> None:
    limits = window_limits(ENTRIES, seq_length=64, max_epochs=1.0)
    assert (limits[LAW], limits[SEA]) == (100, 40)
    planned = [PlannedPhase(name="s", stage="s", num_samples=1500, weights=WEIGHTS)]
    schedule = compose(planned, (), ENTRIES, seed=5, seq_length=64, limits=limits)
    assert [phase.kind for phase in schedule.phases] == ["stage", "exhaustion", "exhaustion"]
    # sea: 0.1 a sample, its 41st at about 400. law: 80 by then, the other 20 at 0.25 a sample: about 80 later.
    assert [phase.start_sample for phase in schedule.phases] == [
        0,
        pytest.approx(400, abs=20),
        pytest.approx(480, abs=20),
    ]
    read = dict(zip([s.name for s in schedule.sources], Sampler(schedule).cursors(1500), strict=True))
    assert (read[LAW], read[SEA]) == (100, 40)
    assert abs(read[ENGLISH] - 750) <= 2
    assert schedule.num_samples == 1500


def test_a_source_that_may_never_be_read_ranks_nowhere() -> None:
    """Otherwise it would move the others' ranks in the merge, and with them what a run reads that was begun earlier."""
    limits = window_limits(ENTRIES, seq_length=64, max_epochs=1.0) | {FOOD: 0}
    planned = PlannedPhase(name="s", stage="s", num_samples=200, weights=WEIGHTS)
    schedule = compose([planned], (), ENTRIES, seed=5, seq_length=64, limits=limits)
    by_hand = {LAW: Fraction(1, 3), SEA: Fraction(1, 6), ENGLISH: Fraction(1, 2)}
    expected = compose([replace(planned, weights=by_hand)], (), ENTRIES, seed=5, seq_length=64, limits=limits)
    assert [source.name for source in schedule.sources] == sorted([LAW, SEA, ENGLISH])
    assert schedule.past_digest(200) == expected.past_digest(200)


def test_what_knows_nothing_of_a_topic_is_at_fault_only_where_its_text_lasts() -> None:
    limits = window_limits(ENTRIES, seq_length=64, max_epochs=1.0)
    planned = [PlannedPhase(name="s", stage="s", num_samples=1500, weights=WEIGHTS)]
    others = (("law", 0.4), ("food", 0.6))  # sea ends at about 400
    for start, fits in ((600, True), (200, False)):
        decision = Reweight(start_sample=start, group="zh/web", ratios=others)
        if not fits:
            with pytest.raises(ConfigError, match="zh/web know nothing of sea"):
                compose(planned, [decision], ENTRIES, seed=5, seq_length=64, limits=limits)
            continue
        schedule = compose(planned, [decision], ENTRIES, seed=5, seq_length=64, limits=limits)
        assert [phase.kind for phase in schedule.phases] == ["stage", "exhaustion", "exhaustion", "reweight"]


def test_what_a_skip_leaves_out_is_made_up_for_out_of_the_next_epoch() -> None:
    limits = window_limits(ENTRIES, seq_length=64, max_epochs=1.0)
    planned = [PlannedPhase(name="s", stage="s", num_samples=1500, weights=WEIGHTS)]
    schedule = compose(planned, (), ENTRIES, seed=5, seq_length=64, limits=limits).skip(100, 150, consumed_samples=0)
    sampler, names = Sampler(schedule), [source.name for source in schedule.sources]
    read, passed = (dict(zip(names, counts(1500), strict=True)) for counts in (sampler.read, sampler.cursors))
    assert (read[LAW], read[SEA]) == (pytest.approx(100, abs=1), pytest.approx(40, abs=1))
    assert (passed[LAW], passed[SEA]) == (pytest.approx(110, abs=1), pytest.approx(45, abs=1))  # 0.2 and 0.1 of 50


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 1499), st.floats(0.05, 0.9), st.floats(0.3, 2.5))
def test_a_decision_changes_what_ends_when_but_never_the_past(start: int, law: float, epochs: float) -> None:
    limits = window_limits(ENTRIES, seq_length=64, max_epochs=epochs)
    planned = [PlannedPhase(name="s", stage="s", num_samples=1500, weights=WEIGHTS)]
    rest = (1 - law) / 2
    reweight = Reweight(start_sample=start, group="zh/web", ratios=(("law", law), ("food", rest), ("sea", rest)))
    plain = compose(planned, (), ENTRIES, seed=5, seq_length=64, limits=limits)
    steered = compose(planned, [reweight], ENTRIES, seed=5, seq_length=64, limits=limits)
    assert plain.past_digest(start) == steered.past_digest(start)
    assert addresses(Sampler(plain), 0, start) == addresses(Sampler(steered), 0, start)
    for schedule in (plain, steered):
        names = [source.name for source in schedule.sources]
        for name, count in zip(names, Sampler(schedule).cursors(1500), strict=True):
            assert count <= limits[name]
        assert schedule.num_samples == 1500


def test_a_hundred_decisions_cost_no_more_samplers_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each source that ends, and one that sees that no more does; one for each decision was the square."""
    built: list[int] = []

    def counted(schedule: Schedule) -> Sampler:
        built.append(len(schedule.phases))
        return Sampler(schedule)

    monkeypatch.setattr(exhaustion, "Sampler", counted)
    limits = window_limits(ENTRIES, seq_length=64, max_epochs=1.0)
    planned = [PlannedPhase(name="s", stage="s", num_samples=1500, weights=WEIGHTS)]
    ratios = (("law", 0.4), ("food", 0.4), ("sea", 0.2))
    decisions = [Reweight(start_sample=15 * number, group="zh/web", ratios=ratios) for number in range(1, 100)]
    schedule = compose(planned, decisions, ENTRIES, seed=5, seq_length=64, limits=limits)
    assert [phase.kind for phase in schedule.phases].count("exhaustion") == 2
    assert len(schedule.phases) == 102
    assert len(built) == 3
