"""Runs as one task writes them: every document once, by topic and key, with its tokens, its id and its place."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_mixers.errors import DataError
from megatron_synE.data.tokenizers import load_tokenizer
from tests.tools import corpus
from tests.tools.token_files import Counted, documents_of
from tools.data import merge, spool
from tools.data.merge import MergeSettings, RunReader, ShardTask
from tools.data.options import PreprocessOptions
from tools.data.readers import plan_tasks
from tools.data.spool import META, RunSegment, TaskResult, TaskSettings, tokenise_task

TOPICS = ["law", "law", "art", "art", "art", "law", "art"]
TEXTS = [f"{number} {'water boils at 100 degrees ' * (number + 1)}" for number in range(len(TOPICS))]


@pytest.fixture
def settings(tmp_path: Path) -> TaskSettings:
    (tmp_path / "runs").mkdir()
    options = PreprocessOptions(
        inputs=(), out=tmp_path / "out", tokenizer=corpus.hf_folder(tmp_path / "hf"), topic_key="topic",
        seed=3, max_document_bytes=1 << 20,
    )  # fmt: skip
    return TaskSettings(options=options, runs=tmp_path / "runs", engine="reference", dtype="uint16")


def changed(settings: TaskSettings, **options: int) -> TaskSettings:
    return replace(settings, options=replace(settings.options, **options))


def tokenised(folder: Path, settings: TaskSettings, rows: list[object]) -> TaskResult:
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / "a.jsonl").write_text(lines)
    tasks = plan_tasks([folder / "a.jsonl"])
    return TaskResult.from_json(tokenise_task(tasks, settings, 0, lambda _: None))


ROWS: list[object] = [{"text": text, "topic": topic} for text, topic in zip(TEXTS, TOPICS, strict=True)]


def test_ids_of_many_runs_are_found_without_going_through_all_documents_for_each(tmp_path: Path) -> None:
    segments, owners, metas, names = [], [], [], []
    for run in range(60):
        meta = np.zeros(20, dtype=META)
        ids = [f"page-{run}-{row}".encode() if (run + row) % 3 else b"" for row in range(len(meta))]
        meta["id_bytes"] = [len(name) for name in ids]
        meta["id_start"] = np.cumsum(meta["id_bytes"]) - meta["id_bytes"]
        (tmp_path / str(run)).write_bytes(meta.tobytes() + b"".join(ids))
        place = {"meta_offset": 0, "id_offset": meta.nbytes, "num_documents": len(meta), "num_tokens": 0}
        segments.append(RunSegment(file=str(run), topic="law", **place))
        owners, metas, names = [*owners, *[run] * len(meta)], [*metas, meta], [*names, *ids]
    order = np.random.default_rng(0).permutation(len(names))
    reader = RunReader(tmp_path, segments, "uint16", topic="law")
    segment_of = np.array(owners)[order].view(Counted)
    Counted.read = 0
    assert reader.ids(segment_of, np.concatenate(metas)[order]) == [names[row].decode() for row in order]
    assert Counted.read < 5 * len(names)
    assert reader.ids(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=META)) == []


def test_many_short_documents_are_few_in_memory(
    tmp_path: Path, settings: TaskSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "BATCH_DOCUMENTS", 50)
    monkeypatch.setattr(spool, "RUN_DOCUMENTS", 100)
    monkeypatch.setattr(merge, "MERGE_DOCUMENTS", 30)
    result = tokenised(tmp_path, settings, [{"text": f"{number} w", "topic": "law"} for number in range(320)])
    assert [segment.num_documents for segment in result.segments] == [100, 100, 100, 20]
    reader = RunReader(settings.runs, result.segments, "uint16", topic="law")
    ranges = [meta for _, meta in reader.ranges(0, 1)]
    assert max(map(len, ranges)) < 60
    keys = np.concatenate(ranges)["key"]
    assert (len(keys), keys.tolist()) == (320, sorted(keys.tolist()))


def test_what_is_held_out_is_found_in_one_pass_over_the_runs(
    tmp_path: Path, settings: TaskSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "BATCH_DOCUMENTS", 1)
    monkeypatch.setattr(spool, "RUN_DOCUMENTS", 4)
    monkeypatch.setattr(merge, "MERGE_TOKENS", 16)
    texts = [f"{number % 50} water boils" for number in range(60)]
    result = tokenised(tmp_path, settings, [{"text": text, "topic": "law"} for text in texts])
    reader = RunReader(settings.runs, result.segments, "uint16", topic="law")
    sorted_metas = np.concatenate([meta for _, meta in reader.ranges(0, 1)])
    digests = [int(high) << 64 | int(low) for high, low in zip(sorted_metas["high"], sorted_metas["low"], strict=True)]
    chosen = sorted(set(digests))[:20]
    expected = [digest for digest in dict.fromkeys(digests) if digest in chosen]

    searches = 0
    own = merge.bisect_left

    def counted(keys: Any, limit: int) -> int:
        nonlocal searches
        searches += 1
        return own(keys, limit)

    monkeypatch.setattr(merge, "bisect_left", counted)
    task = ShardTask(topic="law", prefix=tmp_path / "held", shard=0, num_shards=1, num_tokens=0)
    told: list[int] = []
    merge.write_held_out([task], merge_settings(settings, result), [chosen], 0, told.append)
    raw = (tmp_path / "held.digests").read_bytes()
    found = [int.from_bytes(raw[start : start + 16], "big") for start in range(0, len(raw), 16)]
    assert found == expected
    assert (sum(told), searches) == (int(sorted_metas["length"].sum()), 0)
    tokenizer = load_tokenizer(settings.options.tokenizer, engine="reference")
    texts_held = {tokenizer.decode(document[:-1]) for document in documents_of(tmp_path / "held")}
    by_digest = {int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"): text for text in texts}
    assert texts_held == {by_digest[digest] for digest in chosen}


def merge_settings(settings: TaskSettings, result: TaskResult) -> MergeSettings:
    return MergeSettings(
        runs=settings.runs, segments=result.segments, inputs=("a.jsonl",), dtype="uint16", eos_id=0, held_out=None,
        keep_digests=True, window=None,
    )  # fmt: skip


@pytest.mark.parametrize("batch_bytes", [1, 1 << 20], ids=["a run a document", "one run"])
def test_a_run_holds_the_topics_it_has_and_all_documents_are_in_one(
    tmp_path: Path, settings: TaskSettings, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    monkeypatch.setattr(spool, "BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(spool, "RUN_BYTES", 1 if batch_bytes == 1 else 1 << 20)
    rows = [dict(row) for row in ROWS if isinstance(row, dict)]
    rows[2] |= {"id": "page-2", "topic_confidence": 0.5}
    rows[4] |= {"id": 44, "topic_confidence": 1}
    rows[5] |= {"id": "", "topic_confidence": "very"}
    rows[6] |= {"id": ["x"]}
    result = tokenised(tmp_path, settings, list(rows))
    assert (result.num_lines, result.num_records, result.num_bad, result.num_too_long) == (7, 7, 0, 0)
    assert len(result.segments) == (7 if batch_bytes == 1 else 2)
    assert sorted({segment.file for segment in result.segments}) == sorted(p.name for p in settings.runs.iterdir())
    tokenizer = load_tokenizer(settings.options.tokenizer, engine="reference")
    places = np.cumsum([0, *(len(json.dumps(row)) + 1 for row in rows)]).tolist()
    seen = []
    for segment in result.segments:
        reader = RunReader(settings.runs, [segment], settings.dtype, topic=segment.topic)
        ((segment_of, meta),) = reader.ranges(0, 1)
        assert len(meta) == segment.num_documents > 0
        assert int(meta["length"].sum()) == segment.num_tokens
        assert meta["key"].tolist() == sorted(meta["key"].tolist())
        stops = np.cumsum(meta["length"])
        documents = np.split(reader.tokens(segment_of, meta), stops[:-1])
        for row, document, name in zip(meta, documents, reader.ids(segment_of, meta), strict=True):
            number = places.index(int(row["place"]))
            (ids,) = tokenizer.encode_ordinary_batch([TEXTS[number]])
            assert document.tolist() == [*ids.tolist(), tokenizer.eos_id]
            assert segment.topic == TOPICS[number]
            assert int(row["text_bytes"]) == len(TEXTS[number])
            assert name == {2: "page-2", 4: "44"}.get(number, "")
            assert {2: 0.5, 4: 1.0}.get(number) == (None if np.isnan(row["confidence"]) else row["confidence"])
            seen.append(number)
    assert sorted(seen) == list(range(7))


def test_the_order_hangs_on_seed_text_and_place_alone(
    tmp_path: Path, settings: TaskSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(settings: TaskSettings) -> dict[int, int]:
        result = tokenised(tmp_path, settings, ROWS)
        readers = [RunReader(settings.runs, result.segments, settings.dtype, topic=topic) for topic in set(TOPICS)]
        return {int(row["place"]): int(row["key"]) for reader in readers for meta in reader.metas() for row in meta}

    first = keys(settings)
    assert len(set(first.values())) == 7
    monkeypatch.setattr(spool, "BATCH_BYTES", 1)
    assert keys(settings) == first
    assert not set(keys(changed(settings, seed=4)).values()) & set(first.values())


def test_lines_that_are_left_out_are_counted_and_told(tmp_path: Path, settings: TaskSettings) -> None:
    tokenizer = load_tokenizer(settings.options.tokenizer, engine="reference")
    (ids,) = tokenizer.encode_ordinary_batch([TEXTS[5]])
    longest = len(ids) + 1
    rows = [ROWS[0], "", "[1]", ROWS[6], {"text": "x", "topic": "a/b"}, ROWS[5]]
    result = tokenised(tmp_path, changed(settings, seq_length=longest), rows)
    (longer,) = tokenizer.encode_ordinary_batch([TEXTS[6]])
    assert (result.num_lines, result.num_records, result.num_bad, result.num_too_long) == (6, 5, 2, 1)
    assert result.read_bad_lines(settings.runs, 0) == [
        (3, "not a JSON object"),
        (4, f"{len(longer) + 1} tokens with EOS, longer than a window of {longest}"),
        (5, "topic 'a/b' cannot be part of a source name"),
    ]
    assert sum(segment.num_documents for segment in result.segments) == 2  # one just fits


def test_input_that_is_none_is_given_up_after_a_thousand_lines(tmp_path: Path, settings: TaskSettings) -> None:
    bad = ["[1]"] * 999
    assert tokenised(tmp_path, settings, [*bad, ROWS[0], "[1]"]).num_bad == 1000
    with pytest.raises(DataError, match="none of 1000 lines is a document; line 1 of the part from 0: not a JSON obj"):
        tokenised(tmp_path, settings, [*bad, "[1]", ROWS[0]])
