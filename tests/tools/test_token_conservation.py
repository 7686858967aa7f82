"""Whatever the lines hold: documents in = written + quarantined + dropped with a reason, and every token is Hugging
Face's or EOS."""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_mixers.errors import DataError
from data_mixers.manifest import read_manifest
from megatron_synE.data.indexed import IndexedFile
from tests.tools import corpus
from tools.data import merge, readers, spool
from tools.data.preprocess import PreprocessOptions, PreprocessReport, preprocess
from tools.data.sidecar import read_rows

WINDOW = 48
REFUSALS = ("there is no document", "would leave none", "nothing is left to train on", "no line is a document")
DOCUMENTS = [*corpus.documents(12, seed=3), "a<|end_of_text|>b", "🎉 e\u0301\u3000\r\n", "x"]
TEXTS = st.one_of(st.sampled_from(DOCUMENTS), st.text(st.characters(codec="utf-8"), max_size=60))
GOOD = TEXTS.map(lambda text: json.dumps({"text": text}, ensure_ascii=len(text) % 2 == 0).encode())
OTHER = st.sampled_from(
    [
        b"", b"  ", b'{"text": "cut', b'{"other": "x"}', b"[1]", b'{"text": 7}', b'{"text": null}',
        b'{"text": "\\ud800"}', b'{"text": "\xff"}', b'{"text": "a\\u0000b"}', b"\xef\xbb\xbf", b'{"text": "y"} z',
    ]
)  # fmt: skip
LINES = st.lists(st.one_of(GOOD, GOOD, GOOD, OTHER), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus.hf_folder(tmp_path_factory.mktemp("hf"))


@pytest.fixture(autouse=True)
def small_pieces(own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LEAST_CHUNK_BYTES", 500)
    monkeypatch.setattr(spool, "RUN_BYTES", 300)
    monkeypatch.setattr(spool, "BATCH_BYTES", 100)
    monkeypatch.setattr(merge, "MERGE_TOKENS", 100)
    monkeypatch.setattr(merge, "READ_BYTES", 200)  # some runs are read, some mapped


def text_of(line: bytes) -> str | None:
    """The document of a line by the standard library's parser; None: it holds none."""
    try:
        content = json.loads(line.decode())
        text = content["text"]
        text.encode()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return text if text.strip() and "\x00" not in text else None


@given(lines=LINES, holdout=st.integers(0, 2), is_packed=st.booleans(), ends=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_line_and_every_token_is_accounted_for(
    hf: Path, lines: list[bytes], holdout: int, is_packed: bool, ends: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        raw = b"\n".join(lines) + (b"\n" if ends else b"")
        (Path(name) / "pages.jsonl").write_bytes(raw)
        options = PreprocessOptions(
            inputs=(f"{name}/pages.jsonl",), tokenizer=hf, out=Path(name) / "out", holdout=holdout,
            max_bad_share=1.0,
        )  # fmt: skip
        if is_packed:
            options = replace(options, keep_documents_whole=True, seq_length=WINDOW)
        try:
            report = preprocess(options)
        except DataError as error:
            if not any(said in str(error) for said in REFUSALS):
                raise
            if "no line is a document" in str(error):
                assert not any(text_of(line.removeprefix(b"\xef\xbb\xbf")) for line in lines)
            event("refused")
            return
        event("written")
        account(lines, raw, report, options)


def account(lines: list[bytes], raw: bytes, report: PreprocessReport, options: PreprocessOptions) -> None:
    tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    ids_at = {
        start: tokenizer.encode(text, add_special_tokens=False).ids
        for start, line in zip(starts[:-1], lines, strict=True)
        if (text := text_of(line.removeprefix(b"\xef\xbb\xbf") if start == 0 else line)) is not None
    }
    longest = WINDOW - 1 if options.keep_documents_whole else math.inf
    documents = {start: ids for start, ids in ids_at.items() if len(ids) <= longest}
    dropped = report.num_duplicates_removed + report.num_near_copies_removed
    blank = sum(not line.strip() or (n == 0 and line == b"\xef\xbb\xbf") for n, line in enumerate(lines))
    assert report.num_records == len(lines) - blank
    assert report.num_too_long == len(ids_at) - len(documents)
    assert report.num_quarantined == report.num_records - len(ids_at)
    assert report.num_documents + dropped == len(documents)
    named = [json.loads(line)["line"] for line in (options.out / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(named) == [
        number
        for number, (start, line) in enumerate(zip(starts[:-1], lines, strict=True), start=1)
        if start not in documents and line.strip() and not (number == 1 and line == b"\xef\xbb\xbf")
    ]
    manifest = read_manifest(report.manifest_path)
    written: list[int] = []
    num_tokens = num_filler_tokens = 0
    for prefix in (manifest.shard_prefix(shard) for entry in manifest.sources for shard in entry.shards):
        file = IndexedFile(prefix, checks_all=True)
        bounds = file.document_ranges().tolist()
        for row, start, stop in zip(read_rows(prefix), bounds[:-1], bounds[1:], strict=True):
            found = file.tokens(start, stop).tolist()
            num_tokens += len(found)
            if row["id"] is None:
                assert set(found) == {manifest.tokenizer.eos_id}
                num_filler_tokens += len(found)
            else:
                assert found == [*documents[row["place"]], manifest.tokenizer.eos_id]
                written.append(row["place"])
    assert len(set(written)) == len(written) == report.num_documents
    assert num_filler_tokens == report.num_filler_tokens
    assert num_tokens == sum(len(documents[place]) + 1 for place in written) + num_filler_tokens
    assert sum(entry.num_tokens for entry in manifest.sources) == num_tokens
