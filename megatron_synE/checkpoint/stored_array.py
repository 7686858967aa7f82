"""Rectangles of arrays that lie contiguous inside a file, read straight into tensors.

Plain positioned reads instead of a memory map: pages of a map count as this process's memory, a truncated file
ends in SIGBUS instead of a message, and rows land in their final place without a second copy.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_synE.exit_codes import CheckpointError

BLOCK_BYTES = 16 << 20
"""Rows that must be cast or cut pass through a buffer of about this size. Ours: few calls, little memory."""


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """Where one array (row-major, little-endian) lies."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Of its first byte, from the start of the file."""


def read_into(target: torch.Tensor, stored: StoredArray, offsets: Sequence[int]) -> None:
    """Fill `target` from the rectangle of `stored` that begins at `offsets` (one per dim), casting to target's dtype.

    Errors: CheckpointError naming file and array if the file is missing or ends too early.
    Cost: runs of whole rows of the same dtype are read in place; cut or cast rows take one more copy.
    """
    if target.numel() == 0:
        return
    try:
        with stored.file.open("rb", buffering=0) as stream:
            _read(stream.fileno(), target, stored, stored.shape, tuple(offsets), stored.offset)
    except FileNotFoundError as error:
        raise CheckpointError(f"{stored.file}: missing; it should hold {stored.name}") from error
    except OSError as error:
        raise CheckpointError(f"{stored.file}: cannot be read ({error.strerror})") from error


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as bytes, without a copy."""
    return memoryview(tensor.detach().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's stubs


def _read(
    fd: int, target: torch.Tensor, stored: StoredArray, shape: tuple[int, ...], offsets: tuple[int, ...], start: int
) -> None:
    """`shape` and `start` describe the sub-array of `stored` that has target's number of dims."""
    if len(shape) > 2:
        stride = math.prod(shape[1:]) * stored.dtype.itemsize
        for index in range(target.shape[0]):
            _read(fd, target[index], stored, shape[1:], offsets[1:], start + (offsets[0] + index) * stride)
        return
    if len(shape) == 0:
        target, shape, offsets = target.view(1), (1,), (0,)
    row_bytes = math.prod(shape[1:]) * stored.dtype.itemsize
    start += offsets[0] * row_bytes
    is_whole_rows = target.shape[1:] == shape[1:]
    is_in_place = target.device.type == "cpu" and target.dtype == stored.dtype and target.is_contiguous()
    if is_whole_rows and is_in_place:
        return _read_exactly(fd, target, stored, start)
    block_rows = max(1, BLOCK_BYTES // row_bytes)
    buffer = torch.empty((min(block_rows, target.shape[0]), *shape[1:]), dtype=stored.dtype)
    for row in range(0, target.shape[0], block_rows):
        block = buffer[: min(block_rows, target.shape[0] - row)]
        _read_exactly(fd, block, stored, start + row * row_bytes)
        rows = target[row : row + len(block)]
        rows.copy_(block if is_whole_rows else block[:, offsets[1] : offsets[1] + target.shape[1]])


def _read_exactly(fd: int, target: torch.Tensor, stored: StoredArray, start: int) -> None:
    view = byte_view(target)
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], start + done)
        if count == 0:
            raise CheckpointError(f"{stored.file}: truncated inside {stored.name}")
        done += count
