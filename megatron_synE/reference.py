"""Logits of a folder of weights by our own model in one process: what `syne verify` compares with transformers."""

from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_synE.alone import CPU, build_alone
from megatron_synE.model.gpt import LlamaModel
from megatron_synE.model.llama import LlamaArchitecture
from megatron_synE.model.packed_row import packed_row


def build_reference(architecture: LlamaArchitecture, weights: Path, *, seq_length: int) -> LlamaModel:
    """The model in fp32 on the CPU with the weights of an HF folder or an iter_* checkpoint.

    With plain torch's kernels, which round as transformers' layers do: kernels that add in another order lie closer to
    float64, but on a model's worst token fp32 alone is off by a share of 3e-5, and what is compared are the weights.
    Errors: CheckpointError for weights that do not fit.
    """
    return build_alone(
        architecture, weights, seq_length=seq_length, precision="fp32", device=CPU, attention="native", kernels="torch"
    )


@torch.no_grad()
def logits(
    model: LlamaModel,
    tokens: torch.Tensor,
    bounds: Sequence[int] | None = None,
    *,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """tokens [s] int64 -> [s, vocab_size] fp32.

    bounds: borders of documents in the row (0 first, s last); None: one document. positions [s]: None: consecutive.
    """
    borders = tuple(bounds) if bounds is not None else (0, len(tokens))
    row = packed_row(borders, max_segments=len(borders), device=tokens.device)
    if positions is not None:
        row.positions = positions
    out = model(tokens.unsqueeze(0), None, None, packed_seq_params=row)  # [1, s, v]
    return model.gather_logits(out).squeeze(0).float()
