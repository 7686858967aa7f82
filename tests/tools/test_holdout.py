"""What is held out, how much of it, and that nothing near it is trained on; sidecars name every document."""

import hashlib
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mixers.errors import DataError
from data_mixers.manifest import read_manifest
from megatron_synE.data.indexed import IndexedWriter
from tests import tiny
from tests.tools import corpus
from tests.tools.token_files import documents_of, write_scores
from tools.data import holdout, near_copies
from tools.data.holdout import SD_OF_DOCUMENT, TARGET_ERROR, choose, enough, measured_sd, standard_error
from tools.data.near_copies import NearCopies
from tools.data.preprocess import PreprocessOptions, preprocess
from tools.data.sidecar import read_rows
from tools.data.spool import META

EOS = 0


def five_grams(document: list[int]) -> set[tuple[int, ...]]:
    return {tuple(document[at : at + 5]) for at in range(len(document) - 1 - 4)}  # without EOS


def slow_near(document: list[int], held_out: list[list[int]]) -> bool:
    """The definition, with Python sets."""
    owners: dict[tuple[int, ...], int] = {}
    for grams in map(five_grams, held_out):
        for gram in grams:
            owners[gram] = owners.get(gram, 0) + 1
    for other in held_out:
        counted = {gram for gram in five_grams(other) if owners[gram] <= near_copies.COMMON}
        needed = max(math.ceil(near_copies.HELD_SHARE * len(counted)), min(len(counted), near_copies.LEAST_NGRAMS))
        if counted and len(counted & five_grams(document)) >= needed:
            return True
    return False


DOCUMENTS = st.lists(st.lists(st.integers(1, 3), max_size=40).map(lambda d: [*d, EOS]), min_size=1, max_size=15)


@given(DOCUMENTS, DOCUMENTS)
@settings(max_examples=60, deadline=None)
def test_near_copies_are_those_of_the_definition(held_out: list[list[int]], documents: list[list[int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        with IndexedWriter(Path(name) / "held", dtype="uint16") as writer:
            for document in held_out:
                writer.add_document(np.array(document))
        NearCopies.build(Path(name), [Path(name) / "held"])
        table = NearCopies.open(Path(name))
    documents = [*documents, *held_out]
    lengths = np.array([len(document) for document in documents])
    found = table.are_near(np.array([t for d in documents for t in d], dtype=np.uint16), lengths)
    assert found.tolist() == [slow_near(document, held_out) for document in documents]


@pytest.fixture
def options(tmp_path: Path, own_cache: None) -> PreprocessOptions:
    return PreprocessOptions(
        inputs=(str(tmp_path / "a.jsonl"),), tokenizer=corpus.hf_folder(tmp_path / "hf"), out=tmp_path / "out"
    )


def test_changed_and_embedded_copies_leave_the_training_data_and_are_counted(
    options: PreprocessOptions, tmp_path: Path
) -> None:
    rng = random.Random(0)

    def page(num_words: int) -> str:
        return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(num_words))

    originals = [page(200) for _ in range(40)]
    edited = [f"news: {text[:700]} CHANGED {text[706:]}" for text in originals]
    embedded = [page(150) + text for text in originals]
    corpus.write_jsonl(tmp_path / "a.jsonl", [*originals, *edited, *embedded])
    report = preprocess(replace(options, holdout=5))
    # whichever of the three was drawn, the two others hold more than half of it
    assert report.num_near_copies_removed >= 10
    assert report.num_duplicates_removed == 0
    assert report.num_documents + report.num_near_copies_removed == report.num_records == 120
    manifest = read_manifest(report.manifest_path)
    held = {row["place"] for row in rows_of(manifest.folder, "und__web__all@holdout_text_document")}
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    starts = [0, *np.cumsum([len(line) for line in lines]).tolist()]
    trained = {row["place"] for row in rows_of(manifest.folder, "und__web__all_text_document")}
    for number in range(40):
        family = {starts[number], starts[number + 40], starts[number + 80]}
        if held & family:
            assert not trained & family
        else:
            assert family <= trained


def rows_of(folder: Path, stem: str) -> list[dict[str, Any]]:
    return list(read_rows(folder / stem))


def test_auto_holds_out_as_little_as_gives_the_error_and_at_most_a_tenth(
    options: PreprocessOptions, tmp_path: Path
) -> None:
    equal = [100] * 2000
    assert enough(equal, SD_OF_DOCUMENT) == (SD_OF_DOCUMENT / TARGET_ERROR) ** 2 == 625
    assert standard_error(equal[:625], SD_OF_DOCUMENT) == pytest.approx(TARGET_ERROR)
    uneven = [5000, *[100] * 2000]
    taken = uneven[: enough(uneven, SD_OF_DOCUMENT)]
    share = np.array(taken) / sum(taken)
    assert SD_OF_DOCUMENT * math.sqrt((share**2).sum()) <= TARGET_ERROR
    corpus.write_jsonl(tmp_path / "a.jsonl", corpus.documents(200))
    report = preprocess(replace(options, holdout="auto"))
    assert {entry.name: entry.num_documents for entry in report.sources}["und/web/all@holdout"] == 20


def topic_of(hashes: list[int], lengths: list[int]) -> Any:
    """A reader of two segments with documents of these content hashes."""
    meta = np.zeros(len(hashes), dtype=META)
    meta["high"], meta["low"] = [digest >> 64 for digest in hashes], [digest & (1 << 64) - 1 for digest in hashes]
    meta["length"] = lengths
    halves = meta[: len(meta) // 2], meta[len(meta) // 2 :]
    return SimpleNamespace(metas=lambda: iter(halves), num_documents=len(meta))


def test_no_more_is_held_out_than_the_error_or_the_number_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    hashes = [rng.getrandbits(128) for _ in range(200)]
    readers, ranked = {"law": topic_of(hashes, [100] * 200)}, sorted(hashes)
    # 0.004 nats over four documents of equal length are 0.002.
    found = choose(readers, "auto", sd=0.004, without=())["law"]
    assert (found.digests, found.num_tokens) == (tuple(ranked[:4]), 400)
    assert found.standard_error == pytest.approx(0.002)
    for wanted, sd, count in (("auto", 0.05, 20), (7, 0.004, 7), (199, 0.004, 199)):
        found = choose(readers, wanted, sd=sd, without=())["law"]
        assert (found.digests, found.num_tokens) == (tuple(ranked[:count]), 100 * count)
        assert found.standard_error == pytest.approx(sd / math.sqrt(count))
    with pytest.raises(DataError, match="topic law has 200 documents: --holdout 200 would leave none"):
        choose(readers, 200, sd=0.05, without=())
    monkeypatch.setattr(holdout, "MOST_DOCUMENTS", 9)
    assert choose(readers, "auto", sd=0.05, without=())["law"].digests == tuple(ranked[:9])


def test_what_is_held_out_already_is_passed_over_and_copies_count_once() -> None:
    hashes = [1, 2, 3 << 64, 3 << 64 | 1, 5 << 64]
    readers = {"b": topic_of(hashes * 2, [10, 20, 30, 40, 50] * 2), "a": topic_of(hashes, [10, 20, 30, 40, 50])}
    found = choose(readers, 2, sd=0.05, without={2})
    assert (found["a"].digests, found["a"].num_tokens) == ((1, 3 << 64), 40)
    assert (found["b"].digests, found["b"].num_tokens) == ((3 << 64 | 1, 5 << 64), 90)
    # Nothing new is left: an error that nothing makes smaller.
    found = choose({"a": topic_of(hashes, [10] * 5)}, "auto", sd=0.05, without=hashes)
    assert (found["a"].digests, found["a"].num_tokens, found["a"].standard_error) == ((), 0, math.inf)


class Asked(set[int]):
    """Counts what it is asked for."""

    count = 0

    def __contains__(self, value: object) -> bool:
        self.count += 1
        return super().__contains__(value)


@pytest.mark.parametrize("compared", [1, 700, 1 << 16])
def test_of_many_runs_only_documents_that_may_be_chosen_are_looked_at_one_by_one(
    monkeypatch: pytest.MonkeyPatch, compared: int
) -> None:
    monkeypatch.setattr(holdout, "COMPARED", compared)
    rng = np.random.default_rng(0)
    meta = np.zeros(70_000, dtype=META)
    meta["high"], meta["low"] = rng.integers(0, 1 << 15, len(meta)), rng.integers(0, 4, len(meta))  # with copies
    meta["length"] = 1 + meta["high"] % 100
    hashes = sorted({high << 64 | low for high, low in zip(meta["high"].tolist(), meta["low"].tolist(), strict=True)})
    without = Asked(hashes[:3])
    found = holdout._smallest((meta[first : first + 100] for first in range(0, len(meta), 100)), 50, without=without)
    assert found == [(digest, 1 + (digest >> 64) % 100) for digest in hashes[3:53]]
    assert without.count < 5000


@pytest.mark.parametrize(("num_held", "is_counted"), [(10, True), (11, False)])
def test_what_more_than_ten_held_out_documents_share_is_boilerplate(
    tmp_path: Path, num_held: int, is_counted: bool
) -> None:
    footer = list(range(1, 41))  # 36 different 5-grams; of a held-out document's 56 these are more than half
    bodies = [list(range(100 + 20 * n, 120 + 20 * n)) for n in range(num_held + 1)]
    with IndexedWriter(tmp_path / "held", dtype="uint16") as writer:
        for body in bodies[:-1]:
            writer.add_document(np.array([*footer, *body, EOS]))
    NearCopies.build(tmp_path, [tmp_path / "held"])
    stranger = np.array([*footer, *bodies[-1], EOS], dtype=np.uint16)
    near = NearCopies.open(tmp_path).are_near(stranger, np.array([len(stranger)]))
    assert near.tolist() == [is_counted]


def test_no_text_is_held_out_twice_neither_of_another_topic_nor_of_an_earlier_source(
    options: PreprocessOptions, tmp_path: Path
) -> None:
    rng = random.Random(4)
    texts = [" ".join("".join(rng.choices("abcdefgh", k=6)) for _ in range(30)) for _ in range(80)]
    corpus.write_jsonl(tmp_path / "a.jsonl", texts * 2, topics=["art"] * 80 + ["law"] * 80)
    corpus.write_jsonl(tmp_path / "b.jsonl", texts)
    preprocess(replace(options, topic_key="topic", holdout=5))
    preprocess(replace(options, inputs=(str(tmp_path / "b.jsonl"),), source="book", topic="art", holdout=5))
    # Those with the smallest hashes: the first five of art, so the next five of law, and the next of the book.
    ranked = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    for number, (stem, raw) in enumerate(
        [("und__web__art", "a.jsonl"), ("und__web__law", "a.jsonl"), ("und__book__art", "b.jsonl")]
    ):
        whole = (tmp_path / raw).read_bytes()
        held = [
            json.loads(whole[row["place"] :].split(b"\n", 1)[0])["text"]
            for row in rows_of(tmp_path / "out", f"{stem}@holdout_text_document")
        ]
        assert set(held) == set(ranked[5 * number : 5 * number + 5]), stem


def test_training_data_older_than_a_holdout_is_named_until_its_call_runs_again(
    options: PreprocessOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pages = [page(n) for n in range(120)]
    corpus.write_jsonl(tmp_path / "web.jsonl", pages)
    corpus.write_jsonl(tmp_path / "book.jsonl", pages[60:])
    corpus.write_jsonl(tmp_path / "exam.jsonl", pages[:3])
    web = replace(options, inputs=(str(tmp_path / "web.jsonl"),), holdout=4)
    book = replace(web, inputs=(str(tmp_path / "book.jsonl"),), source="book")
    exam = replace(web, inputs=(str(tmp_path / "exam.jsonl"),), source="exam", holdout=0, role="validation")

    def named(call: PreprocessOptions) -> list[str]:
        caplog.clear()
        preprocess(call)
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    assert not named(web)
    (warning,) = named(book)
    assert "the training data of und/web was written before some of what is held out here now" in warning
    assert "run the calls of these again" in warning
    assert held_texts(tmp_path, "book") & trained_texts(tmp_path, "web")
    first = held_texts(tmp_path, "web"), held_texts(tmp_path, "book")
    assert not named(web)
    assert not named(book)
    assert (held_texts(tmp_path, "web"), held_texts(tmp_path, "book")) == first
    assert not trained_texts(tmp_path, "web") & set.union(*first)
    assert "of und/book, und/web was" in named(exam)[0]
    assert "of und/book was" in named(web)[0]
    assert not named(book)
    for record in (tmp_path / "out").glob("*web*.compared"):  # a folder of before there were such records
        record.unlink()
    assert "of und/web was" in named(book)[0]


def page(number: int) -> str:
    rng = random.Random(number)
    return " ".join("".join(rng.choices("abcdefgh", k=6)) for _ in range(30))


def texts_of(folder: Path, stem: str) -> set[str]:
    rows = rows_of(folder / "out", stem)
    found = set()
    for row in rows:
        with Path(row["file"]).open("rb") as stream:
            stream.seek(row["place"])
            found.add(json.loads(stream.readline())["text"])
    return found


def held_texts(folder: Path, source: str) -> set[str]:
    return texts_of(folder, f"und__{source}__all@holdout_text_document")


def trained_texts(folder: Path, source: str) -> set[str]:
    return texts_of(folder, f"und__{source}__all_text_document")


def test_a_holdout_whose_content_hashes_are_gone_is_not_passed_over(options: PreprocessOptions, tmp_path: Path) -> None:
    corpus.write_jsonl(tmp_path / "a.jsonl", [page(n) for n in range(40)])
    preprocess(replace(options, holdout=4))
    lost = tmp_path / "out" / "und__web__all@holdout_text_document.digests"
    kept = lost.rename(tmp_path / "kept")
    book = replace(options, source="book")
    message = rf"^{lost} is missing \(1 such in all\), .*Put it back, or run the call again that wrote it"
    with pytest.raises(DataError, match=message):
        preprocess(book)
    preprocess(replace(options, holdout=4))  # the second cure
    assert lost.read_bytes() == kept.read_bytes()
    assert preprocess(book).num_duplicates_removed == 4


def scored(path: Path, nll: np.ndarray, tokens: np.ndarray, *, of: str = "a" * 64) -> Path:
    return write_scores(path, of=of, nll_sum=nll, nll_tokens=tokens)


def test_the_deviation_is_measured_from_two_scores_of_the_same_documents(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tokens = rng.integers(20, 2000, size=400)
    before = rng.normal(3.0, 0.5, size=400) * tokens  # documents differ much, their changes little
    change = rng.normal(-0.1, 0.02, size=400)
    files = (
        scored(tmp_path / "a.parquet", before, tokens),
        scored(tmp_path / "b.parquet", before + change * tokens, tokens),
    )
    sd = measured_sd(*files)
    # The error it foretells for these documents is the one that drawing them again and again shows.
    drawn = rng.integers(0, 400, size=(4000, 400))
    means = (change * tokens)[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    assert standard_error(tokens.tolist(), sd) == pytest.approx(means.std(), rel=0.06)
    equal = (
        scored(tmp_path / "c.parquet", before * 0, tokens * 0 + 7),
        scored(tmp_path / "d.parquet", change, tokens * 0 + 7),
    )
    assert measured_sd(*equal) == pytest.approx(np.std(change / 7, ddof=1))
    other = scored(tmp_path / "e.parquet", before, tokens, of="b" * 64)
    with pytest.raises(DataError, match="are not of the same documents; score one token file with two checkpoints"):
        measured_sd(files[0], other)
    unlike = write_scores(tmp_path / "g.parquet", of="a" * 64, seq_length=64, nll_sum=before, nll_tokens=tokens)
    with pytest.raises(DataError, match=r"precision \(128, 8, 'fp32'\), .*g\.parquet with \(64, 8"):
        measured_sd(files[0], unlike)
    few = scored(tmp_path / "f.parquet", before[:29], tokens[:29])
    with pytest.raises(DataError, match="scores 29 documents; 30 are needed"):
        measured_sd(few, few)


def test_the_command_sizes_the_holdout_by_what_was_measured(options: PreprocessOptions, tmp_path: Path) -> None:
    """All documents of a topic are equally long; a deviation of 0.004 nats needs four of them for an error of 0.002."""
    rng = random.Random(0)
    corpus.write_jsonl(tmp_path / "a.jsonl", ["".join(rng.choices("0123456789", k=3)) * 20 for _ in range(200)])
    tokens = np.full(100, 50)
    alternating = np.where(np.arange(100) % 2 == 0, 0.004, -0.004) * np.sqrt(99 / 100)  # so that ddof=1 gives 0.004
    scores = [
        scored(tmp_path / f"{name}.scores.parquet", nll, tokens)
        for name, nll in (("before", tokens * 2.0), ("after", tokens * (1.9 + alternating)))
    ]
    command = ["data", "preprocess", "--input", *options.inputs, "--tokenizer", options.tokenizer, "--out", options.out]
    done = tiny.syne(*command, "--holdout", "auto", "--holdout-scores", *scores)
    assert done.returncode == 0, done.stderr
    assert "the change of a document's mean NLL varies by 0.004 nats per token" in done.stderr
    (held,) = (entry for entry in read_manifest(options.out).sources if entry.role == "validation")
    lengths = [row["num_tokens"] for row in rows_of(options.out, "und__web__all@holdout_text_document")]
    assert held.num_documents == len(lengths) < 20
    assert 0.004 * math.sqrt(sum(n * n for n in lengths)) <= 0.002 * sum(lengths)
    assert 0.004 * math.sqrt(sum(n * n for n in lengths[:-1])) > 0.002 * sum(lengths[:-1])
    done = tiny.syne(*command, "--holdout-scores", *scores)
    assert (done.returncode, done.stderr) == (2, "error: --holdout-scores has no effect without --holdout\n")


def test_the_sidecar_says_where_every_document_came_from(options: PreprocessOptions, tmp_path: Path) -> None:
    texts = corpus.documents(30)
    records = [{"text": text, "topic_confidence": n / 30} for n, text in enumerate(texts)]
    for number, own in ((3, "page-3"), (4, 44)):
        records[number]["id"] = own
    del records[5]["topic_confidence"]
    lines = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    manifest = read_manifest(preprocess(options).manifest_path)
    (shard,) = manifest.sources[0].shards
    rows = list(read_rows(manifest.shard_prefix(shard)))
    assert [row["num_tokens"] for row in rows] == list(map(len, documents_of(manifest.shard_prefix(shard))))
    starts = np.cumsum([0, *(len(line) for line in lines)]).tolist()
    for row in rows:
        number = starts.index(row["place"])
        assert row["id"] == {3: "page-3", 4: "44"}.get(number, f"a.jsonl:{starts[number]}")
        assert row["file"] == str(tmp_path / "a.jsonl")
        assert row["topic"] == "all"
        assert row["topic_confidence"] == (None if number == 5 else number / 30)
        assert row["text_bytes"] == len(texts[number].encode())
    assert sorted(row["place"] for row in rows) == starts[:-1]
