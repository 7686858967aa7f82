"""The order of windows inside an epoch, and skipped ranges: each a bijection or a recorded gap."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mixers.errors import ConfigError
from data_mixers.permutation import Permutation
from data_mixers.ratios import quantise
from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule, ScheduledShard, ScheduledSource
from data_mixers.windows import SourceWindows
from tests.data_mixers.orders import addresses, mapped


def windows_of(num_windows: int) -> SourceWindows:
    shard = ScheduledShard(num_tokens=(num_windows + 1) * 10, sha256="0")
    return SourceWindows(ScheduledSource(name="zh/web/law", shards=(shard,)), seed=3, seq_length=10)


def read(source: SourceWindows, num_draws: int) -> list[int]:
    """Window numbers of the first draws, of the first epoch."""
    return [source.address(draw)[2] // 10 for draw in range(num_draws)]


@given(num_windows=st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_an_epoch_reads_each_window_once(num_windows: int) -> None:
    assert sorted(read(windows_of(num_windows), num_windows)) == list(range(num_windows))


def test_the_permutation_is_one_for_every_size_up_to_10_000() -> None:
    seen = np.zeros(10_001, dtype=np.int64)
    for size in range(1, 10_001):
        numbers = mapped(Permutation(size, 5, "zh/web/law", 0), np.arange(size))
        seen[:size] = 0
        seen[numbers] = 1  # an index outside would be out of range or leave another at 0
        assert numbers.max() < size
        assert seen[:size].all()


def test_neighbouring_windows_are_as_uncorrelated_as_after_numpys_shuffle() -> None:
    size, keys, lags = 10_000, 60, (1, 2, 3, 10)
    ours, numpys = [], []
    for key in range(keys):
        numbers = mapped(Permutation(size, key, "x", 0), np.arange(size))
        shuffled = np.random.default_rng(key).permutation(size)
        for lag in lags:
            ours.append(np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1])
            numpys.append(np.corrcoef(shuffled[:-lag], shuffled[lag:])[0, 1])
    # each correlation has standard deviation 1 / sqrt(size) = 0.01; the mean of 240 has 0.00065, the spread 0.0005
    assert abs(np.mean(ours)) < 4 * 0.01 / len(ours) ** 0.5
    assert abs(np.std(ours) - np.std(numpys)) < 0.003
    assert np.max(np.abs(ours)) < 0.045


def schedule_of(phases: list[tuple[int, list[int]]], *, tokens: int = 5000) -> Schedule:
    names = [f"zh/web/t{index}" for index in range(len(phases[0][1]))]
    shard = ScheduledShard(num_tokens=tokens, sha256="0")
    sources = tuple(ScheduledSource(name=name, shards=(shard,)) for name in names)
    schedule = Schedule(seed=7, seq_length=10, sources=sources)
    for number, (num_samples, parts) in enumerate(phases):
        exact = {name: Fraction(part) for name, part in zip(names, parts, strict=True)}
        schedule = schedule.append_weights(f"phase{number}", num_samples=num_samples, weights=quantise(exact))
    return schedule


def test_after_a_skip_training_goes_on_with_the_data_behind_the_range() -> None:
    plain = schedule_of([(400, [3, 1])])
    skipped = plain.skip(100, 130, consumed_samples=100)
    assert addresses(Sampler(skipped), 0, 100) == addresses(Sampler(plain), 0, 100)
    assert addresses(Sampler(skipped), 100, 370) == addresses(Sampler(plain), 130, 400)
    assert skipped.num_samples == 400
    twice = skipped.skip(200, 205, consumed_samples=150).skip(200, 201, consumed_samples=150)
    assert addresses(Sampler(twice), 200, 364) == addresses(Sampler(plain), 236, 400)


def test_a_skip_leaves_the_past_as_it_was_and_belongs_to_it_afterwards() -> None:
    plain = schedule_of([(300, [3, 1]), (100, [1, 1])])
    skipped = plain.skip(100, 130, consumed_samples=90)
    assert skipped.past_digest(100) == plain.past_digest(100)
    assert skipped.past_digest(101) != plain.past_digest(101)
    assert Schedule.from_json(skipped.to_json()) == skipped


def test_cursors_count_what_was_skipped_so_that_no_later_phase_reads_it() -> None:
    plain = schedule_of([(300, [3, 1]), (100, [1, 1])])
    skipped = plain.skip(100, 130, consumed_samples=90)
    assert sum(Sampler(skipped).cursors(400)) == 430
    left_out = {(a.source_index, a.epoch, a.token_offset) for a in addresses(Sampler(plain), 100, 130)}
    read_ = [(a.source_index, a.epoch, a.token_offset) for a in addresses(Sampler(skipped), 0, 400)]
    assert not left_out & set(read_)
    assert len(set(read_)) == 400


def test_what_is_read_of_each_source_is_counted_without_what_was_skipped() -> None:
    """Counted sample by sample, also where skips touch each other, a phase's first sample and the change of weights."""
    plain = schedule_of([(300, [3, 1]), (100, [1, 1])])
    schedule = plain.skip(0, 7, consumed_samples=0).skip(100, 130, consumed_samples=90)
    schedule = schedule.skip(100, 101, consumed_samples=90).skip(300, 340, consumed_samples=90)
    sampler = Sampler(schedule)
    counted = [0] * len(schedule.sources)
    for sample in range(schedule.num_samples):
        assert sampler.read(sample) == tuple(counted)
        counted[sampler.address(sample).source_index] += 1
    assert sampler.read(schedule.num_samples) == tuple(counted)


@pytest.mark.parametrize(
    ("weights", "most_again"),
    [
        ([[4, 4, 2], [4, 4, 2]], 0),
        ([[4, 4, 2], [5, 3, 2]], 11),  # a tenth more of the first: of the 100 samples behind the border, and a rounding
        ([[1, 1, 0], [1, 1, 2]], 0),  # a source that begins at the border
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 0),  # buckets, one after the other
    ],
)
def test_a_skip_across_a_change_of_weights_reads_at_most_what_a_share_has_risen_by(
    weights: list[list[int]], most_again: int
) -> None:
    plain = schedule_of([(300, each) for each in weights])
    bad = set(addresses(Sampler(plain), 200, 400))
    skipped = plain.skip(200, 400, consumed_samples=200)
    assert skipped.past_digest(200) == plain.past_digest(200)
    read_ = addresses(Sampler(skipped), 0, skipped.num_samples)
    assert len(set(read_)) == len(read_)
    assert len(bad & set(read_)) <= most_again


def test_a_skip_that_changes_the_past_is_refused() -> None:
    plain = schedule_of([(300, [3, 1]), (100, [1, 1])])
    with pytest.raises(ConfigError, match=r"skip 100:130 must be a range of samples that are not read yet"):
        plain.skip(100, 130, consumed_samples=101)
    with pytest.raises(ConfigError, match="skip 5:5"):
        plain.skip(5, 5, consumed_samples=0)
    with pytest.raises(ConfigError, match="begins before the last one, at sample 100"):
        plain.skip(100, 130, consumed_samples=0).skip(50, 60, consumed_samples=0)
