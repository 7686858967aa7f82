"""Whatever bytes an .idx holds: it opens and answers every question inside the file, or DataError names it."""

import struct
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mixers.errors import DataError
from data_mixers.manifest import IDX_HEADER, IDX_MAGIC, bytes_described
from megatron_synE.data.indexed import IndexedFile, IndexedWriter

DOCUMENTS = ([5, 6, 7], [8], [9, 10, 11, 12, 2], [3, 2])
NUMBERS = st.one_of(st.integers(0, 12), st.sampled_from([2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]))


@cache
def valid() -> tuple[bytes, bytes]:
    """A whole pair: .bin and .idx."""
    with tempfile.TemporaryDirectory() as name:
        prefix = Path(name) / "a"
        with IndexedWriter(prefix, dtype="uint16") as writer:
            for document in DOCUMENTS:
                writer.add_document(np.array(document))
        return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


def ask_everything(folder: Path, idx: bytes) -> None:
    (folder / "a.bin").write_bytes(valid()[0])
    (folder / "a.idx").write_bytes(idx)
    described = None
    with suppress(DataError):
        described = bytes_described(folder / "a.idx")
    try:
        file = IndexedFile(folder / "a")
    except DataError:
        return
    assert described == (folder / "a.bin").stat().st_size
    ranges = file.document_ranges().tolist()
    if file.num_documents:
        assert (ranges[0], ranges[-1]) == (0, file.num_tokens)
        assert ranges == sorted(ranges)
    starts = file.document_starts_in(0, file.num_tokens).tolist()
    assert starts == sorted({start for start in ranges[:-1] if start < file.num_tokens})
    assert len(file.tokens(0, file.num_tokens)) == file.num_tokens


@given(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=4), st.integers(-40, 20))
@settings(max_examples=300, deadline=None)
def test_changed_and_cut_bytes(changes: list[tuple[int, int]], cut: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        content = bytearray(valid()[1])
        for place, value in changes:
            content[place % len(content)] = value
        ask_everything(Path(name), bytes(content[:cut]) if cut < 0 else bytes(content) + bytes(cut))


@given(NUMBERS, NUMBERS, st.integers(0, 10), st.integers(0, 3), st.lists(st.integers(-3, 30), max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_header_before_any_numbers(
    num_sequences: int, num_boundaries: int, code: int, version: int, numbers: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        head = IDX_HEADER.pack(IDX_MAGIC, version, code, num_sequences, num_boundaries)
        ask_everything(Path(name), head + b"".join(struct.pack("<i", number) for number in numbers))


@given(st.binary(max_size=100))
@settings(max_examples=100, deadline=None)
def test_any_bytes(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        ask_everything(Path(name), content)
