"""Rotary embedding out of a view of the fused QKV product, by Triton; going backward it turns the other way.

Nothing is kept but cos and sin. liger-kernel's takes positions that are the same for every row of a batch, and turns in
place, which a view of the product does not allow.

Legend: t tokens of one packed row, np heads, hn head dim.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from megatron_synE.kernels.launch import accumulator, next_power_of_two


@triton.jit  # type: ignore[untyped-decorator]
def _turn(  # type: ignore[no-untyped-def]
    x, cos, sin, y, token_stride, head_stride, heads, half, sign,
    HEADS: tl.constexpr, HALF: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, HALF)
    head = tl.arange(0, HEADS)
    inside = columns < half
    # Both halves of cos and sin are alike.
    c = tl.load(cos + token * 2 * half + columns, mask=inside, other=0.0).to(DTYPE)[None, :]
    s = tl.load(sin + token * 2 * half + columns, mask=inside, other=0.0).to(DTYPE)[None, :] * sign
    both = (head < heads)[:, None] & inside[None, :]
    source = x + token * token_stride + head[:, None] * head_stride + columns[None, :]
    left = tl.load(source, mask=both, other=0.0).to(DTYPE)
    right = tl.load(source + half, mask=both, other=0.0).to(DTYPE)
    target = y + (token * heads + head[:, None]) * 2 * half + columns[None, :]
    tl.store(target, (left * c - right * s).to(y.dtype.element_ty), mask=both)
    tl.store(target + half, (right * c + left * s).to(y.dtype.element_ty), mask=both)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> torch.Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    t, heads, hn = x.shape
    y = torch.empty(t, heads, hn, dtype=x.dtype, device=x.device)
    if y.numel():
        _turn[(t,)](
            x, cos, sin, y, x.stride(0), x.stride(1), heads, hn // 2, sign,
            HEADS=next_power_of_two(heads), HALF=next_power_of_two(hn // 2), DTYPE=accumulator(x.dtype)[1],
        )  # fmt: skip
    return y


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, sin, -1.0), None, None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """As plain.rotate; cos and sin get no gradient."""
    return _Rotate.apply(x, cos, sin)  # type: ignore[no-any-return, no-untyped-call]
