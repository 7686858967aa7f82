"""RMSNorm and SwiGLU on a CPU: forward and backward written out, a few rows at a time.

Autograd of the plain functions keeps and moves arrays of a whole row, many of them in fp32: at 1,024 tokens each is
larger than a core's cache. Here what is computed in between stays in it, and for the backward pass the input is kept
and no other array as large. SwiGLU gains memory by it, not time (docs/performance.md).

Legend: n rows, h hidden, f MLP width on this TP rank.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

ROWS_BYTES = 1 << 19
"""One intermediate array of the rows that a thread has at a time, in fp32. Measured; ours."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As plain.rms_norm; computed in fp32 (in float64 for float64) and rounded once."""
    apply: Any = _RMSNorm.apply
    out: torch.Tensor = apply(x, weight, eps)
    return out


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """As plain.swiglu."""
    apply: Any = _SwiGLU.apply
    out: torch.Tensor = apply(x)
    return out


def _rows_at_once(width: int) -> int:
    return max(1, torch.get_num_threads() * ROWS_BYTES // (4 * width))


def _pieces(width: int, *arrays: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(torch.split(array, _rows_at_once(width)) for array in arrays), strict=True)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        rows, h = x.reshape(-1, x.shape[-1]), x.shape[-1]  # [n, h]
        wide = torch.promote_types(x.dtype, torch.float32)
        y, w = torch.empty_like(x, memory_format=torch.contiguous_format), weight.to(wide)
        scale = rows.new_empty(len(rows), 1, dtype=wide)  # [n, 1], 1 / rms
        for xs, ys, scales in _pieces(h, rows, y.view(-1, h), scale):
            values = xs.to(wide, copy=True)
            torch.linalg.vector_norm(values, dim=-1, keepdim=True, out=scales)
            scales.square_().div_(h).add_(eps).rsqrt_()
            ys.copy_(values.mul_(scales).mul_(w))
        ctx.save_for_backward(rows, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        rows, weight, scale = ctx.saved_tensors
        h = rows.shape[-1]
        dx, w = torch.empty_like(rows), weight.to(scale.dtype)
        d_weight, ones = torch.zeros_like(w), w.new_ones(min(_rows_at_once(h), len(rows)))
        for dys, xs, scales, dxs in _pieces(h, gradient.reshape(-1, h), rows, scale, dx):
            normed, d = xs.to(w.dtype, copy=True).mul_(scales), dys.to(w.dtype, copy=True)
            products = d * normed
            d_weight.addmv_(products.t(), ones[: len(products)])
            share = torch.mv(products, w).div_(h).unsqueeze(1)  # of each row along itself
            dxs.copy_(d.mul_(w).sub_(normed.mul_(share)).mul_(scales))
        return dx.view(gradient.shape), d_weight.to(weight.dtype), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        rows, f = x.reshape(-1, x.shape[-1]), x.shape[-1] // 2  # [n, 2f]
        y = rows.new_empty(*x.shape[:-1], f)
        for xs, ys in _pieces(f, rows, y.view(-1, f)):
            torch.mul(torch.nn.functional.silu(xs[:, :f]), xs[:, f:], out=ys)
        ctx.save_for_backward(rows)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (rows,) = ctx.saved_tensors
        f = rows.shape[-1] // 2
        dx = torch.empty_like(rows)
        for dys, xs, dxs in _pieces(f, gradient.reshape(-1, f), rows, dx):
            gate, up = xs[:, :f], xs[:, f:]
            torch.mul(dys, torch.nn.functional.silu(gate), out=dxs[:, f:])
            torch.ops.aten.silu_backward.grad_input(dys * up, gate, grad_input=dxs[:, :f])
        return dx.view(*gradient.shape[:-1], 2 * f)
