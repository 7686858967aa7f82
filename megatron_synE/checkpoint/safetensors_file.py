"""The safetensors file format: headers read and checked without data, rectangles read straight into tensors.

Plain positioned reads instead of a memory map: pages of a map count as this process's memory, a truncated file
ends in SIGBUS instead of a message, and rows land in their final place without a second copy.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_synE.exit_codes import CheckpointError

DTYPES: dict[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The only dtypes that weights may have."""
_ITEM_BITS = {"F64": 64, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8}
_ITEM_BITS |= {"F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_BLOCK_BYTES = 16 << 20
"""Rows are read in blocks of about this size where they must be cast or cut. Ours: fits no cache, costs no memory."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies."""

    name: str
    file: Path
    dtype: str
    """The format's own name: F32, BF16, ..."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte, from the start of the file."""
    size_bytes: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """All tensors of one safetensors file, in the order of their data.

    Errors: CheckpointError naming the file (and tensor) when it is missing, not safetensors, or shorter or longer than
    its header says.
    """
    try:
        with file.open("rb") as stream:
            file_size = os.fstat(stream.fileno()).st_size
            header_size = int.from_bytes(stream.read(8), "little")
            if file_size < 8 or header_size > min(_MAX_HEADER_BYTES, file_size - 8):
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
    tensors = [_stored_tensor(file, name, entry, data_start=8 + header_size) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: tensor.offset)
    position = 8 + header_size
    for tensor in tensors:
        if tensor.offset != position:
            raise CheckpointError(f"{file}: {tensor.name} begins at byte {tensor.offset}, expected {position}")
        position += tensor.size_bytes
    if position != file_size:
        cut = next((t.name for t in tensors if t.offset + t.size_bytes > file_size), None)
        what = f"truncated, {cut} is cut" if cut else "longer than it should be"
        raise CheckpointError(f"{file}: {what}: the header describes {position} bytes, the file has {file_size}")
    return {tensor.name: tensor for tensor in tensors}


def _stored_tensor(file: Path, name: str, entry: Any, *, data_start: int) -> StoredTensor:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(length) for length in entry["shape"])
        begin, end = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: the header entry of {name} is damaged ({error!r})") from error
    bits = _ITEM_BITS.get(dtype)
    if begin < 0 or min(shape, default=0) < 0 or (bits and end - begin != math.prod(shape) * bits // 8):
        raise CheckpointError(f"{file}: {name} is {dtype} {list(shape)} but has {end - begin} bytes of data")
    return StoredTensor(
        name=name, file=file, dtype=dtype, shape=shape, offset=data_start + begin, size_bytes=end - begin
    )


def read_rows_into(target: torch.Tensor, stored: StoredTensor, *, first_row: int, first_column: int = 0) -> None:
    """Fill `target` ([rows, columns] or [rows]) from the rectangle of `stored` at (first_row, first_column).

    Casts where the dtypes differ (round to nearest even). Cost: whole rows of the same dtype are read in place;
    otherwise rows pass through a buffer of 16 MiB.
    """
    dtype = DTYPES[stored.dtype]
    row_length = math.prod(stored.shape[1:])
    row_bytes = row_length * dtype.itemsize
    num_rows = target.shape[0]
    is_whole_rows = target.dim() == 1 or target.shape[1] == row_length
    try:
        with stored.file.open("rb", buffering=0) as stream:
            fd = stream.fileno()
            if is_whole_rows and target.dtype == dtype and target.is_contiguous():
                return _read_exactly(fd, target, stored, stored.offset + first_row * row_bytes)
            block_rows = max(1, _BLOCK_BYTES // max(row_bytes, 1))
            buffer = torch.empty((min(block_rows, num_rows), *stored.shape[1:]), dtype=dtype)
            for row in range(0, num_rows, block_rows):
                rows = min(block_rows, num_rows - row)
                _read_exactly(fd, buffer[:rows], stored, stored.offset + (first_row + row) * row_bytes)
                block = buffer[:rows]
                if target.dim() == 2:
                    block = block[:, first_column : first_column + target.shape[1]]
                target[row : row + rows].copy_(block)
    except OSError as error:
        raise CheckpointError(f"{stored.file}: cannot be read ({error.strerror})") from error


def _read_exactly(fd: int, target: torch.Tensor, stored: StoredTensor, offset: int) -> None:
    view = byte_view(target)
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise CheckpointError(f"{stored.file}: truncated inside {stored.name}")
        done += count


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as bytes, without a copy."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy stubs
