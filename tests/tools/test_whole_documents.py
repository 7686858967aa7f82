"""Whole documents in windows: every document once per epoch, none split, in whatever order windows are read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mixers.errors import ConfigError
from data_mixers.manifest import read_manifest
from data_mixers.ratios import WEIGHT_UNIT
from data_mixers.schedule import Phase, Schedule, scheduled_source
from megatron_synE.data.scheduled_dataset import ScheduledDataset
from megatron_synE.data.tokenizers import load_tokenizer
from tests import tiny
from tests.tools import corpus
from tests.tools.token_files import documents_of
from tools.data import merge
from tools.data.options import SampleOptions, ScoreOptions
from tools.data.preprocess import PreprocessOptions, preprocess
from tools.data.sample import samples
from tools.data.score import score_ppl
from tools.data.scores_file import open_scores
from tools.data.sidecar import read_rows
from tools.data.stats import stats
from tools.data.whole_documents import best_fit, fill_windows

WINDOW = 64


@given(st.lists(st.integers(2, 50), min_size=1, max_size=200), st.integers(50, 90), st.integers(1, 7))
@settings(max_examples=80, deadline=None)
def test_every_document_lies_in_one_window_and_no_window_overflows(
    lengths: list[int], window: int, at_once: int
) -> None:
    array = np.array(lengths, dtype=np.int32)
    window_of = best_fit(array, window=window)
    used = np.bincount(window_of, weights=array)
    assert used.max() <= window
    # best fit never leaves two windows that would go into one
    assert sum(sorted(used)[:2]) > window or len(used) == 1
    seen: list[int] = []
    num_windows = 0
    for documents, last_documents in fill_windows(array, window=window, windows_at_once=at_once):
        assert len(last_documents) <= at_once
        first = 0
        for last in last_documents.tolist():
            members = documents[first : last + 1].tolist()
            assert len({window_of[document] for document in members}) == 1
            assert members == sorted(members)
            seen += members
            first = last + 1
            num_windows += 1
        assert first == len(documents)
    assert sorted(seen) == list(range(len(lengths)))
    assert num_windows == len(used)


def slow_best_fit(lengths: list[int], window: int) -> list[int]:
    """Sums of the windows by the definition: longest first, each into the fullest window with room for it."""
    sums: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [n for n, used in enumerate(sums) if used + length <= window]
        if fitting:
            sums[max(fitting, key=lambda n: sums[n])] += length
        else:
            sums.append(length)
    return sorted(sums)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.integers(30, 60))
@settings(max_examples=80, deadline=None)
def test_windows_are_those_of_best_fit_decreasing(lengths: list[int], window: int) -> None:
    used = np.bincount(best_fit(np.array(lengths), window=window), weights=lengths)
    assert sorted(used.tolist()) == slow_best_fit(lengths, window)


def test_the_fullest_window_with_room_is_taken_and_an_exact_fit_closes_it() -> None:
    # 7 and 6 open windows 0 and 1. The first 3 fits both and goes where it leaves nothing, the second into window 1.
    assert best_fit(np.array([3, 7, 3, 6]), window=10).tolist() == [0, 0, 1, 1]
    # In the order they came (first fit): 5+4, 5+1, 4; longest first: 5+5, 4+4+1.
    assert best_fit(np.array([5, 4, 5, 1, 4]), window=10).tolist() == [0, 1, 0, 1, 1]


def test_short_documents_waste_less_than_two_per_cent() -> None:
    lengths = np.random.default_rng(0).lognormal(5.5, 0.8, 20_000).clip(20, 4096).astype(np.int32)
    used = np.bincount(best_fit(lengths, window=4096), weights=lengths)
    assert 1 - used.sum() / (len(used) * 4096) < 0.02


@pytest.fixture
def options(tmp_path: Path, own_cache: None) -> PreprocessOptions:
    corpus.write_jsonl(tmp_path / "qa.jsonl", corpus.documents(300, seed=5))
    return PreprocessOptions(
        inputs=(str(tmp_path / "qa.jsonl"),),
        tokenizer=corpus.hf_folder(tmp_path / "hf"),
        out=tmp_path / "out",
        language="synthetic",
        source="qa",
        keep_documents_whole=True,
        seq_length=WINDOW,
    )


def test_every_epoch_reads_every_document_once_and_whole(
    options: PreprocessOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "MERGE_TOKENS", 5 * WINDOW)
    monkeypatch.setattr("tools.data.preprocess.PACKED_SHARD_TOKENS", 2500)  # several files
    report = preprocess(options)
    tokenizer = load_tokenizer(options.tokenizer)
    encoded = [
        [*ids.tolist(), tokenizer.eos_id] for ids in tokenizer.encode_ordinary_batch(corpus.documents(300, seed=5))
    ]
    expected = sorted(document for document in encoded if len(document) <= WINDOW)
    assert report.num_too_long == 300 - len(expected) > 0
    assert report.num_documents == len(expected)
    manifest = read_manifest(report.manifest_path)
    (entry,) = manifest.sources
    assert len(entry.shards) > 2
    assert entry.packed_seq_length == WINDOW
    num_windows = sum((shard.num_tokens - 1) // WINDOW for shard in entry.shards)
    phase = Phase(name="a", start_sample=0, num_samples=3 * num_windows, weights=((entry.name, WEIGHT_UNIT),))
    schedule = Schedule(seed=1, seq_length=WINDOW, sources=(scheduled_source(entry),), phases=(phase,))
    dataset = ScheduledDataset(schedule, [manifest])
    orders = []
    for epoch in range(3):
        read, order = [], []
        for number in range(epoch * num_windows, (epoch + 1) * num_windows):
            sample = dataset[number]
            tokens = sample.tokens[:-1].tolist()  # the inputs; the last token is only a label
            order.append(tuple(tokens))
            bounds = [*sample.document_starts.tolist(), WINDOW]
            pieces = [tokens[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
            read += [piece for piece in pieces if piece[0] != tokenizer.eos_id]
            assert tokens[-1] == tokenizer.eos_id
        assert sorted(read) == expected
        orders.append(order)
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_the_sidecar_names_every_document_and_leaves_fillers_empty(options: PreprocessOptions) -> None:
    report = preprocess(options)
    manifest = read_manifest(report.manifest_path)
    (shard,) = manifest.sources[0].shards
    rows = list(read_rows(manifest.shard_prefix(shard)))
    assert len(rows) == shard.num_documents
    assert sum(row["num_tokens"] for row in rows) == shard.num_tokens
    fillers = [row for row in rows if row["id"] is None]
    assert sum(row["num_tokens"] for row in fillers) == report.num_filler_tokens > 0
    assert all(row["text_bytes"] == 0 and row["file"] is None for row in fillers)
    assert len({row["id"] for row in rows if row["id"]}) == report.num_documents


@pytest.mark.parametrize(("most", "level"), [(1.0, "INFO"), (0.0, "WARNING")])
def test_tokens_that_fill_windows_are_told_and_too_many_are_a_warning(
    options: PreprocessOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    most: float,
    level: str,
) -> None:
    monkeypatch.setattr("tools.data.preprocess.MOST_WASTE", most)
    caplog.set_level("INFO")
    report = preprocess(options)
    share = 100 * report.num_filler_tokens / report.sources[0].num_tokens
    told = [record for record in caplog.records if "fill them up" in record.getMessage()]
    assert [(record.levelname, record.getMessage()) for record in told] == [
        (level, f"{share:.2f} % of the windows' tokens fill them up")
    ]


def test_another_seq_length_is_refused_with_the_cure(options: PreprocessOptions) -> None:
    entry = preprocess(options).sources[0]
    with pytest.raises(ConfigError, match=r"packed for training\.seq_length=64, not 32.*--seq-length 32"):
        Schedule(seed=1, seq_length=32, sources=(scheduled_source(entry),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_length": None}, "--keep-documents-whole and --seq-length go together"),
        ({"keep_documents_whole": False}, "--keep-documents-whole and --seq-length go together"),
        ({"seq_length": 1}, "--seq-length 1 must be at least 2"),
        ({"role": "validation"}, "--keep-documents-whole is for training data"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: PreprocessOptions, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        preprocess(replace(options, **change))  # type: ignore[arg-type]


def test_eos_that_fills_up_windows_is_not_scored(tmp_path: Path) -> None:
    tokenizer = corpus.hf_folder(tmp_path / "tokenizer")
    source, data = corpus.write_jsonl(tmp_path / "pages.jsonl", corpus.documents(60)), tmp_path / "data"
    pages = PreprocessOptions(inputs=(str(source),), tokenizer=tokenizer, out=data)
    preprocess(replace(pages, keep_documents_whole=True, seq_length=512))
    hf = tiny.hf_folder(tmp_path / "hf", vocab_size=700, num_hidden_layers=1)
    score_ppl(ScoreOptions(data=data, hf=hf, precision="fp32", device="cpu", seq_length=128))
    manifest = read_manifest(data)
    (shard,) = manifest.sources[0].shards
    rows = open_scores(manifest.shard_prefix(shard), shard, "default").read().to_pylist()
    documents = documents_of(manifest.shard_prefix(shard))
    fillers = [set(document.tolist()) == {manifest.tokenizer.eos_id} for document in documents]
    assert max(len(document) for document, is_one in zip(documents, fillers, strict=True) if is_one) > 100
    for row, document, is_filler in zip(rows, documents, fillers, strict=True):
        assert row["nll_tokens"] == (0 if is_filler else len(document) - 1)
        assert (row["nll_sum"] == 0) == is_filler
    (found,) = stats(data)
    assert found.num_scored == found.num_documents == 60
    assert found.num_tokens == sum(map(len, documents))
    assert found.longest == max(len(d) for d, is_one in zip(documents, fillers, strict=True) if not is_one)
    shown = samples(SampleOptions(data=data, tokenizer=tokenizer, num=1000))
    assert sorted(entry.text for entry in shown) == sorted(corpus.documents(60))
