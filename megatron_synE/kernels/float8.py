"""A linear layer whose matrix products are in FP8, by torch._scaled_mm: forward e4m3, gradients e5m2 or e4m3.

tensorwise: one scale for a whole tensor, the largest absolute value to the largest FP8 number. rowwise: one for each
row of the product's left side and column of its right one, so that an outlier costs its own row alone; the weight's
gradient would then need a scale for each column of the activations too and is left in bf16.

Legend: n tokens, k inputs, m outputs of the layer on this TP rank.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch

from megatron_synE.kernels.choice import can_compile

Format = Literal["hybrid", "e4m3"]
"""Megatron's words: hybrid has gradients in e5m2, which reaches further and is coarser."""
Recipe = Literal["tensorwise", "rowwise"]

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def quantise(x: torch.Tensor, dtype: torch.dtype, *, dim: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(x / scale in FP8, scale in fp32) with the largest |x| at the largest FP8 number; x about FP8 * scale.

    dim: None: one scale. Else one along this dimension, kept as size 1. A tensor of zeros has scale 1; NaN and infinity
    make the scale NaN or infinite and with it the product, so that a broken step is seen and not rounded away.
    """
    largest = x.abs().amax() if dim is None else x.abs().amax(dim=dim, keepdim=True)
    limit = torch.finfo(dtype).max
    scale = largest.float() / limit
    scale = torch.where(scale == 0, 1.0, scale)
    return cast(x, scale, dtype), scale


def cast(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x / scale in FP8. Clamped: rounding may lift the largest one over the limit, and a cast beyond it is NaN."""
    limit = torch.finfo(dtype).max
    return (x.float() / scale).clamp(-limit, limit).to(dtype)


def transposed(x: torch.Tensor) -> torch.Tensor:
    """x.t() in memory of its own; a matrix of FP8 as one of bytes, which is all that a compiler needs to know."""
    return x.view(torch.uint8).t().contiguous().view(x.dtype) if x.itemsize == 1 else x.t().contiguous()


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Two passes over memory instead of seven: eager quantisation would cost as much as FP8 saves.

    Weights are to be given detached: torch.compile makes a version for each shape of a Parameter, and no more than
    eight of a function; of other tensors one serves all shapes.
    """
    return torch.compile(function)


def _fused(function: Callable[..., Any], x: torch.Tensor) -> Callable[..., Any]:
    return _compiled(function) if x.is_cuda and can_compile() else function


def product(
    left: torch.Tensor, left_scale: torch.Tensor, right: torch.Tensor, right_scale: torch.Tensor,
    *, out_dtype: torch.dtype, fast_accumulation: bool,
) -> torch.Tensor:  # fmt: skip
    """left [a, b] @ right.T [b, c] -> [a, c]; right is given as [c, b], the way its product wants it in memory."""
    return torch._scaled_mm(
        left, right.t(), scale_a=left_scale, scale_b=right_scale.t() if right_scale.dim() else right_scale,
        out_dtype=out_dtype, use_fast_accum=fast_accumulation,
    )  # fmt: skip


@cache
def cpu_scales_rows() -> bool:
    """Whether this torch multiplies FP8 with a scale a row on a CPU (2.13 does, 2.11 does not): asked by doing it."""
    try:
        product(
            torch.ones(16, 16).to(E4M3), torch.ones(16, 1), torch.ones(16, 16).to(E4M3), torch.ones(16, 1),
            out_dtype=torch.bfloat16, fast_accumulation=True,
        )  # fmt: skip
    except RuntimeError:
        return False
    return True


class _Linear(torch.autograd.Function):
    """Accumulation is fast forward and exact backward, as Transformer Engine's: a forward error is one of many."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, recipe: Recipe, gradients: torch.dtype
    ) -> torch.Tensor:
        dim = None if recipe == "tensorwise" else 1
        x8, x_scale = _fused(quantise, x)(x.detach(), E4M3, dim=dim)
        w8, w_scale = _fused(quantise, x)(weight.detach(), E4M3, dim=dim)
        ctx.recipe, ctx.gradients = recipe, gradients
        if recipe == "tensorwise":
            ctx.save_for_backward(x8, x_scale, weight, w_scale)  # one byte an activation
        else:
            ctx.save_for_backward(x, x_scale, weight, w_scale)
        return product(x8, x_scale, w8, w_scale, out_dtype=x.dtype, fast_accumulation=True)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        kept, x_scale, weight, w_scale = ctx.saved_tensors
        turned = _fused(transposed, gradient)
        if ctx.recipe == "tensorwise":
            g8, g_scale = _fused(quantise, gradient)(gradient, ctx.gradients)
            # The weight is rounded anew: its FP8 copy would stay in memory from every layer's forward pass on.
            w8 = turned(_fused(cast, gradient)(weight.detach(), w_scale, E4M3))
            dx = product(g8, g_scale, w8, w_scale, out_dtype=gradient.dtype, fast_accumulation=False)
            dw = product(turned(g8), g_scale, turned(kept), x_scale, out_dtype=weight.dtype, fast_accumulation=False)
        else:
            g8, g_scale = _fused(quantise, gradient)(gradient, ctx.gradients, dim=1)
            # [k, m], a scale for each of k
            w8, columns = _fused(quantise, gradient)(turned(weight.detach()), E4M3, dim=1)
            dx = product(g8, g_scale, w8, columns, out_dtype=gradient.dtype, fast_accumulation=False)
            dw = gradient.t() @ kept
        return dx, dw, None, None


def linear(x: torch.Tensor, weight: torch.Tensor, *, form: Format, recipe: Recipe) -> torch.Tensor:
    """x [..., k] @ weight [m, k].T -> [..., m] in x's type; both gradients by the recipe.

    On CUDA k, m and, for a gradient, the number of tokens must be multiples of 16.
    """
    gradients = E5M2 if form == "hybrid" else E4M3
    rows = x.reshape(-1, x.shape[-1])  # [n, k]
    out = _Linear.apply(rows, weight, recipe, gradients)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], weight.shape[0])  # type: ignore[no-any-return]
