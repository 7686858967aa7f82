"""Pacing: what each bucket gets, and that topics keep together under a controller."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_mixers.curriculum import Curriculum, Pacing, bucket_shares, buckets_of, paced, steps
from data_mixers.errors import ConfigError
from data_mixers.manifest import ShardEntry, SourceEntry
from data_mixers.mixture import PlannedPhase, Reweight, compose
from data_mixers.sampling import Sampler
from tests.data_mixers.orders import columns

BUCKETS = 40
TOPICS = ("food", "law", "music")


def entry(topic: str, bucket: int | None, *, tokens: int = 64 * 800 + 1, language: str = "zh") -> SourceEntry:
    label = None if bucket is None else f"{bucket:02d}"
    name = "/".join(part for part in (language, "web", topic, label) if part)
    shard = ShardEntry(
        prefix=name, num_documents=1, num_tokens=tokens, text_bytes=tokens, bin_size_bytes=1, idx_size_bytes=1,
        bin_sha256="0", idx_sha256="0",
    )  # fmt: skip
    return SourceEntry(
        name=name, language=language, source="web", topic=topic, bucket=label, role="train", shards=(shard,)
    )


def test_hand_worked_shares() -> None:
    half = Fraction(1, 2)
    up = Curriculum(pacing="low_to_high")
    assert bucket_shares(up, 4, Fraction(0), Fraction(1, 4)) == [1, 0, 0, 0]
    # From 1/8 to 1/2: half of bucket 0 (1/8 of the text) and all of bucket 1 (2/8): one third and two thirds.
    assert bucket_shares(up, 4, Fraction(1, 8), half) == [Fraction(1, 3), Fraction(2, 3), 0, 0]
    down = Curriculum(pacing="high_to_low")
    assert bucket_shares(down, 4, Fraction(0), Fraction(1, 4)) == [0, 0, 0, 1]
    warm = Curriculum(pacing="warmup_then_random", warmup_share=0.5)
    assert steps(warm, 4) == [Fraction(1, 4), half, 1]
    assert bucket_shares(warm, 4, Fraction(1, 4), half) == [0, 1, 0, 0]
    assert bucket_shares(warm, 4, half, Fraction(1)) == [0, 0, half, half]


@given(
    st.sampled_from(["low_to_high", "high_to_low", "random", "warmup_then_random"]),
    st.integers(1, 40),
    st.floats(0.0, 1.0),
)
def test_a_whole_stage_reads_every_bucket_alike(pacing: Pacing, num_buckets: int, warmup_share: float) -> None:
    curriculum = Curriculum(pacing=pacing, warmup_share=warmup_share)
    read, begin = [Fraction(0)] * num_buckets, Fraction(0)
    ends = steps(curriculum, num_buckets)
    assert ends == sorted(set(ends)) and ends[-1] == 1
    for end in ends:
        shares = bucket_shares(curriculum, num_buckets, begin, end)
        assert sum(shares) == 1
        read = [total + (end - begin) * share for total, share in zip(read, shares, strict=True)]
        begin = end
    assert read == [Fraction(1, num_buckets)] * num_buckets


def test_with_twice_the_data_and_five_reweights_every_topic_follows_the_pacing() -> None:
    """Mean consumed quantile of each topic in each tenth of the stage, within 2 % of the pacing's own."""
    curriculum = Curriculum(languages=("zh",))
    entries = {e.name: e for e in [entry(t, b) for t in TOPICS for b in range(BUCKETS)]}
    english = entry("general", None, language="en", tokens=64 * 60000 + 1)
    entries[english.name] = english
    available = sum(e.num_tokens for e in entries.values() if e.language == "zh")
    samples = available // 64  # of which half are Chinese: twice the data needed
    weights = {name: Fraction(1, 2 * len(TOPICS) * BUCKETS) for name in entries if name != english.name}
    weights[english.name] = Fraction(1, 2)
    planned, done, begin = [], 0, Fraction(0)
    for end in steps(curriculum, BUCKETS):
        upto = round(end * samples)
        shares = paced(curriculum, weights, bucket_shares(curriculum, BUCKETS, begin, end), entries)
        planned.append(PlannedPhase(name="s", stage="s", num_samples=upto - done, weights=shares))
        done, begin = upto, end
    ratios = [(0.4, 0.3, 0.3), (0.5, 0.2, 0.3), (0.45, 0.3, 0.25), (0.3, 0.4, 0.3), (0.2, 0.4, 0.4)]
    reweights = [
        Reweight(start_sample=(i + 1) * samples // 6 + 7, group="zh/web", ratios=tuple(zip(TOPICS, r, strict=True)))
        for i, r in enumerate(ratios)
    ]
    sampler = Sampler(compose(planned, reweights, entries, seed=3, seq_length=64))
    names = [source.name for source in sampler.schedule.sources]
    read = columns(sampler, 0, samples)
    assert int(read.epoch.max()) == 0  # nothing is read twice
    for tenth in range(10):
        low, high = tenth * samples // 10, (tenth + 1) * samples // 10
        expected = (tenth + 0.5) / 10
        for topic in TOPICS:
            quantiles = []
            for sample in range(low, high):
                name = names[int(read.source_index[sample])]
                if name.startswith(f"zh/web/{topic}/"):
                    quantiles.append((int(name[-2:]) + 0.5) / BUCKETS)
            mean = sum(quantiles) / len(quantiles)
            assert abs(mean - expected) <= 0.02, (topic, tenth)
    for topic in TOPICS:
        mine = [i for i, name in enumerate(names) if name.startswith(f"zh/web/{topic}/")]
        counts = [int((read.source_index == i).sum()) for i in mine]
        buckets = [int(names[i][-2:]) for i in mine]
        shares = topic_tokens_by_bucket(topic, planned, reweights, samples)
        mean = sum((b + 0.5) / BUCKETS * c for b, c in zip(buckets, counts, strict=True)) / sum(counts)
        exact = sum((b + 0.5) / BUCKETS * s for b, s in enumerate(shares)) / sum(shares)
        assert abs(mean - exact) <= 0.002, topic


def topic_tokens_by_bucket(
    topic: str, planned: list[PlannedPhase], reweights: list[Reweight], samples: int
) -> list[float]:
    """Slow and by another path: sample by sample, the ratio in force times one half, into the bucket of that sample."""
    read = [0.0] * BUCKETS
    ends, total = [], 0
    for phase in planned:
        total += phase.num_samples
        ends.append(total)
    for sample in range(samples):
        bucket = next(i for i, end in enumerate(ends) if sample < end)
        ratio = 1 / len(TOPICS)
        for reweight in reweights:
            if reweight.start_sample <= sample:
                ratio = dict(reweight.ratios)[topic]
        read[bucket] += ratio / 2
    return read


def test_what_is_not_sorted_is_refused_with_the_command_that_sorts() -> None:
    with pytest.raises(ConfigError, match="syne data sort"):
        buckets_of(Curriculum(), [entry("law", None)], where="data.stages[0].curriculum")
    uneven = [entry("food", 0), entry("food", 1), entry("law", 0)]
    with pytest.raises(ConfigError, match=r"zh/web/law has buckets \['00'\]"):
        buckets_of(Curriculum(), uneven, where="data.stages[0].curriculum")


def test_a_language_that_is_to_be_paced_and_has_nothing_sorted_is_named() -> None:
    there = [entry("law", 0), entry("law", 1), entry("general", None, language="en")]
    for languages in (("zh", "en"), ("zh", "cn")):
        with pytest.raises(ConfigError, match=rf"no source of {languages[1]} is sorted .*syne data sort"):
            buckets_of(Curriculum(languages=languages), there, where="data.stages[0].curriculum")
    assert buckets_of(Curriculum(languages=("zh",)), there, where="data.stages[0].curriculum") == 2
