"""The data order as a law: random schedules of up to 50 phases, every id enumerated and counted by other means."""

from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mixers.manifest import DatasetManifest, ShardEntry, SourceEntry, TokenizerIdentity
from data_mixers.ratios import quantise
from data_mixers.sampling import SampleAddress, Sampler
from data_mixers.schedule import Schedule, ScheduledShard, ScheduledSource
from megatron_synE.config.schema import StageSection
from megatron_synE.data.batch import sample_indices
from megatron_synE.data.build_schedule import build_schedule
from tests.data_mixers.orders import addresses

SEQ_LENGTH = 10


@dataclass(frozen=True)
class Drawn:
    """A schedule, and what hypothesis made it of."""

    schedule: Schedule
    shares: list[dict[str, Fraction]]


@st.composite
def schedules(draw: st.DrawFn, *, max_phases: int = 50) -> Drawn:
    """1 to 6 sources of one or two shards, small enough for several epochs; sources may join in later phases."""
    sources = tuple(
        ScheduledSource(
            name=f"zh/web/t{index}",
            shards=tuple(
                ScheduledShard(num_tokens=tokens, sha256="0")
                for tokens in draw(st.lists(st.integers(SEQ_LENGTH + 1, 700), min_size=1, max_size=2))
            ),
        )
        for index in range(draw(st.integers(1, 6)))
    )
    schedule = Schedule(seed=draw(st.integers(0, 1 << 30)), seq_length=SEQ_LENGTH, sources=sources[:1])
    shares = []
    for number in range(draw(st.integers(1, max_phases))):
        known = min(len(sources), 1 + number)  # one more source with each phase
        parts = draw(st.lists(st.integers(0, 1000), min_size=known, max_size=known).filter(any))
        exact = {source.name: Fraction(part, sum(parts)) for source, part in zip(sources, parts, strict=False)}
        new = sources[len(schedule.sources) : known]
        schedule = schedule.append_weights(
            f"p{number}", num_samples=draw(st.integers(1, 60)), weights=quantise(exact), new_sources=new
        )
        shares.append(exact)
    return Drawn(schedule, shares)


def read(schedule: Schedule, start: int = 0, stop: int | None = None) -> list[SampleAddress]:
    """By a sampler of its own, as after a restart."""
    return addresses(Sampler(schedule), start, schedule.num_samples if stop is None else stop)


def windows_per_epoch(source: ScheduledSource) -> int:
    """By hand: a window and one token more must fit behind every possible shift."""
    return sum(max(1, shard.num_tokens // SEQ_LENGTH - 1) for shard in source.shards)


@settings(max_examples=60, deadline=None)
@given(schedules())
def test_inside_an_epoch_no_window_is_read_twice_and_none_is_left_out(drawn: Drawn) -> None:
    ids = read(drawn.schedule)
    assert len(set(ids)) == len(ids)
    for index, source in enumerate(drawn.schedule.sources):
        windows = windows_per_epoch(source)
        by_epoch = Counter(place.epoch for place in ids if place.source_index == index)
        last = max(by_epoch, default=0)
        assert all(by_epoch[epoch] == windows for epoch in range(last))  # whole epochs are whole
        assert by_epoch[last] <= windows
    for place in ids:  # and each window lies inside its file
        shard = drawn.schedule.sources[place.source_index].shards[place.shard_index]
        assert 0 <= place.token_offset <= shard.num_tokens - SEQ_LENGTH - 1


@settings(max_examples=60, deadline=None)
@given(schedules())
def test_counts_stay_within_two_of_the_exact_share_at_every_prefix(drawn: Drawn) -> None:
    names = [source.name for source in drawn.schedule.sources]
    count = dict.fromkeys(names, 0)
    exact = dict.fromkeys(names, Fraction(0))
    places = iter(read(drawn.schedule))
    for phase, shares in zip(drawn.schedule.phases, drawn.shares, strict=True):
        for _ in range(phase.num_samples):
            count[names[next(places).source_index]] += 1
            for name, share in shares.items():
                exact[name] += share
            # 2**-20: weights are integers over 2**32, and there are at most 3,000 samples
            assert max(abs(count[name] - exact[name]) for name in names) <= 2 + Fraction(1, 1 << 20)
    assert Sampler(drawn.schedule).cursors(drawn.schedule.num_samples) == tuple(count.values())


@settings(max_examples=30, deadline=None)
@given(schedules(max_phases=12), schedules(max_phases=1))
def test_appending_never_changes_the_past(drawn: Drawn, other: Drawn) -> None:
    schedule = drawn.schedule
    whole = read(schedule)
    for number, phase in enumerate(schedule.phases):
        known = {name for earlier in schedule.phases[: number + 1] for name, _ in earlier.weights}
        count = 1 + max(index for index, source in enumerate(schedule.sources) if source.name in known)
        part = replace(schedule, phases=schedule.phases[: number + 1], sources=schedule.sources[:count])
        assert read(part) == whole[: phase.end_sample]
        assert part.past_digest(phase.end_sample) == schedule.past_digest(phase.end_sample)
    cut = schedule.num_samples // 2
    joining = replace(other.schedule.sources[0], name="en/web/new")
    longer = schedule.until(cut).append_weights(
        "other", num_samples=9, weights={"en/web/new": 1 << 32}, new_sources=(joining,)
    )
    assert read(longer, 0, cut) == whole[:cut]
    assert longer.past_digest(cut) == schedule.past_digest(cut)


@settings(max_examples=30, deadline=None)
@given(schedules(), st.data())
def test_a_resume_at_one_before_and_one_after_a_boundary_gives_the_rest(drawn: Drawn, data: st.DataObject) -> None:
    schedule = drawn.schedule
    whole = read(schedule)
    stored = Schedule.from_json(schedule.to_json())
    boundary = data.draw(st.sampled_from([phase.end_sample for phase in schedule.phases]))
    for start in (boundary - 1, boundary, boundary + 1):
        if 0 <= start <= schedule.num_samples:
            assert read(stored, start) == whole[start:]
            if start < schedule.num_samples:
                assert Sampler(stored).address(start) == whole[start]
            counted = Counter(place.source_index for place in whole[:start])
            assert Sampler(stored).cursors(start) == tuple(counted[index] for index in range(len(schedule.sources)))


@settings(max_examples=30, deadline=None)
@given(schedules(max_phases=10), st.data())
def test_what_is_skipped_is_what_the_record_says_and_nothing_else(drawn: Drawn, data: st.DataObject) -> None:
    """Beside a schedule without the skip, whose phase is longer by it: that one, less the range, is what is read."""
    schedule = drawn.schedule
    number = data.draw(st.integers(0, len(schedule.phases) - 1))
    phase = schedule.phases[number]
    start = data.draw(st.integers(phase.start_sample, phase.end_sample - 1))
    length = data.draw(st.integers(1, phase.end_sample - start))
    skipped = schedule.skip(start, start + length, consumed_samples=start)
    longer = replace(schedule, phases=())
    for index, old in enumerate(schedule.phases):
        more = length if index == number else 0
        moved = replace(old, start_sample=longer.num_samples, num_samples=old.num_samples + more)
        longer = replace(longer, phases=(*longer.phases, moved))
    without = read(longer)
    assert read(skipped) == without[:start] + without[start + length :]
    assert [(skip.at_sample, skip.num_samples) for skip in skipped.skips] == [(start, length)]


@settings(max_examples=10, deadline=None)
@given(schedules(), st.integers(1, 3), st.integers(0, 1))
def test_the_ids_are_the_same_at_data_parallel_1_to_16(drawn: Drawn, micro_batch_size: int, done: int) -> None:
    whole = read(drawn.schedule)
    sampler = Sampler(drawn.schedule)  # ranks ask sample by sample
    for data_parallel_size in range(1, 17):
        global_batch_size = 2 * micro_batch_size * data_parallel_size
        total = len(whole) // global_batch_size * global_batch_size
        ranks = [
            list(
                sample_indices(
                    consumed_samples=done * global_batch_size,
                    total_samples=total,
                    global_batch_size=global_batch_size,
                    micro_batch_size=micro_batch_size,
                    data_parallel_rank=rank,
                    data_parallel_size=data_parallel_size,
                )
            )
            for rank in range(data_parallel_size)
        ]
        found = [sampler.address(n) for together in zip(*ranks, strict=True) for batch in together for n in batch]
        assert found == whole[done * global_batch_size : total]


def manifest(tokens: dict[str, int]) -> DatasetManifest:
    """Only what a schedule needs of it."""
    entries = []
    for name, num_tokens in tokens.items():
        language, source, topic = name.split("/")
        shard = ShardEntry(
            prefix=topic, num_documents=1, num_tokens=num_tokens, text_bytes=1, bin_size_bytes=1, idx_size_bytes=1,
            bin_sha256="0", idx_sha256="0",
        )  # fmt: skip
        entries.append(
            SourceEntry(
                name=name, language=language, source=source, topic=topic, bucket=None, role="train", shards=(shard,)
            )
        )
    return DatasetManifest(
        schema_version=1,
        folder=None,  # type: ignore[arg-type]
        tokenizer=TokenizerIdentity(digest="0", vocab_size=9, eos_id=1, bos_id=None),
        dtype="uint16",
        sources=tuple(entries),
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1000, 9000), st.integers(1000, 9000), st.floats(0.05, 0.95), st.integers(0, 1 << 20))
def test_no_sample_of_stage_1_reappears_in_stage_2_inside_its_epoch(zh: int, en: int, share: float, seed: int) -> None:
    stages = [
        StageSection(name="one", tokens=4000, languages={"zh": share, "en": 1 - share}),
        StageSection(name="two", tokens=3000, languages={"zh": 0.1, "en": 0.7, "synthetic": 0.2}),
    ]
    data = manifest({"zh/web/law": zh, "en/web/law": en, "synthetic/qa/all": 2000})
    schedule = build_schedule(stages, [data], seed, SEQ_LENGTH, 4, max_epochs=1e9)
    boundary = schedule.phases[0].end_sample
    first, second = read(schedule, 0, boundary), read(schedule, boundary)
    assert not set(first) & set(second)  # ids hold the epoch
    for index in range(len(schedule.sources)):
        epochs = [[place.epoch for place in part if place.source_index == index] for part in (first, second)]
        if all(epochs):
            assert epochs[1][0] in (epochs[0][-1], epochs[0][-1] + 1)  # stage 2 goes on where stage 1 stopped
            assert np.all(np.diff(epochs[0] + epochs[1]) >= 0)
