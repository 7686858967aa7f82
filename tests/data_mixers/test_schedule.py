"""The schedule: appended only, validated, and hashed so that a changed past is seen."""

from dataclasses import replace
from fractions import Fraction

import pytest

from data_mixers.errors import ConfigError
from data_mixers.manifest import ShardEntry, SourceEntry
from data_mixers.ratios import quantise
from data_mixers.sampling import Sampler
from data_mixers.schedule import Phase, Schedule, ScheduledShard, ScheduledSource, scheduled_source
from tests.data_mixers.orders import addresses


def source(name: str, tokens: int = 100_000, sha256: str = "aa") -> ScheduledSource:
    return ScheduledSource(name=name, shards=(ScheduledShard(num_tokens=tokens, sha256=sha256),))


def two_phases(*, first: str = "3/10", second: str = "1/2", seed: int = 1, sha256: str = "aa") -> Schedule:
    schedule = Schedule(seed=seed, seq_length=64, sources=(source("zh/web/law", sha256=sha256), source("en/web/math")))
    for name, share in (("one", Fraction(first)), ("two", Fraction(second))):
        weights = quantise({"zh/web/law": share, "en/web/math": 1 - share})
        schedule = schedule.append_weights(name, num_samples=500, weights=weights)
    return schedule


def test_json_round_trip_is_exact() -> None:
    schedule = two_phases()
    again = Schedule.from_json(schedule.to_json())
    assert again == schedule
    assert again.digest() == schedule.digest()


def test_appending_a_phase_leaves_earlier_samples_unchanged() -> None:
    before = two_phases()
    after = before.append_weights(
        "three",
        num_samples=400,
        weights=quantise({"zh/web/law": Fraction(1, 10), "en/web/math": Fraction(1, 5), "en/qa/all": Fraction(7, 10)}),
        new_sources=(source("en/qa/all"),),
    )
    assert addresses(Sampler(after), 0, 1000) == addresses(Sampler(before), 0, 1000)
    assert after.past_digest(1000) == before.past_digest(1000)
    assert after.digest() != before.digest()


def test_cursors_go_on_across_phases() -> None:
    law = [place for place in addresses(Sampler(two_phases()), 0, 1000) if place.source_index == 0]
    assert len(set(law)) == len(law)  # 400 draws of a source with 1561 windows: none twice


@pytest.mark.parametrize(
    "changed",
    [two_phases(first="4/10"), two_phases(seed=2), two_phases(sha256="bb")],
    ids=["weights", "seed", "data"],
)
def test_past_digest_sees_a_changed_past(changed: Schedule) -> None:
    assert changed.past_digest(200) != two_phases().past_digest(200)


def test_past_digest_does_not_see_a_changed_future() -> None:
    assert two_phases(second="9/10").past_digest(500) == two_phases().past_digest(500)
    assert two_phases(second="9/10").past_digest(501) != two_phases().past_digest(501)


def test_a_held_out_source_can_never_enter() -> None:
    shard = ShardEntry(
        prefix="a", num_documents=1, num_tokens=9, text_bytes=1, bin_size_bytes=18, idx_size_bytes=1, bin_sha256="",
        idx_sha256="",
    )  # fmt: skip
    entry = SourceEntry(
        name="zh/web/law@holdout",
        language="zh",
        source="web",
        topic="law",
        bucket=None,
        role="validation",
        shards=(shard,),
    )
    with pytest.raises(ConfigError, match="zh/web/law@holdout has role validation"):
        scheduled_source(entry)
    with pytest.raises(ConfigError, match="held out"):
        source("zh/web/law@holdout")


def test_a_phase_must_start_where_the_schedule_ends() -> None:
    phase = Phase(name="gap", start_sample=1001, num_samples=5, weights=(("zh/web/law", 1 << 32),))
    with pytest.raises(ConfigError, match=r"gap.*starts at sample 1001.*ends at 1000"):
        replace(two_phases(), phases=(*two_phases().phases, phase))


def test_weights_must_sum_to_the_unit_and_name_known_sources() -> None:
    with pytest.raises(ConfigError, match="sum to 5, not 2"):
        two_phases().append_weights("p", num_samples=5, weights={"zh/web/law": 5})
    with pytest.raises(ConfigError, match="zh/web/nothing"):
        two_phases().append_weights("p", num_samples=5, weights={"zh/web/nothing": 1 << 32})


def test_a_schedule_file_that_lost_a_source_is_refused_by_its_name() -> None:
    text = two_phases().to_json()
    gone = text.replace('"name":"zh/web/law"', '"name":"zh/web/gone"')
    with pytest.raises(
        ConfigError, match=r"schedule\.phases\[0\] .* weighs zh/web/law, which is not among its sources"
    ):
        Schedule.from_json(gone)


def test_a_schedule_file_with_an_unknown_key_or_version_is_refused_by_key() -> None:
    text = two_phases().to_json()
    with pytest.raises(ConfigError, match=r"unknown key schedule\.speed"):
        Schedule.from_json(text.replace('"seed":1', '"seed":1,"speed":2'))
    with pytest.raises(ConfigError, match=r"missing key schedule\.seed"):
        Schedule.from_json(text.replace('"seed":1,', ""))
    with pytest.raises(ConfigError, match="schema_version is 9"):
        Schedule.from_json(text.replace('"schema_version":4', '"schema_version":9'))
    with pytest.raises(ConfigError, match=r"schedule\.phases\[0\]\.num_samples"):
        Schedule.from_json(text.replace('"num_samples":500', '"num_samples":"x"', 1))


def test_a_schedule_of_version_3_is_read_unless_it_names_an_order_that_is_no_more() -> None:
    made = two_phases()
    text = made.to_json().replace('"schema_version":4', '"schema_version":3')
    text = text.replace('"packed_seq_length":null', '"order":"permuted","packed_seq_length":null,"prefix":0.0')
    text = text.replace('"shards"', '"windows_planned":null,"shards"')
    assert '"order"' in text and '"windows_planned"' in text
    assert Schedule.from_json(text) == made
    with pytest.raises(ConfigError, match=r"unknown key schedule\.sources\[0\]\.order"):
        Schedule.from_json(text.replace("permuted", "reversed"))
