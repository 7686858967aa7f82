"""The order of data where random cases leave it open: keys, shifts, splits, kin and the order of decisions."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mixers.curriculum import Curriculum, bucket_shares, paced
from data_mixers.exhaustion import without
from data_mixers.manifest import SourceEntry
from data_mixers.merge import ONE, _huffman
from data_mixers.mixture import GuardShift, PlannedPhase, Reweight, compose
from data_mixers.permutation import Permutation
from data_mixers.ratios import quantise
from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule, ScheduledShard, ScheduledSource
from data_mixers.windows import SourceWindows, windows_in_shard
from tests.data_mixers.orders import addresses, mapped
from tests.data_mixers.test_curriculum import entry

SEQ_LENGTH = 10


def source(*tokens: int, name: str = "zh/web/law") -> ScheduledSource:
    shards = tuple(ScheduledShard(num_tokens=count, sha256="0") for count in tokens)
    return ScheduledSource(name=name, shards=shards)


def order_of(made: ScheduledSource, *, seed: int, epoch: int = 0) -> list[int]:
    """Window numbers of one epoch, shifts taken off."""
    windows = SourceWindows(made, seed=seed, seq_length=SEQ_LENGTH)
    draws = range(epoch * windows.windows_per_epoch, (epoch + 1) * windows.windows_per_epoch)
    return [(windows.address(draw)[2] - windows.shift(epoch, 0)) // SEQ_LENGTH for draw in draws]


def test_the_permutation_is_that_of_eight_rounds_by_hand() -> None:
    """A run under way reads on in this order, so no release may change it: keys, rounds and multipliers written out."""
    words = [f"str:feistel\x1fint:{number}\x1fint:5\x1fstr:zh/web/law\x1fint:2" for number in range(8)]
    keys = [int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") for word in words]

    def encrypted(value: int) -> int:
        left, right = divmod(value, 8)  # 50 windows: two halves of three bits
        for key in keys:
            mixed = right ^ key
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
                mixed = (mixed ^ mixed >> shift) * factor % 2**64
            left, right = right, left ^ (mixed ^ mixed >> 31) % 8
        return 8 * left + right

    expected = []
    for value in range(50):
        found = encrypted(value)
        while found >= 50:
            found = encrypted(found)
        expected.append(found)
    made = Permutation(50, 5, "zh/web/law", 2)
    assert [made[place] for place in range(50)] == expected
    assert sorted(expected) == list(range(50))


def test_seed_name_and_epoch_each_give_another_order() -> None:
    """Of 1,000 windows two independent orders agree in one place on average; more than ten is no chance."""
    law = source(10010)
    base = order_of(law, seed=1)
    others = (order_of(law, seed=2), order_of(replace(law, name="zh/web/food"), seed=1), order_of(law, seed=1, epoch=1))
    for other in others:
        assert sorted(other) == sorted(base)
        assert sum(a == b for a, b in zip(base, other, strict=True)) <= 10


def test_a_shift_is_less_than_a_window_and_every_shift_occurs() -> None:
    """A shard of 2 windows and more to spare: (29 - 10) // 10 = 1 window, 18 tokens behind it."""
    windows = SourceWindows(source(29), seed=1, seq_length=SEQ_LENGTH)
    assert windows.windows_per_epoch == 1
    shifts = [windows.shift(epoch, 0) for epoch in range(400)]
    assert shifts[0] == 0
    assert set(shifts) == set(range(SEQ_LENGTH))
    tight = SourceWindows(source(25), seed=1, seq_length=SEQ_LENGTH)  # 14 behind the window, still less than 10
    assert max(tight.shift(epoch, 0) for epoch in range(400)) == 9
    least = SourceWindows(source(13), seed=1, seq_length=SEQ_LENGTH)  # 2 behind its only window
    assert {least.shift(epoch, 0) for epoch in range(100)} == {0, 1, 2}


def test_tokens_lost_in_an_epoch_are_first_head_and_tail() -> None:
    # 45 tokens: (45 - 10) // 10 = 3 windows, 30 targets, 15 lost; 9 tokens: no window at all; 11: one window, 1 lost
    assert [windows_in_shard(tokens, seq_length=SEQ_LENGTH) for tokens in (45, 9, 11)] == [3, 0, 1]


def test_a_credit_is_shared_by_stiffness_by_hand() -> None:
    # Two quarters make a half beside a half that is 0.3 samples ahead. Moved by x, the quarters move by x / 2 each,
    # squares 1/2 x^2: half as stiff as the single one. So of the 0.3 the quarters give up 0.2, and begin 0.2 later:
    # their node's offset is 0.5 + 0.2 of its weight. Below it both quarters give up as much.
    quarter = 1 << 30
    splits, root = _huffman([quarter, quarter, 2 * quarter], [0, 0, int(0.3 * ONE)])
    assert root == 4
    assert [split.offset / split.weight for split in splits] == pytest.approx([0.5, 0.7])
    assert [(split.left, split.right) for split in splits] == [(1, 0), (3, 2)]


def test_a_network_whose_rounds_share_one_key_would_show() -> None:
    """Same keys in every round: 8 rounds are then reversible by swapping halves, p(swap(p(swap(x)))) = x."""
    size = 1 << 12  # a power of four: no cycle walking
    permutation = Permutation(size, 1, "x", 0)
    half = np.int64(6)
    mask = np.int64(63)

    def swap(values: np.ndarray) -> np.ndarray:
        return ((values & mask) << half) | (values >> half)

    start = np.arange(size)
    back = swap(mapped(permutation, swap(mapped(permutation, start))))
    assert (back == start).mean() < 0.01  # a random permutation: one in 4,096


def schedule_of(parts: Sequence[Sequence[int]], lengths: Sequence[int], *, splits: Sequence[int] = ()) -> Schedule:
    """Phases of these lengths and weights over three sources, each cut again at the samples in `splits`."""
    names = [f"zh/web/t{index}" for index in range(3)]
    schedule = Schedule(seed=7, seq_length=SEQ_LENGTH, sources=tuple(source(5000, name=name) for name in names))
    begin = 0
    for number, (weights, length) in enumerate(zip(parts, lengths, strict=True)):
        shares = quantise({name: Fraction(weight) for name, weight in zip(names, weights, strict=True)})
        inside = [cut for cut in sorted(set(splits)) if begin < cut < begin + length]
        for start, stop in zip([begin, *inside], [*inside, begin + length], strict=True):
            schedule = schedule.append_weights(f"p{number}", num_samples=stop - start, weights=shares)
        begin += length
    return schedule


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 50), min_size=3, max_size=3), st.integers(1, 60)), min_size=1, max_size=5
    ),
    st.lists(st.integers(1, 299), max_size=6),
)
def test_a_phase_cut_in_two_reads_what_it_did(phases: list[tuple[list[int], int]], splits: list[int]) -> None:
    parts, lengths = [weights for weights, _ in phases], [length for _, length in phases]
    whole, cut = schedule_of(parts, lengths), schedule_of(parts, lengths, splits=splits)
    assert whole.past_digest(whole.num_samples) == cut.past_digest(cut.num_samples)
    assert addresses(Sampler(whole), 0, whole.num_samples) == addresses(Sampler(cut), 0, cut.num_samples)


def test_the_rank_of_a_source_belongs_to_the_past() -> None:
    """Ranks break ties between equal weights, so another rank is another order."""
    plain = schedule_of([[1, 1, 1]], [30])
    turned = replace(
        plain, sources=plain.sources[::-1], phases=(replace(plain.phases[0], weights=plain.phases[0].weights[::-1]),)
    )
    names = [[s.sources[a.source_index].name for a in addresses(Sampler(s), 0, 30)] for s in (plain, turned)]
    assert names[0] != names[1]
    moved = replace(plain, sources=(source(5000, name="en/web/unread"), *plain.sources))
    assert plain.past_digest(30) != moved.past_digest(30)


def test_seed_and_length_belong_to_the_past() -> None:
    plain = schedule_of([[1, 1, 1]], [30])
    digests = {plain.past_digest(30)} | {
        replace(plain, **{key: 9}).past_digest(30)  # type: ignore[arg-type]
        for key in ("seed", "seq_length")
    }
    assert len(digests) == 3


def test_a_beginning_keeps_the_skips_in_it_and_drops_later_ones() -> None:
    plain = schedule_of([[1, 2, 3]], [60])
    skipped = plain.skip(10, 15, consumed_samples=0).skip(40, 44, consumed_samples=0)
    first = skipped.until(30)
    assert addresses(Sampler(first), 0, 30) == addresses(Sampler(skipped), 0, 30)
    assert first.past_digest(30) == skipped.past_digest(30)
    assert [skip.at_sample for skip in first.skips] == [10]


# --- curriculum, exhaustion and decisions ---------------------------------------------------------------------------


def test_after_the_warm_up_its_buckets_are_not_read_again() -> None:
    warm = Curriculum(pacing="warmup_then_random", warmup_share=0.25)
    # a stretch across the border: the second half of bucket 0 (1/8) and 1/8 of the stage over buckets 1 to 3
    shares = bucket_shares(warm, 4, Fraction(1, 8), Fraction(3, 8))
    assert shares == [Fraction(1, 2), Fraction(1, 6), Fraction(1, 6), Fraction(1, 6)]


def test_buckets_rank_by_name_and_languages_that_are_not_paced_stay() -> None:
    chinese = [entry("law", 2), entry("law", 0), entry("law", 1)]  # as no sort would write them
    english = [entry("law", 0, language="en"), entry("law", 1, language="en")]
    entries = {e.name: e for e in (*chinese, *english)}
    weights = dict(zip(entries, (Fraction(1, 6),) * 3 + (Fraction(1, 8), Fraction(3, 8)), strict=True))
    shares = paced(Curriculum(), weights, [Fraction(1), Fraction(0), Fraction(0)], entries)
    assert shares == {
        chinese[0].name: 0, chinese[1].name: Fraction(1, 2), chinese[2].name: 0,
        english[0].name: Fraction(1, 8), english[1].name: Fraction(3, 8),
    }  # fmt: skip


def book(topic: str) -> SourceEntry:
    return replace(entry(topic, None), name=f"zh/book/{topic}", source="book")


def test_kin_are_buckets_then_topics_then_sources_each_by_what_they_have() -> None:
    law_0, law_1, food, novel = entry("law", 0), entry("law", 1), entry("food", 0), book("novel")
    play = book("play")
    entries = {e.name: e for e in (law_0, law_1, food, novel, play)}
    names = [law_0.name, law_1.name, food.name, novel.name, play.name]
    weights = {name: Fraction(part, 10) for name, part in zip(names, (1, 2, 3, 1, 3), strict=True)}
    first = without(weights, {law_0.name}, entries)  # its topic's other bucket takes all
    assert first[law_1.name] == Fraction(3, 10) and first[food.name] == Fraction(3, 10)
    second = without(weights, {law_0.name, law_1.name}, entries)  # the source's other topic, not the books
    assert second[food.name] == Fraction(6, 10) and second[novel.name] == Fraction(1, 10)
    third = without(weights, {law_0.name, law_1.name, food.name}, entries)  # 0.6 to the books, 1 : 3
    assert third == {novel.name: Fraction(1, 10) + Fraction(6, 40), play.name: Fraction(3, 10) + Fraction(18, 40)}


def test_the_decision_that_starts_last_holds_in_whatever_order_they_are_kept() -> None:
    entries = {e.name: e for e in (entry("law", None), entry("food", None), entry("all", None, language="en"))}
    law, food, english = entries
    plan = [
        PlannedPhase(
            name="s", stage="s", num_samples=90,
            weights={law: Fraction(3, 10), food: Fraction(3, 10), english: Fraction(4, 10)},
        )
    ]  # fmt: skip
    decisions = [
        Reweight(start_sample=60, group="zh/web", ratios=(("law", 0.25), ("food", 0.75))),
        Reweight(start_sample=30, group="zh/web", ratios=(("law", 0.75), ("food", 0.25))),
    ]
    for kept in (decisions, decisions[::-1]):
        shift = GuardShift(start_sample=60, language="en", rise=0.1)
        schedule = compose(plan, kept, entries, seed=1, seq_length=64, shifts=(shift,))
        weights = [{n: w / 2**32 for n, w in phase.weights} for phase in schedule.phases]
        assert weights[1] == pytest.approx({law: 0.45, food: 0.15, english: 0.4}, abs=1e-9)
        # the group keeps 0.5 of 0.6: a quarter and three quarters of it
        assert weights[2] == pytest.approx({law: 0.125, food: 0.375, english: 0.5}, abs=1e-9)
