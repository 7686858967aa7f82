"""Preprocessing: every document in once or accounted for, one order for any workers, nothing half-written."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard

from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import DatasetManifest, read_manifest
from megatron_synE.data.tokenizers import load_tokenizer
from tests.rows import contents
from tests.tools import corpus
from tests.tools.token_files import documents_of, score
from tools.data import merge, readers, spool
from tools.data.options import SortOptions
from tools.data.preprocess import PreprocessOptions, preprocess
from tools.data.sidecar import read_rows
from tools.data.sort import sort

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def options(tmp_path: Path) -> PreprocessOptions:
    """60 documents in two topics."""
    texts = corpus.documents(60)
    topics = ["law" if number % 3 else "数学" for number in range(60)]
    corpus.write_jsonl(tmp_path / "a.jsonl", texts, topics=topics)
    return PreprocessOptions(
        inputs=(str(tmp_path / "a.jsonl"),),
        tokenizer=corpus.hf_folder(tmp_path / "hf"),
        out=tmp_path / "out",
        language="zh",
        topic_key="topic",
    )


def texts_of(manifest: DatasetManifest, name: str, tokenizer: Path) -> list[str]:
    """The documents of a source, decoded by HF; each must end in EOS and hold no other."""
    from tokenizers import Tokenizer

    decoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    entry = next(entry for entry in manifest.sources if entry.name == name)
    documents = [ids.tolist() for ids in documents_of(manifest.shard_prefix(entry.shards[0]))]
    assert all(ids.index(manifest.tokenizer.eos_id) == len(ids) - 1 for ids in documents)
    return [decoder.decode(ids[:-1], skip_special_tokens=False) for ids in documents]


def without_sidecars(folder: Path) -> dict[str, bytes]:
    """Row groups of a sidecar follow the steps of the merge; its rows do not."""
    return {name: content for name, content in contents(folder).items() if not name.endswith(".parquet")}


def test_every_document_is_written_once_with_eos_and_counts_that_add_up(options: PreprocessOptions) -> None:
    report = preprocess(options)
    manifest = read_manifest(report.manifest_path)
    expected = corpus.documents(60)
    assert [entry.name for entry in manifest.sources] == ["zh/web/law", "zh/web/数学"]
    law = texts_of(manifest, "zh/web/law", options.tokenizer)
    assert sorted(law) == sorted(text for number, text in enumerate(expected) if number % 3)
    assert law != [text for number, text in enumerate(expected) if number % 3]  # neighbours are mixed
    assert manifest.sources[0].text_bytes == sum(len(text.encode()) for text in law)
    assert manifest.sources[0].num_documents == len(law)
    assert sum(entry.num_documents for entry in manifest.sources) == report.num_records == 60
    hf_tokens = sum(
        len(ids) for ids in load_tokenizer(options.tokenizer, engine="reference").encode_ordinary_batch(law)
    )
    assert manifest.sources[0].num_tokens == hf_tokens + len(law)
    assert manifest.dtype == "uint16"
    assert manifest.tokenizer == load_tokenizer(options.tokenizer).identity()


def test_two_workers_and_small_pieces_write_the_very_same_files(
    options: PreprocessOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.write_jsonl(tmp_path / "b.jsonl", corpus.documents(50, seed=9), topics=["law"] * 50)
    options = replace(options, inputs=(str(tmp_path / "*.jsonl"),), holdout=3)
    preprocess(replace(options, out=tmp_path / "one"))
    preprocess(replace(options, out=tmp_path / "two", workers=2))
    assert not (tmp_path / "one" / ".work").exists()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    # runs of a few documents and a merge in many steps: the external shuffle as it happens with large input
    monkeypatch.setattr(spool, "BATCH_BYTES", 300)
    monkeypatch.setattr(spool, "RUN_BYTES", 900)
    monkeypatch.setattr(merge, "MERGE_TOKENS", 200)
    preprocess(replace(options, out=tmp_path / "many"))
    assert without_sidecars(tmp_path / "one") == without_sidecars(tmp_path / "many")
    for path in (tmp_path / "one").glob("*.bin"):
        prefix = path.name.removesuffix(".bin")
        assert list(read_rows(tmp_path / "one" / prefix)) == list(read_rows(tmp_path / "many" / prefix))


def test_another_seed_is_another_order_of_the_same_documents(options: PreprocessOptions, tmp_path: Path) -> None:
    one = texts_of(read_manifest(preprocess(options).manifest_path), "zh/web/law", options.tokenizer)
    other = preprocess(replace(options, seed=2, out=tmp_path / "other"))
    two = texts_of(read_manifest(other.manifest_path), "zh/web/law", options.tokenizer)
    assert one != two
    assert sorted(one) == sorted(two)


def test_neighbouring_documents_are_as_uncorrelated_as_after_numpys_shuffle(tmp_path: Path) -> None:
    size, seeds, lags = 3000, 4, (1, 2, 3, 10)
    texts = [f"{number} water" for number in range(size)]
    tokenizer = load_tokenizer(corpus.hf_folder(tmp_path / "hf"))
    number_of = {tuple(ids.tolist()): number for number, ids in enumerate(tokenizer.encode_ordinary_batch(texts))}
    pages = corpus.write_jsonl(tmp_path / "pages.jsonl", texts)
    ours, numpys = [], []
    for seed in range(seeds):
        report = preprocess(
            PreprocessOptions(inputs=(str(pages),), tokenizer=tmp_path / "hf", out=tmp_path / str(seed), seed=seed)
        )
        documents = documents_of(report.manifest_path.parent / report.sources[0].shards[0].prefix)
        order = np.array([number_of[tuple(ids[:-1].tolist())] for ids in documents])
        assert sorted(order.tolist()) == list(range(size))
        shuffled = np.random.default_rng(seed).permutation(size)
        for lag in lags:
            ours.append(np.corrcoef(order[:-lag], order[lag:])[0, 1])
            numpys.append(np.corrcoef(shuffled[:-lag], shuffled[lag:])[0, 1])
    # each has standard deviation 1 / sqrt(3000) = 0.018, the mean of 16 has 0.0046; 4 of them each
    for found in (ours, numpys):
        assert np.max(np.abs(found)) < 0.073
        assert abs(np.mean(found)) < 0.019


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100, 999, 10**6])
def test_byte_ranges_read_every_line_once_whatever_their_size(tmp_path: Path, chunk_bytes: int) -> None:
    path = tmp_path / "a.jsonl"
    texts = corpus.documents(30)
    path.write_text(
        "\ufeff" + "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    )  # no last newline
    tasks = readers.plan_tasks([path], chunk_bytes=chunk_bytes)
    assert len(tasks) == -(-path.stat().st_size // chunk_bytes)
    records = [
        record
        for task in tasks
        for record in readers.read_task(task, text_key="text", topic_key=None, on_bytes=lambda _: None)
    ]
    assert [record.text for record in records if isinstance(record, readers.Record)] == texts


def test_gz_zst_and_parquet_hold_the_same_documents_as_jsonl(options: PreprocessOptions, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = corpus.documents(40, seed=4)
    raw = corpus.write_jsonl(tmp_path / "plain.jsonl", texts).read_bytes()
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]))  # two members
    compressor = zstandard.ZstdCompressor()
    (tmp_path / "d.jsonl.zst").write_bytes(
        compressor.compress(raw[:777]) + compressor.compress(raw[777:])
    )  # two frames
    pyarrow.parquet.write_table(
        pyarrow.table({"text": texts, "n": range(40)}), tmp_path / "e.parquet", row_group_size=7
    )
    for name in ("plain.jsonl", "c.jsonl.gz", "d.jsonl.zst", "e.parquet"):
        report = preprocess(
            replace(options, inputs=(str(tmp_path / name),), out=tmp_path / f"out-{name}", topic_key=None, topic="law")
        )
        manifest = read_manifest(report.manifest_path)
        assert sorted(texts_of(manifest, "zh/web/law", options.tokenizer)) == sorted(texts)


BAD_LINES = [
    (b'{"text": "cut off', "broken JSON"),
    (b'{"topic": "law"}', "missing key text"),
    (b'{"text": "no topic"}', "missing key topic"),
    (b'{"text": 5, "topic": "law"}', "text is not text"),
    (b'{"text": null, "topic": "law"}', "text is not text"),
    (b'{"text": " \\n", "topic": "law"}', "text is empty"),
    (b'{"text": "a\\u0000b", "topic": "law"}', "text holds a NUL character"),
    (b'{"text": "\xff\xfe", "topic": "law"}', "invalid UTF-8 at byte 10"),
    (b'["text"]', "not a JSON object"),
    (b'{"text": "x", "topic": "../up"}', "topic '../up' cannot be part of a source name"),
]


def test_bad_lines_go_to_quarantine_with_file_line_and_reason(
    options: PreprocessOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "b.jsonl").write_bytes(b"\n".join([b"", *(line for line, _ in BAD_LINES), b"", b""]) + good)
    monkeypatch.setattr(readers.plan_tasks, "__kwdefaults__", {"chunk_bytes": 50})
    report = preprocess(replace(options, inputs=(str(tmp_path / "b.jsonl"),)))
    rows = [json.loads(line) for line in (options.out / "quarantine.jsonl").read_text().splitlines()]
    assert report.num_quarantined == len(rows) == len(BAD_LINES)
    for number, (row, (_, reason)) in enumerate(zip(rows, BAD_LINES, strict=True)):
        assert row["file"] == str(tmp_path / "b.jsonl")
        assert row["line"] == number + 2  # the first line is blank
        assert row["reason"].startswith(reason)
    assert report.num_records == 60 + len(BAD_LINES)
    assert sum(entry.num_documents for entry in report.sources) == 60


def test_too_many_bad_lines_are_refused_and_nothing_is_taken_for_whole(
    options: PreprocessOptions, tmp_path: Path
) -> None:
    with (tmp_path / "a.jsonl").open("a") as stream:
        stream.write('{"txt": "x"}\n' * 11)
    reason = r"more than 1\.0%: missing key text \(11\).*line 61: missing key text; .*line 62: .*--text-key"
    with pytest.raises(DataError, match=rf"11 of 71 lines are no documents, {reason}"):
        preprocess(options)
    assert len((options.out / "quarantine.jsonl").read_text().splitlines()) == 11
    assert not (options.out / "manifest.json").exists()
    assert not list(options.out.glob("*.bin"))


def test_why_none_of_a_few_lines_is_a_document_is_told(options: PreprocessOptions, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text('{"text": "one"}\n' * 3)
    said = r"no document in .*few\.jsonl: missing key topic \(3\)\. First: .* line 1: .*--text-key and --topic-key$"
    with pytest.raises(DataError, match=said):
        preprocess(replace(options, inputs=(str(tmp_path / "few.jsonl"),)))


OBJECTS = [json.dumps({"text": text, "topic": "law"}).encode() for text in corpus.documents(300, seed=3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"[" + b",".join(OBJECTS) + b"]\n",
            r"not a JSON object but a list of objects\. Write one object a line: jq -c '\.\[\]' ",
        ),
        (b"\r".join(OBJECTS), r"its lines end in carriage returns alone\. Write line feeds: tr '\\r' '\\n' < "),
        (b'{"text": "of a page that ends her', r"broken JSON: .*\. Mend it, or leave it out$"),
    ],
)
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_file_without_one_document_is_no_bad_line(
    options: PreprocessOptions, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str, is_cut: bool
) -> None:
    path = options.out.parent / "b.json"
    path.write_bytes(content)
    if is_cut:
        monkeypatch.setattr(readers.plan_tasks, "__kwdefaults__", {"chunk_bytes": len(content) - 5})
    with pytest.raises(DataError, match=rf"^{path}: no line is a document \(1 in all\); line 1: .*{message}"):
        preprocess(replace(options, inputs=(*options.inputs, str(path))))
    assert not (options.out / "manifest.json").exists()


def test_a_file_of_pages_that_are_bad_one_by_one_is_none_too_many(options: PreprocessOptions, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('{"title": "no text here"}\n{"text": "", "topic": "law"}\n')
    assert preprocess(replace(options, inputs=(str(tmp_path / "*.json*"),))).num_quarantined == 2


@pytest.mark.parametrize("name", ["c.jsonl.gz", "d.jsonl.zst", "e.parquet"])
def test_a_damaged_file_is_named(options: PreprocessOptions, tmp_path: Path, name: str) -> None:
    import pyarrow
    import pyarrow.parquet

    raw = (tmp_path / "a.jsonl").read_bytes()
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), tmp_path / name)
    else:
        packed = gzip.compress(raw) if name.endswith("gz") else zstandard.ZstdCompressor().compress(raw)
        (tmp_path / name).write_bytes(packed)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    with pytest.raises(DataError, match=name):
        preprocess(replace(options, inputs=(str(tmp_path / name),)))
    assert not (options.out / "manifest.json").exists()


def test_the_holdout_is_the_smallest_hashes_and_its_copies_leave_the_training_data(
    options: PreprocessOptions, tmp_path: Path
) -> None:
    import hashlib

    texts = [*corpus.documents(40), *corpus.documents(40)]  # each one twice
    topics = ["law"] * 60 + ["数学"] * 20  # the last 20 texts are in both topics
    corpus.write_jsonl(tmp_path / "a.jsonl", texts, topics=topics)
    report = preprocess(replace(options, holdout=4))
    manifest = read_manifest(report.manifest_path)
    ranked = sorted(set(texts[:60]), key=lambda text: hashlib.sha256(text.encode()).digest())
    law_held = texts_of(manifest, "zh/web/law@holdout", options.tokenizer)
    math_held = texts_of(manifest, "zh/web/数学@holdout", options.tokenizer)
    assert sorted(law_held) == sorted(ranked[:4])
    assert len(math_held) == 4
    trained = [t for topic in ("law", "数学") for t in texts_of(manifest, f"zh/web/{topic}", options.tokenizer)]
    assert not set(trained) & {*law_held, *math_held}
    assert len(trained) + 8 + report.num_duplicates_removed + report.num_near_copies_removed == 80
    assert report.num_duplicates_removed == 8
    assert {entry.name: entry.role for entry in manifest.sources} == {
        "zh/web/law": "train",
        "zh/web/law@holdout": "validation",
        "zh/web/数学": "train",
        "zh/web/数学@holdout": "validation",
    }
    held = next(entry for entry in manifest.sources if entry.name == "zh/web/law@holdout")
    assert held.text_bytes == sum(len(text.encode()) for text in law_held)


def test_a_text_held_out_by_an_earlier_call_never_enters_training(options: PreprocessOptions, tmp_path: Path) -> None:
    held = corpus.documents(60)[:10]
    corpus.write_jsonl(tmp_path / "held.jsonl", held)
    validation = replace(
        options, inputs=(str(tmp_path / "held.jsonl"),), topic_key=None, source="forum", role="validation"
    )
    assert [entry.role for entry in preprocess(validation).sources] == ["validation"]
    report = preprocess(options)
    assert report.num_duplicates_removed == 10
    manifest = read_manifest(report.manifest_path)
    assert sorted(texts_of(manifest, "zh/forum/all@validation", options.tokenizer)) == sorted(held)
    assert not set(held) & set(texts_of(manifest, "zh/web/law", options.tokenizer))


def test_a_holdout_that_would_empty_a_topic_is_refused(options: PreprocessOptions) -> None:
    with pytest.raises(DataError, match=r"topic 数学 has 20 documents: --holdout 20 would leave none"):
        preprocess(replace(options, holdout=20))


def test_calls_with_other_names_add_and_the_same_name_replaces(options: PreprocessOptions, tmp_path: Path) -> None:
    preprocess(replace(options, holdout=2))
    corpus.write_jsonl(tmp_path / "en.jsonl", corpus.documents(20, seed=8))
    english = replace(options, inputs=(str(tmp_path / "en.jsonl"),), topic_key=None, topic="law", language="en")
    joining = options.out / ".zh__web__law_text_document.scores.parquet.another-node.7.tmp"  # by score-ppl, just now
    joining.touch()
    left = options.out / ".zh__web__law_text_document.bin.another-node.7.tmp"
    left.touch()
    exporting = options.out / ".model.another-node.7.tmp"
    exporting.mkdir()
    preprocess(english)
    assert joining.exists() and exporting.exists() and not left.exists()
    report = preprocess(replace(english, inputs=options.inputs))
    assert report.num_duplicates_removed == 4
    manifest = read_manifest(options.out)
    names = ["en/web/law", "zh/web/law", "zh/web/law@holdout", "zh/web/数学", "zh/web/数学@holdout"]
    assert [entry.name for entry in manifest.sources] == names
    # the last call read the 60 documents of which the first held out 4
    assert manifest.sources[0].num_documents == 56 - report.num_near_copies_removed
    preprocess(options)  # now without a holdout: the old one would lie inside the training data
    manifest = read_manifest(options.out)
    assert [entry.name for entry in manifest.sources] == ["en/web/law", "zh/web/law", "zh/web/数学"]
    assert not list(options.out.glob("*@holdout*"))


def test_another_cut_of_a_source_into_topics_that_stays_is_named(
    options: PreprocessOptions, caplog: pytest.LogCaptureFixture
) -> None:
    preprocess(replace(options, topic_key=None))
    preprocess(options)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "zh/web/all of earlier calls stays for training beside zh/web/law, zh/web/数学; " in warning
    assert "trained on twice: preprocess into another --out" in warning
    caplog.clear()
    for topic in ("art", "sport"):  # a topic a call is no other cut
        preprocess(replace(options, out=options.out.parent / "each", topic_key=None, topic=topic))
    preprocess(replace(options, source="book"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_topic_that_lies_there_sorted_is_named_when_it_is_preprocessed_again(
    options: PreprocessOptions, caplog: pytest.LogCaptureFixture
) -> None:
    options = replace(options, topic_key=None, topic="art")
    preprocess(options)
    (entry,) = read_manifest(options.out).sources
    score(options.out / entry.shards[0].prefix, entry.shards[0])
    ordered = options.out.with_name("sorted")
    sort(SortOptions(data=options.out, out=ordered, buckets=2))
    preprocess(replace(options, out=ordered))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "zh/web/art/00, zh/web/art/01 of earlier calls stays for training beside zh/web/art; " in warning


def test_an_interrupted_call_leaves_the_folder_as_it_was(
    options: PreprocessOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess(options)
    before = contents(options.out, with_work=False)
    monkeypatch.setattr("tools.data.preprocess.write_shard", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        preprocess(replace(options, seed=99))
    assert contents(options.out, with_work=False) == before


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_another_tokenizer_in_the_same_folder_is_refused(options: PreprocessOptions, tmp_path: Path) -> None:
    preprocess(options)
    with pytest.raises(ConfigError, match=r"data of another tokenizer.*choose another --out"):
        preprocess(replace(options, tokenizer=corpus.hf_folder(tmp_path / "hf2", vocab_size=700)))


def test_input_inside_the_folder_that_is_written_is_refused(options: PreprocessOptions, tmp_path: Path) -> None:
    message = rf"^--input {tmp_path}/a\.jsonl lies inside --out {tmp_path}; choose another --out$"
    with pytest.raises(ConfigError, match=message):
        preprocess(replace(options, out=tmp_path))
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topic": "law"}, "--topic and --topic-key exclude"),
        ({"language": "z/h"}, "--language 'z/h' cannot be part"),
        ({"source": "a__b"}, "--source 'a__b' cannot be part"),
        ({"holdout": 3, "role": "validation"}, "--holdout has no meaning"),
        ({"inputs": ("nowhere/*.jsonl",)}, r"^--input nowhere/\*\.jsonl matches no file"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: PreprocessOptions, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        preprocess(replace(options, **change))  # type: ignore[arg-type]
