"""The safetensors file format: headers read and checked without data, files written as a stream."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from megatron_synE.checkpoint.stored_array import StoredArray, byte_view
from megatron_synE.checkpoint.streamed_file import StreamedFile
from megatron_synE.exit_codes import CheckpointError

DTYPES: dict[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The only dtypes that weights may have."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_POINTER = b"version https://git-lfs"
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, kw_only=True)
class HeaderEntry:
    """One tensor as the header of a file describes it."""

    name: str
    file: Path
    dtype: str
    """The format's own name: F32, BF16, ..."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte, from the start of the file."""
    size_bytes: int

    def array(self) -> StoredArray:
        """Where its values lie. Errors: CheckpointError if the dtype is not one that weights may have."""
        if self.dtype not in DTYPES:
            raise CheckpointError(f"{self.file}: {self.name} has dtype {self.dtype}; weights must be F32, F16 or BF16")
        return StoredArray(
            name=self.name, file=self.file, dtype=DTYPES[self.dtype], shape=self.shape, offset=self.offset
        )


def read_header(file: Path) -> dict[str, HeaderEntry]:
    """All tensors of one safetensors file, in the order of their data.

    Errors: CheckpointError naming the file (and tensor) when it is missing, not safetensors, or shorter or longer than
    its header says.
    """
    try:
        with file.open("rb") as stream:
            file_size = os.fstat(stream.fileno()).st_size
            header_size = int.from_bytes(stream.read(8), "little")
            if file_size < 8 or header_size > min(_MAX_HEADER_BYTES, file_size - 8):
                refuse_pointer(file)
                raise CheckpointError(f"{file}: not a safetensors file, or cut inside its header ({file_size} bytes)")
            header = json.loads(stream.read(header_size))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: missing") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: its header is not a JSON object")
    header.pop("__metadata__", None)
    entries = [_header_entry(file, name, raw, data_start=8 + header_size) for name, raw in header.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.size_bytes))
    position = 8 + header_size
    for entry in entries:
        if entry.offset != position:
            raise CheckpointError(f"{file}: {entry.name} begins at byte {entry.offset}, expected {position}")
        position += entry.size_bytes
    if position != file_size:
        cut = next((e.name for e in entries if e.offset + e.size_bytes > file_size), None)
        what = f"truncated, {cut} is cut" if cut else "longer than it should be"
        raise CheckpointError(f"{file}: {what}: the header describes {position} bytes, the file has {file_size}")
    return {entry.name: entry for entry in entries}


def refuse_pointer(file: Path) -> None:
    """Errors: CheckpointError for what Git leaves in place of a large file that it has not fetched."""
    with file.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(f"{file}: stands for a file that Git LFS has not fetched; run `git lfs pull` there")


class SafetensorsWriter:
    """Writes one file tensor by tensor in the announced order; a tensor may come in several runs of rows.

    Leaving the context without an exception fsyncs the file. Errors: CheckpointError if the disk refuses, or if what
    was written is not what was announced.
    """

    def __init__(self, file: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self._file = file
        self._header = _header_bytes(tensors)
        self._num_bytes = sum(math.prod(shape) * dtype.itemsize for dtype, shape in tensors.values())
        self._stream: StreamedFile | None = None

    def __enter__(self) -> Self:
        try:
            self._stream = StreamedFile(self._file, with_hash=False)
            self._stream.append(memoryview(self._header))
        except OSError as error:
            raise self._refused(error) from error
        return self

    def append(self, rows: torch.Tensor) -> None:
        """The next rows in the order of the header; they must not change any more."""
        assert self._stream is not None
        try:
            self._stream.append(byte_view(rows.contiguous()))
        except OSError as error:
            raise self._refused(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        if kind is not None:
            self._stream.abandon()
            return
        written, announced = self._stream.tell() - len(self._header), self._num_bytes
        try:
            self._stream.close()
        except OSError as refused:
            raise self._refused(refused) from refused
        if written != announced:
            raise CheckpointError(f"{self._file}: {written} bytes were written, {announced} announced")

    def _refused(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"{self._file}: cannot be written ({error.strerror})")


def _header_entry(file: Path, name: str, raw: Any, *, data_start: int) -> HeaderEntry:
    try:
        dtype, shape = str(raw["dtype"]), tuple(int(length) for length in raw["shape"])
        begin, end = (int(offset) for offset in raw["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: the header entry of {name} is damaged ({error!r})") from error
    size_bytes = end - begin
    is_wrong_size = dtype in DTYPES and size_bytes != math.prod(shape) * DTYPES[dtype].itemsize
    if begin < 0 or size_bytes < 0 or min(shape, default=0) < 0 or is_wrong_size:
        raise CheckpointError(f"{file}: {name} is {dtype} {list(shape)} but has {size_bytes} bytes of data")
    return HeaderEntry(name=name, file=file, dtype=dtype, shape=shape, offset=data_start + begin, size_bytes=size_bytes)


def _header_bytes(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data must start at a multiple of 8
    return len(text).to_bytes(8, "little") + text
