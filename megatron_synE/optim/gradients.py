"""What is done to all gradients between the backward pass and the optimizer, without the host waiting for the device.

megatron-core asks the device whether there are target tokens at all before it divides by their number, once for each
model chunk; and where neither Transformer Engine nor apex is installed its gradient norm reads the norm of every
parameter on the host, one after the other (195 times a step in Llama-3-8B, megatron/core/utils.py).
"""

from collections.abc import Sequence
from typing import Any

import torch

from megatron_synE.runtime.distributed import broadcast_from_last_stage, sum_over_tokens
from megatron_synE.runtime.mcore import finalize_model_grads, mcore_clip_grads


def finalize(model: Sequence[Any], num_tokens: torch.Tensor | None = None, **named: Any) -> None:
    """megatron-core's finalize_model_grads: sums over ranks, then division by the number of all target tokens.

    num_tokens: of this rank, on the last pipeline stage; overwritten. A batch without any has gradients of zero, which
    stay what they are. Collective: every rank.
    """
    finalize_model_grads(model, None, **named)
    if num_tokens is not None:
        scale = 1.0 / sum_over_tokens(broadcast_from_last_stage(num_tokens)).clamp(min=1)
        for chunk in model:
            chunk.scale_gradients(scale)


def install_where_needed() -> None:
    """Make megatron-core's gradient norm and clipping use ours unless apex or Transformer Engine brings them."""
    if getattr(mcore_clip_grads.l2_norm_impl, "__module__", "") == "megatron.core.utils":
        mcore_clip_grads.l2_norm_impl = l2_norm
        mcore_clip_grads.multi_tensor_scale_impl = scale_in_place


def l2_norm(
    chunk_size: int, flag: torch.Tensor, tensors: Sequence[list[torch.Tensor]], per_tensor: bool
) -> tuple[torch.Tensor, None]:
    """Norm [1] of all tensors together, left on their device; the signature is that of apex."""
    (gradients,) = tensors
    return torch.stack(torch._foreach_norm(gradients)).norm().view(1), None


def scale_in_place(chunk_size: int, flag: torch.Tensor, tensors: Sequence[list[torch.Tensor]], factor: float) -> None:
    """Multiply all tensors; the signature is that of apex, whose sources and targets are here the same."""
    sources, targets = tensors
    assert sources is targets, "clipping scales gradients where they are"
    torch._foreach_mul_(targets, factor)
