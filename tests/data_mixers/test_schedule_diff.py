"""diff of two schedules: what, and from which sample on."""

from dataclasses import replace
from fractions import Fraction

from data_mixers.ratios import quantise
from data_mixers.schedule import Schedule, ScheduledShard, ScheduledSource
from data_mixers.schedule_diff import diff, first_difference


def schedule(second: str = "1/2", *, seed: int = 1) -> Schedule:
    shards = (ScheduledShard(num_tokens=100_000, sha256="aa"),)
    sources = tuple(ScheduledSource(name=name, shards=shards) for name in ("zh/web/law", "en/web/math"))
    made = Schedule(seed=seed, seq_length=64, sources=sources)
    for name, share in (("one", Fraction(3, 10)), ("two", Fraction(second))):
        made = made.append_weights(
            name, num_samples=500, weights=quantise({"zh/web/law": share, "en/web/math": 1 - share})
        )
    return made


def test_equal_schedules_have_no_difference() -> None:
    assert diff(schedule(), schedule()) == []


def test_other_weights_are_named_with_the_sample_they_begin_at() -> None:
    assert diff(schedule(), schedule("3/4")) == [
        "other data from sample 500 on",
        "phase 1 (two): weight of zh/web/law: 50.0000 % -> 75.0000 %",
        "phase 1 (two): weight of en/web/math: 50.0000 % -> 25.0000 %",
    ]


def test_a_skip_and_an_appended_phase_are_told() -> None:
    longer = schedule().append_weights("three", num_samples=10, weights={"zh/web/law": 1 << 32}, kind="guard")
    assert diff(schedule(), longer) == [
        "the same data in the 1000 samples both have; 1000 samples before, 1010 now",
        "phase 2 (guard three, samples 1000:1010) is new",
    ]
    assert diff(schedule(), schedule().skip(700, 720, consumed_samples=0)) == [
        "other data from sample 700 on",
        "new skip: 20 samples of data left out at sample 700",
    ]


def test_what_was_left_out_and_is_not_any_more_is_told_and_what_both_leave_out_is_not() -> None:
    both = schedule().skip(600, 610, consumed_samples=0)
    assert diff(both.skip(700, 720, consumed_samples=0), both) == [
        "other data from sample 700 on",
        "skip no longer there: 20 samples of data left out at sample 700",
    ]


def test_a_kind_or_a_name_changes_no_data() -> None:
    named = schedule()
    renamed = replace(named, phases=(replace(named.phases[0], name="uno", kind="reweight"), named.phases[1]))
    assert diff(named, renamed)[0] == "the same data in every sample"
    assert first_difference(named, renamed) is None


def test_another_seed_differs_from_the_first_sample_on() -> None:
    assert diff(schedule(), schedule(seed=2)) == ["other data from sample 0 on", "seed: 1 -> 2"]
