"""One packed row: all sequences of a micro-batch end to end, with the borders attention must not cross.

Legend: t tokens of the row = micro_batch_size * seq_length.
"""

from dataclasses import dataclass, field

import torch

from megatron_synE.runtime.mcore import PackedSeqParams


@dataclass
class PackedRow(PackedSeqParams):
    """megatron-core's thd parameters, plus what our attention needs once per micro-batch.

    cu_seqlens have a fixed, padded length (trailing entries repeat t), max_seqlen is a Python int: nothing here makes
    the host wait for the device.
    """

    positions: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """[t] int64, restarting at each segment."""
    bounds: tuple[int, ...] = ()
    """Segment borders on the host: 0, ..., t, without repeats."""
    rotary_cos: torch.Tensor | None = None
    """[t, 1, hn]; filled by the model at the start of its forward pass."""
    rotary_sin: torch.Tensor | None = None


def packed_row(bounds: tuple[int, ...], *, max_segments: int, device: torch.device) -> PackedRow:
    """The row with these segment borders.

    bounds: 0 = first border < ... < last border = t. max_segments: fixed length for cu_seqlens, ≥ len(bounds) - 1.
    """
    total = bounds[-1]
    if len(bounds) - 1 > max_segments:
        raise AssertionError(f"{len(bounds) - 1} segments in a row made for {max_segments}")
    borders = torch.tensor(bounds, dtype=torch.int64)
    starts = torch.repeat_interleave(borders[:-1], borders.diff())
    positions = torch.arange(total) - starts
    padded = torch.full((max_segments + 1,), total, dtype=torch.int32)
    padded[: len(bounds)] = borders
    cu_seqlens = moved(padded, device)
    longest = int(borders.diff().max())
    return PackedRow(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        positions=moved(positions, device),
        bounds=bounds,
    )


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, without waiting for the copy: from pinned memory, or the host would wait all the same.

    The pinned block goes back to torch's host allocator, which gives it out again only after the copy has ended.
    """
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
