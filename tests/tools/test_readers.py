"""Readers: every line is a document or has a reason, in bounded memory, whatever the bytes are."""

import gzip
import json
import random
import tempfile
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mixers.errors import ConfigError, DataError
from tests.tools import corpus
from tools.data import lines
from tools.data.documents import TaskDocuments
from tools.data.readers import BadRecord, Record, find_inputs, plan_tasks, read_task


def read(path: Path, *, chunk_bytes: int | None = None, max_document_bytes: int = 1 << 20) -> list[object]:
    return [
        record
        for task in plan_tasks([path], chunk_bytes=chunk_bytes)
        for record in read_task(
            task, text_key="text", topic_key=None, on_bytes=lambda _: None, max_document_bytes=max_document_bytes
        )
    ]


def texts(records: list[object]) -> list[str]:
    return [record.text for record in records if isinstance(record, Record)]


def reasons(records: list[object]) -> list[str]:
    return [record.reason for record in records if isinstance(record, BadRecord)]


def test_an_over_long_line_is_passed_over_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("w") as stream:
        stream.write('{"text": "first"}\n{"text": "')
        for _ in range(64):
            stream.write("x" * (1 << 20))
        stream.write('"}\n{"text": "last"}\n')
    for chunk_bytes in (None, 1 << 20):
        tracemalloc.start()
        records = read(path, chunk_bytes=chunk_bytes, max_document_bytes=1000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert texts(records) == ["first", "last"]
        assert reasons(records) == [f"the line is longer than {2000 + (1 << 20)} bytes"]
        assert peak < 8 << 20
    for name, packed in (("a.gz", gzip.compress), ("a.zst", zstandard.ZstdCompressor().compress)):
        (tmp_path / name).write_bytes(packed(path.read_bytes()))
        assert texts(read(tmp_path / name, max_document_bytes=1000)) == ["first", "last"]


def test_reasons_of_texts_that_cannot_be_used(tmp_path: Path) -> None:
    lines = [
        b'{"text": "\\ud800"}',
        b'{"text": "' + b"a" * 1001 + b'"}',
        b'{"text": "\xed\xa0\x80"}',
        b'{"text": "' + "中".encode() * 334 + b'"}',
        b'{"text": "ok"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    records = read(tmp_path / "a.jsonl", max_document_bytes=1000)
    found = reasons(records)
    assert found[0].startswith("lone surrogate")
    assert found[1] == found[3] == "text is longer than 1000 bytes"
    assert found[2].startswith("invalid UTF-8 at byte 10")
    assert texts(records) == ["ok"]


def test_a_parquet_row_that_is_no_utf8_is_one_bad_row(tmp_path: Path) -> None:
    raw = pyarrow.array([b"one", b"\xff\xfe", b"three"]).cast(pyarrow.binary())
    broken = pyarrow.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "a.parquet")
    records = read(tmp_path / "a.parquet")
    assert texts(records) == ["one", "three"]
    assert [(r.line, r.reason) for r in records if isinstance(r, BadRecord)] == [(2, "invalid UTF-8")]


def test_empty_files_hold_no_document(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", b""), ("a.gz", gzip.compress(b"")), ("a.zst", zstandard.compress(b""))):
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == []
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == []
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.parquet cannot be read as parquet"):
        read(tmp_path / "b.parquet")


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_compressed_file_of_no_bytes_is_refused(tmp_path: Path, kind: str) -> None:
    """Both formats write a header even for nothing; a full disk or quota leaves files of no bytes."""
    (tmp_path / f"a.{kind}").write_bytes(b"")
    with pytest.raises(DataError, match=rf"a\.{kind} is empty, .*write or copy it again"):
        read(tmp_path / f"a.{kind}")


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_compressed_file_cut_off_anywhere_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    rng = random.Random(1)
    lines = "".join(json.dumps({"text": rng.randbytes(30).hex()}) + "\n" for _ in range(4000)).encode()
    packed = gzip.compress(lines) if kind == "gz" else zstandard.ZstdCompressor().compress(lines)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(packed)
    assert len(texts(read(path))) == 4000
    for cut in [1, 3, 7, 20, len(packed) - 1, *(rng.randrange(1, len(packed)) for _ in range(40))]:
        path.write_bytes(packed[:cut])
        with pytest.raises(DataError, match=rf"a\.{kind} is damaged or cut off"):
            read(path)


LINES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.builds(lambda text: json.dumps({"text": text}).encode(), st.text(max_size=20)),
        st.builds(
            lambda text: json.dumps({"text": text}, ensure_ascii=False).encode(), st.text("aé中😀\n", max_size=20)
        ),
        st.sampled_from(
            [b"", b" ", b"{}", b"[]", b'{"text": 1}', b'{"text": "' + b"y" * 3000 + b'"}', b"\xef\xbb\xbf{}"]
        ),
    ),
    max_size=12,
)


@given(LINES, st.integers(1, 200), st.sampled_from(["jsonl", "gz", "zst"]))
@settings(max_examples=300, deadline=None)
def test_every_line_is_a_document_or_has_a_reason(lines: list[bytes], chunk_bytes: int, kind: str) -> None:
    raw = b"\n".join(lines)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"a.{kind}"
        pack = {"jsonl": bytes, "gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}[kind]
        path.write_bytes(pack(raw))
        records = read(path, chunk_bytes=chunk_bytes, max_document_bytes=2000)
        tasks = plan_tasks([path], chunk_bytes=chunk_bytes)
        counted: list[int] = []
        for task in tasks:
            list(read_task(task, text_key="text", topic_key=None, on_bytes=counted.append))
        assert sum(counted) == (path.stat().st_size if tasks else 0)
    pieces = raw.split(b"\n")
    if pieces[-1] == b"":
        pieces.pop()
    assert len(records) == len(pieces)
    for record, piece in zip(records, pieces, strict=True):
        blank = piece.isspace() or not piece or piece == b"\xef\xbb\xbf"
        assert (record is None) == blank or piece.startswith(b"\xef\xbb\xbf")
        try:
            content = json.loads(piece.decode())
        except ValueError:
            content = None
        if isinstance(record, Record) and content is not None:
            assert record.text == content["text"]
        good = isinstance(content, dict) and isinstance(content.get("text"), str) and content["text"].strip()
        if not good:
            assert not isinstance(record, Record) or piece.startswith(b"\xef\xbb\xbf")


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=5), st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_refused_or_read_but_never_crashes(
    changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(["gz", "zst", "parquet"]))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"a.{kind}"
        if kind == "parquet":
            table = pyarrow.table({"text": corpus.documents(40), "n": list(range(40))})
            pyarrow.parquet.write_table(table, path, row_group_size=16)
        else:
            raw = corpus.write_jsonl(Path(name) / "a.jsonl", corpus.documents(40)).read_bytes()
            path.write_bytes(gzip.compress(raw) if kind == "gz" else zstandard.ZstdCompressor().compress(raw))
        content = bytearray(path.read_bytes())
        for place, value in changes:
            content[place % len(content)] = value
        path.write_bytes(bytes(content))
        with suppress(DataError):
            read(path)


def test_a_file_is_read_as_what_its_name_says(tmp_path: Path) -> None:
    line = b'{"text": "one"}\n'
    packed = gzip.compress(line)
    contents = {
        "a.jsonl": line, "b.json": line, "c.ndjson": line, "d.jsonl.gz": packed, "e.gz": packed,
        "f.zst": zstandard.ZstdCompressor().compress(line),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one"]}), tmp_path / "g.parquet")
    found = find_inputs([str(tmp_path)])
    assert [path.name for path in found] == [*contents, "g.parquet"]
    assert [texts(read(path)) for path in found] == [["one"]] * 7
    (tmp_path / "h.txt").write_bytes(line)
    message = r"^--input .*/h\.txt has an unknown suffix; known: \.jsonl, \.json, \.ndjson, \.gz, \.zst, \.parquet$"
    with pytest.raises(ConfigError, match=message):
        plan_tasks([tmp_path / "h.txt"])


def test_an_id_stays_unless_two_documents_could_have_it(tmp_path: Path) -> None:
    """Floats are what pandas makes of a column of integers with gaps; 2**64 and 2**64 + 1 are one float."""
    ids = ["7", "7.0", "1.5", '"7"', str(2**64 - 1), str(2**64), str(2**64 + 1), "[7]", "null"]
    rows = [f'{{"id": {own}, "text": "a page"}}\n' for own in ids]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(rows))
    places = [sum(map(len, rows[:number])) for number in range(len(rows))]
    wanted = ["7", "7.0", "1.5", "7", str(2**64 - 1), *(f"a.jsonl:{place}" for place in places[5:])]
    (task,) = plan_tasks([file])
    assert [document.id for document in TaskDocuments(task, text_key="text")] == wanted
    pyarrow.parquet.write_table(
        pyarrow.table({"id": [1.0, None, float("nan")], "text": ["a", "b", "c"]}), tmp_path / "a.parquet"
    )
    (task,) = plan_tasks([tmp_path / "a.parquet"])
    found = [document.id for document in TaskDocuments(task, text_key="text")]
    assert found == ["1.0", "a.parquet:2", "a.parquet:3"]


def test_a_document_stands_at_its_byte_its_line_or_its_row(tmp_path: Path) -> None:
    raw = "".join(["\n", '{"text": "一"}\n', "\n", '{"text": "two"}\n', '{"text": "three"}\n']).encode()
    (tmp_path / "a.jsonl").write_bytes(raw)
    places = [raw.index(b'{"text": "' + text) for text in ("一".encode(), b"two", b"three")]
    for chunk_bytes in (None, 1, 20):
        found = [record for record in read(tmp_path / "a.jsonl", chunk_bytes=chunk_bytes) if isinstance(record, Record)]
        assert [record.place for record in found] == places == [1, 18, 34]
    for name, packed in (("a.gz", gzip.compress), ("a.zst", zstandard.ZstdCompressor().compress)):
        (tmp_path / name).write_bytes(packed(raw))
        found = [record for record in read(tmp_path / name) if isinstance(record, Record)]
        assert [(record.line, record.place) for record in found] == [(2, 2), (4, 4), (5, 5)]
    pyarrow.parquet.write_table(pyarrow.table({"text": list("abcdefgh")}), tmp_path / "a.parquet", row_group_size=3)
    metadata = pyarrow.parquet.read_metadata(tmp_path / "a.parquet")
    two = sum(metadata.row_group(group).total_byte_size for group in (0, 1))
    for chunk_bytes, numbers in (
        (1, [1, 2, 3, 1, 2, 3, 1, 2]), (two - 1, [1, 2, 3, 1, 2, 3, 4, 5]), (two, [1, 2, 3, 4, 5, 6, 1, 2]),
        (None, [1, 2, 3, 4, 5, 6, 7, 8]),
    ):  # fmt: skip
        found = [rec for rec in read(tmp_path / "a.parquet", chunk_bytes=chunk_bytes) if isinstance(rec, Record)]
        assert [record.text for record in found] == list("abcdefgh")
        assert [record.place for record in found] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert [record.line for record in found] == numbers


def test_ten_thousand_small_row_groups_are_one_task_and_its_progress_their_bytes(tmp_path: Path) -> None:
    """As Hugging Face's datasets writes them, a thousand rows each: a task for each read the whole footer again."""
    table = pyarrow.table({"text": [f"{n}" for n in range(10_000)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    (task,) = plan_tasks([tmp_path / "a.parquet"])
    told: list[int] = []
    found = list(read_task(task, text_key="text", topic_key=None, on_bytes=told.append))
    assert len(found) == len(told) == 10_000
    assert sum(told) == task.size_bytes == (tmp_path / "a.parquet").stat().st_size


@pytest.mark.parametrize("kind", ["jsonl", "gz", "zst"])
def test_progress_is_told_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(lines, "_TOLD_BYTES", 1000)
    rng = random.Random(1)
    raw = "".join(json.dumps({"text": rng.randbytes(30).hex()}) + "\n" for _ in range(20_000)).encode()
    pack = {"jsonl": bytes, "gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}[kind]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(pack(raw))
    (task,) = plan_tasks([path])
    told: list[int] = []
    for number, _ in enumerate(read_task(task, text_key="text", topic_key=None, on_bytes=told.append)):
        if number == 10_000:
            assert 0.3 * task.size_bytes < sum(told) < 0.7 * task.size_bytes
    assert sum(told) == task.size_bytes == path.stat().st_size
