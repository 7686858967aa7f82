"""Rectangles of global tensors read straight from an HF folder, as each rank needs them; nothing is built whole."""

import math

import torch

from megatron_synE.checkpoint.hf_folder import HfFolder
from megatron_synE.checkpoint.hf_mapping import blocks, global_shape
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.model.llama import LlamaArchitecture

_FINITE_PIECE = 1 << 20
"""Elements checked at a time: the piece stays in cache."""


def read_rectangle(
    folder: HfFolder,
    architecture: LlamaArchitecture,
    key: str,
    offsets: tuple[int, ...],
    sizes: tuple[int, ...],
    dtype: torch.dtype,
) -> torch.Tensor:
    """The rectangle of global tensor `key` at `offsets`, read from the HF files in `dtype`.

    fp32 from fp16 or bf16 is exact; any cast to bf16 or fp16 rounds to nearest, ties to even.
    Errors: CheckpointError naming the HF weight if a value read is NaN or infinite (also when the cast makes it so).
    Cost: reads these rows only; one copy when neither cast nor columns are cut.
    """
    shape = global_shape(architecture, key)
    if len(offsets) != len(shape) or any(o < 0 or o + s > n for o, s, n in zip(offsets, sizes, shape, strict=True)):
        raise CheckpointError(f"{key} {list(shape)} has no rectangle {list(sizes)} at {list(offsets)}")
    result = torch.empty(sizes, dtype=dtype)
    if math.prod(sizes) == 0:
        return result
    first, last = offsets[0], offsets[0] + sizes[0]
    for block in blocks(architecture, key):
        begin, end = max(first, block.row), min(last, block.row + block.num_rows)
        if begin >= end:
            continue
        target = result[begin - first : end - first]
        folder.read_into(
            target,
            block.hf_name,
            first_row=block.hf_row + begin - block.row,
            first_column=offsets[1] if len(offsets) == 2 else 0,
        )
        check_finite(target, where=f"{folder.tensors[block.hf_name].file}: {block.hf_name}")
    return result


def check_finite(tensor: torch.Tensor, *, where: str) -> None:
    """Errors: CheckpointError beginning with `where` if any value is NaN or infinite. Cost: one pass, little memory."""
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _FINITE_PIECE):
        piece = flat[start : start + _FINITE_PIECE]
        # A NaN or infinity anywhere makes the sum one; the sum may also overflow by itself, so only then count.
        if not math.isfinite(float(piece.sum(dtype=torch.float32 if piece.dtype == torch.float16 else None))):
            count = int((~torch.isfinite(flat)).sum())
            if count == 0:
                continue
            raise CheckpointError(f"{where} holds {count} NaN or infinite values ({str(tensor.dtype)[6:]})")
