"""One packed row: all sequences of a micro-batch end to end, with the borders attention must not cross.

Legend: t tokens of the row = micro_batch_size * seq_length; cp context-parallel ranks.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

import torch

from megatron_synE.model.context_part import WHOLE, ContextPart
from megatron_synE.runtime.mcore import PackedSeqParams


@dataclass
class PackedRow(PackedSeqParams):
    """megatron-core's thd parameters, plus what our attention needs once per micro-batch.

    cu_seqlens have a fixed, padded length (trailing entries repeat t), max_seqlen is a Python int: nothing here makes
    the host wait for the device.
    """

    positions: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """[t / cp] int64, restarting at each segment."""
    bounds: tuple[int, ...] = ()
    """Borders of the queries' segments on the host: 0, ..., t, without repeats."""
    key_bounds: tuple[int, ...] = ()
    """Of the keys' segments. The same, but in a chunk the first segment has the keys before the chunk too."""
    chunks: tuple["Chunk", ...] = ()
    """Under context parallelism the parts of the row whose queries this rank has, in its order."""
    rotary_cos: torch.Tensor | None = None
    """[t / cp, 1, hn]; filled by the model at the start of its forward pass."""
    rotary_sin: torch.Tensor | None = None


@dataclass(frozen=True)
class Chunk:
    """Consecutive queries of a row, and the keys that they may see."""

    keys: slice
    """Of the whole row: from the beginning of the first query's segment to the last query."""
    row: PackedRow
    """cu_seqlens of these queries and these keys; a segment's queries are the last of its keys."""


def packed_row(
    bounds: tuple[int, ...], *, max_segments: int, device: torch.device, part: ContextPart = WHOLE
) -> PackedRow:
    """The row with these segment borders, as the rank with this part of it sees it.

    bounds: 0 = first border < ... < last border = t. max_segments: fixed length for cu_seqlens, ≥ len(bounds) - 1.
    """
    borders = torch.tensor(bounds, dtype=torch.int64)
    starts = torch.repeat_interleave(borders[:-1], borders.diff())
    positions = torch.arange(bounds[-1]) - starts
    row = _row(bounds, bounds, max_segments=max_segments, device=device)
    row.positions = moved(part.of(positions), device)
    if part.size > 1:
        row.chunks = tuple(
            _chunk(bounds, queries, max_segments=max_segments, device=device) for queries in part.chunks(bounds[-1])
        )
    return row


def _chunk(bounds: tuple[int, ...], queries: range, *, max_segments: int, device: torch.device) -> Chunk:
    first = bounds[bisect_right(bounds, queries.start) - 1]  # where the first query's segment begins
    inside = bounds[bisect_right(bounds, queries.start) : bisect_left(bounds, queries.stop)]
    query_bounds = tuple(border - queries.start for border in (queries.start, *inside, queries.stop))
    key_bounds = tuple(border - first for border in (first, *inside, queries.stop))
    row = _row(query_bounds, key_bounds, max_segments=max_segments, device=device)
    return Chunk(slice(first, queries.stop), row)


def _row(bounds: tuple[int, ...], key_bounds: tuple[int, ...], *, max_segments: int, device: torch.device) -> PackedRow:
    of_queries = _cu_seqlens(bounds, max_segments, device)
    of_keys = of_queries if key_bounds == bounds else _cu_seqlens(key_bounds, max_segments, device)
    return PackedRow(
        qkv_format="thd",
        cu_seqlens_q=of_queries,
        cu_seqlens_kv=of_keys,
        max_seqlen_q=_longest(bounds),
        max_seqlen_kv=_longest(key_bounds),
        bounds=bounds,
        key_bounds=key_bounds,
    )


def _cu_seqlens(bounds: tuple[int, ...], max_segments: int, device: torch.device) -> torch.Tensor:
    if len(bounds) - 1 > max_segments:
        raise AssertionError(f"{len(bounds) - 1} segments in a row made for {max_segments}")
    padded = torch.full((max_segments + 1,), bounds[-1], dtype=torch.int32)
    padded[: len(bounds)] = torch.tensor(bounds, dtype=torch.int32)
    return moved(padded, device)


def _longest(bounds: tuple[int, ...]) -> int:
    return max(stop - start for start, stop in zip(bounds[:-1], bounds[1:], strict=True))


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, without waiting for the copy: from pinned memory, or the host would wait all the same.

    The pinned block goes back to torch's host allocator, which gives it out again only after the copy has ended.
    """
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
