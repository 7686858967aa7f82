"""Headers of safetensors files, written here by hand: what is in them, and what is refused in which words."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from megatron_synE.checkpoint.safetensors_file import SafetensorsWriter, read_header
from megatron_synE.exit_codes import CheckpointError

ENTRIES: dict[str, Any] = {
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
    "empty": {"dtype": "F16", "shape": [0, 3], "data_offsets": [8, 8]},
    "scale": {"dtype": "F32", "shape": [], "data_offsets": [16, 20]},
}


def written(folder: Path, header: Any, data: bytes) -> tuple[Path, int]:
    """The file, and where its data begin."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "f.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder / "f.safetensors", 8 + len(text)


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return ENTRIES | {name: ENTRIES[name] | fields}


def test_tensors_are_described_in_the_order_of_their_data(tmp_path: Path) -> None:
    file, start = written(tmp_path, ENTRIES, bytes(20))
    found = read_header(file)
    assert [(e.name, e.dtype, e.shape, e.offset - start, e.size_bytes) for e in found.values()] == [
        ("a", "BF16", (2, 2), 0, 8), ("empty", "F16", (0, 3), 8, 0), ("b", "F32", (2,), 8, 8),
        ("scale", "F32", (), 16, 4),
    ]  # fmt: skip
    array = found["b"].array()
    assert (array.name, array.file, array.dtype, array.shape, array.offset) == (
        "b",
        file,
        torch.float32,
        (2,),
        start + 8,
    )
    assert read_header(written(tmp_path, {}, b"")[0]) == {}


@pytest.mark.parametrize(
    ("num_bytes", "what"),
    [(19, "truncated, scale is cut"), (15, "truncated, b is cut"), (0, "truncated, a is cut"),
     (21, "longer than it should be")],
)  # fmt: skip
def test_a_file_of_another_length_is_said_to_be_cut_where_it_is(tmp_path: Path, num_bytes: int, what: str) -> None:
    file, start = written(tmp_path, ENTRIES, bytes(num_bytes))
    with pytest.raises(CheckpointError) as found:
        read_header(file)
    described, has = start + 20, start + num_bytes
    assert str(found.value) == f"{file}: {what}: the header describes {described} bytes, the file has {has}"


def test_data_with_a_hole_or_an_overlap_are_refused(tmp_path: Path) -> None:
    for offsets, data in (([12, 20], 20), ([4, 12], 12)):
        header = {name: ENTRIES[name] for name in ("a", "b")} | {"b": ENTRIES["b"] | {"data_offsets": offsets}}
        file, start = written(tmp_path, header, bytes(data))
        with pytest.raises(CheckpointError, match=f"b begins at byte {start + offsets[0]}, expected {start + 8}$"):
            read_header(file)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (changed("a", shape=None), "the header entry of a is damaged"),
        (changed("a", shape=["x"]), "the header entry of a is damaged"),
        (changed("a", data_offsets=[0, 4, 8]), "the header entry of a is damaged"),
        (ENTRIES | {"a": {"shape": [4], "data_offsets": [0, 8]}}, "the header entry of a is damaged"),
        (changed("a", shape=[2, 3]), "a is BF16 [2, 3] but has 8 bytes of data"),
        (changed("a", shape=[-2, -2]), "a is BF16 [-2, -2] but has 8 bytes of data"),
        (changed("a", data_offsets=[-8, 0]), "a is BF16 [2, 2] but has 8 bytes of data"),
        (changed("a", dtype="I64", data_offsets=[8, 0]), "a is I64 [2, 2] but has -8 bytes of data"),
        (b"not JSON", "its header is not JSON"),
        (b"[]", "its header is not a JSON object"),
    ],
)  # fmt: skip
def test_a_damaged_header_is_refused(tmp_path: Path, header: Any, message: str) -> None:
    file, _ = written(tmp_path, header, bytes(20))
    with pytest.raises(CheckpointError, match=re.escape(f"{file}: {message}")):
        read_header(file)


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.safetensors"
    for content in (b"", bytes(7), (3).to_bytes(8, "little") + b"{}"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"cut inside its header \({len(content)} bytes\)$"):
            read_header(file)
    with pytest.raises(CheckpointError, match=r"absent: missing$"):
        read_header(tmp_path / "absent")


def test_a_dtype_that_weights_cannot_have_is_described_but_not_read(tmp_path: Path) -> None:
    header = {"n": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}}
    entry = read_header(written(tmp_path, header, bytes(16))[0])["n"]
    assert (entry.dtype, entry.size_bytes) == ("I64", 16)
    with pytest.raises(CheckpointError, match="n has dtype I64; weights must be F32, F16 or BF16"):
        entry.array()


def full_disk(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("refused", ["write", "fsync"])
def test_a_disk_that_refuses_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Threads write, so a refusal may come out late: at the latest when the file is closed."""
    monkeypatch.setattr(os, refused, full_disk)
    announced = {"a": (torch.float32, (4, 2))}
    with (
        pytest.raises(CheckpointError, match=r"f\.safetensors: cannot be written \(No space left on device\)"),
        SafetensorsWriter(tmp_path / "f.safetensors", announced) as writer,
    ):
        writer.append(torch.zeros(4, 2))
