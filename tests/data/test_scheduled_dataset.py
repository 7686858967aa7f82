"""From a config's stages to tokens: schedules that fit the data, samples that equal a slow read of it."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import (
    SCHEMA_VERSION,
    DatasetManifest,
    Role,
    ShardEntry,
    SourceEntry,
    TokenizerIdentity,
)
from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule
from megatron_synE.config.schema import StageSection
from megatron_synE.data.build_schedule import build_schedule
from megatron_synE.data.indexed import IndexedWriter
from megatron_synE.data.scheduled_dataset import ScheduledDataset
from tests.data_mixers.orders import addresses

SEQ_LENGTH = 16
EOS = 1
IDENTITY = TokenizerIdentity(digest="d", vocab_size=1000, eos_id=EOS, bos_id=None)


def documents(seed: int, count: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[*rng.integers(2, 1000, size=int(rng.integers(1, 30))).tolist(), EOS] for _ in range(count)]


def shard(folder: Path, prefix: str, docs: list[list[int]]) -> ShardEntry:
    with IndexedWriter(folder / prefix, dtype="uint16") as writer:
        for document in docs:
            writer.add_document(np.array(document))
    assert writer.written is not None
    return ShardEntry(prefix=prefix, text_bytes=1, **vars(writer.written))


def source(folder: Path, name: str, *shards: list[list[int]], role: Role = "train") -> SourceEntry:
    language, kind, topic = name.split("@")[0].split("/")
    entries = tuple(shard(folder, f"{name.replace('/', '__')}-{n}", docs) for n, docs in enumerate(shards))
    return SourceEntry(name=name, language=language, source=kind, topic=topic, bucket=None, role=role, shards=entries)


@pytest.fixture
def manifest(tmp_path: Path) -> DatasetManifest:
    sources = (
        source(tmp_path, "zh/web/law", documents(1, 60), documents(2, 30)),
        source(tmp_path, "en/web/math", documents(3, 80)),
        source(tmp_path, "en/web/math@holdout", documents(4, 5), role="validation"),
    )
    return DatasetManifest(
        schema_version=SCHEMA_VERSION, folder=tmp_path, tokenizer=IDENTITY, dtype="uint16", sources=sources
    )


def stage(tokens: int = 1000, zh: float = 0.2, name: str = "one") -> StageSection:
    return StageSection(name=name, tokens=tokens, languages={"zh": zh, "en": 1 - zh})


def test_each_sample_equals_a_slow_read_of_the_documents(manifest: DatasetManifest) -> None:
    schedule = build_schedule([stage(4000, 0.5)], [manifest], 3, SEQ_LENGTH, 4)
    dataset = ScheduledDataset(schedule, [manifest])
    flat = {
        ("zh/web/law", 0): documents(1, 60),
        ("zh/web/law", 1): documents(2, 30),
        ("en/web/math", 0): documents(3, 80),
    }
    assert len(dataset) == 252  # 4000 / 16 = 250 sequences, in whole batches of 4
    for number, place in enumerate(addresses(Sampler(schedule), 0, len(dataset))):
        sample = dataset[number]
        docs = flat[(schedule.sources[place.source_index].name, place.shard_index)]
        tokens = [token for document in docs for token in document]
        starts = set(np.cumsum([0, *map(len, docs)]).tolist())
        inside = range(place.token_offset, place.token_offset + SEQ_LENGTH)
        assert sample.tokens.tolist() == tokens[place.token_offset : place.token_offset + SEQ_LENGTH + 1]
        assert sample.tokens.dtype == np.int64
        assert sample.document_starts.tolist() == [0] + [n for n, t in enumerate(inside) if t in starts and n > 0]
        assert sample.source_index == place.source_index


def test_a_pickled_dataset_gives_the_same_samples(manifest: DatasetManifest) -> None:
    dataset = ScheduledDataset(build_schedule([stage()], [manifest], 3, SEQ_LENGTH, 4), [manifest])
    before = dataset[5]
    again = pickle.loads(pickle.dumps(dataset))[5]
    assert np.array_equal(before.tokens, again.tokens)
    assert np.array_equal(before.document_starts, again.document_starts)


def test_another_order_reads_the_same_files_and_other_sources_are_refused(manifest: DatasetManifest) -> None:
    first, second = (build_schedule([stage(zh=zh)], [manifest], 3, SEQ_LENGTH, 4) for zh in (0.2, 0.6))
    dataset = ScheduledDataset(first, [manifest])
    assert dataset[5].source_index in (0, 1)  # the sampler of the first order has been made
    turned, fresh = dataset.with_schedule(second), ScheduledDataset(second, [manifest])
    found = [(turned[n].tokens.tolist(), turned[n].source_index) for n in range(len(fresh))]
    assert found == [(fresh[n].tokens.tolist(), fresh[n].source_index) for n in range(len(fresh))]
    assert dataset.schedule == first
    with pytest.raises(ConfigError, match="must have the same sources"):
        dataset.with_schedule(build_schedule([stage(zh=1.0)], [manifest], 3, SEQ_LENGTH, 4))


def test_every_token_of_an_epoch_but_the_ends_is_a_target_once(tmp_path: Path) -> None:
    docs = documents(7, 50)
    entry = source(tmp_path, "zh/web/law", docs)
    manifest = DatasetManifest(
        schema_version=SCHEMA_VERSION, folder=tmp_path, tokenizer=IDENTITY, dtype="uint16", sources=(entry,)
    )
    num_tokens = entry.num_tokens
    windows = (num_tokens - SEQ_LENGTH) // SEQ_LENGTH
    plan = StageSection(name="all", tokens=windows * SEQ_LENGTH, languages={"zh": 1.0})
    schedule = build_schedule([plan], [manifest], 3, SEQ_LENGTH, 1)
    targets = np.zeros(num_tokens, dtype=int)
    for place in addresses(Sampler(schedule), 0, windows):
        targets[place.token_offset + 1 : place.token_offset + SEQ_LENGTH + 1] += 1
    assert targets.max() == 1
    assert num_tokens - targets.sum() < 2 * SEQ_LENGTH


def test_a_stage_added_at_the_end_leaves_earlier_samples_unchanged(manifest: DatasetManifest) -> None:
    short = build_schedule([stage(name="a", zh=1.0)], [manifest], 3, SEQ_LENGTH, 4)
    longer = build_schedule([stage(name="a", zh=1.0), stage(name="b")], [manifest], 3, SEQ_LENGTH, 4)
    assert [source.name for source in longer.sources] == ["zh/web/law", "en/web/math"]
    assert addresses(Sampler(longer), 0, short.num_samples) == addresses(Sampler(short), 0, short.num_samples)
    assert longer.past_digest(short.num_samples) == short.past_digest(short.num_samples)


def test_a_plan_that_reads_too_often_is_refused_unless_it_is_wanted(manifest: DatasetManifest) -> None:
    tokens = 10 * manifest.sources[0].num_tokens
    with pytest.raises(ConfigError, match=r"data\.max_epochs=4.*zh/web/law 10\.\d+"):
        build_schedule([stage(tokens, 1.0)], [manifest], 3, SEQ_LENGTH, 4)
    allowed = build_schedule([stage(tokens, 1.0)], [manifest], 3, SEQ_LENGTH, 4, max_epochs=12)
    assert allowed.num_samples * SEQ_LENGTH >= tokens
    with pytest.raises(ConfigError, match=r"data\.exhaustion is stop"):
        build_schedule([stage(tokens // 7, 1.0)], [manifest], 3, SEQ_LENGTH, 4, exhaustion="stop")


def test_samples_left_out_bring_a_source_to_its_end_the_sooner(manifest: DatasetManifest) -> None:
    """The plan reads all of law but less than a batch; 8 samples left out of it would have some read again."""
    windows = sum((shard.num_tokens - SEQ_LENGTH) // SEQ_LENGTH for shard in manifest.sources[0].shards)
    tokens = windows // 4 * 4 * SEQ_LENGTH

    def built(*skips: tuple[int, int]) -> Schedule:
        whole = [stage(tokens, 1.0)]
        return build_schedule(whole, [manifest], 3, SEQ_LENGTH, 4, exhaustion="stop", skips=skips)

    assert {place.epoch for place in addresses(Sampler(built()), 0, built().num_samples)} == {0}
    with pytest.raises(ConfigError, match=r"data\.exhaustion is stop.*zh/web/law 1\.\d+"):
        built((8, 16))


def test_a_held_out_source_can_not_be_asked_for(manifest: DatasetManifest) -> None:
    held_out_only = replace(manifest, sources=(manifest.sources[0], manifest.sources[2]))
    with pytest.raises(ConfigError, match=r"data\.stages\[0\]\.languages\.en has only held-out"):
        build_schedule([stage()], [held_out_only], 3, SEQ_LENGTH, 4)


def test_a_source_too_small_for_a_window_is_named(manifest: DatasetManifest, tmp_path: Path) -> None:
    tiny = replace(manifest, sources=(source(tmp_path, "zh/web/tiny", [[5, EOS]]), manifest.sources[1]))
    with pytest.raises(ConfigError, match="zh/web/tiny is too small"):
        build_schedule([stage()], [tiny], 3, SEQ_LENGTH, 4)


def test_manifests_of_two_tokenizers_or_with_one_name_twice_are_refused(manifest: DatasetManifest) -> None:
    other = replace(manifest, tokenizer=replace(IDENTITY, digest="e"))
    with pytest.raises(DataError, match="tokenised with another tokenizer"):
        build_schedule([stage()], [manifest, other], 3, SEQ_LENGTH, 4)
    with pytest.raises(DataError, match=r"zh/web/law occurs in two of data\.manifests"):
        build_schedule([stage()], [manifest, manifest], 3, SEQ_LENGTH, 4)


def test_a_token_id_outside_the_vocabulary_names_file_and_place(manifest: DatasetManifest) -> None:
    small = replace(manifest, tokenizer=replace(IDENTITY, vocab_size=900))
    schedule = build_schedule([stage()], [small], 3, SEQ_LENGTH, 4)
    dataset = ScheduledDataset(schedule, [small])
    with pytest.raises(DataError, match=r"\.bin: token id 9\d\d at token \d+ is outside the vocabulary of 900"):
        [dataset[i] for i in range(len(dataset))]


def test_other_data_under_a_scheduled_name_is_refused(manifest: DatasetManifest, tmp_path: Path) -> None:
    schedule = build_schedule([stage()], [manifest], 3, SEQ_LENGTH, 4)
    other = tmp_path / "other"
    other.mkdir()
    changed = replace(
        manifest,
        folder=other,
        sources=(source(other, "zh/web/law", documents(9, 60), documents(2, 30)), manifest.sources[1]),
    )
    with pytest.raises(DataError, match=r"zh/web/law in .*other is not the data the schedule was made of"):
        ScheduledDataset(schedule, [changed])
    with pytest.raises(DataError, match=r"in none of data\.manifests"):
        ScheduledDataset(schedule, [replace(manifest, sources=manifest.sources[1:])])


def test_a_held_out_source_in_disguise_is_refused(manifest: DatasetManifest) -> None:
    schedule = build_schedule([stage()], [manifest], 3, SEQ_LENGTH, 4)
    disguised = replace(manifest, sources=(replace(manifest.sources[0], role="validation"), *manifest.sources[1:]))
    with pytest.raises(ConfigError, match="zh/web/law has role validation"):
        ScheduledDataset(schedule, [disguised])
