"""silu(gate) * up and its gradient without intermediate tensors, by Triton.

Gate and up lie side by side, as the fused first product of the MLP writes them; liger-kernel's wants them apart, which
costs a copy of both. Kept for the backward pass: the input alone.

Legend: n rows, f MLP width on this TP rank.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from megatron_synE.kernels.launch import accumulator

COLUMNS = 1024
"""Of one program; a row of 8B's 14336 is fourteen of them. Ours, to be measured."""


@triton.jit  # type: ignore[untyped-decorator]
def _forward(x, y, x_stride, f, BLOCK: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < f
    gate = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(DTYPE)
    up = tl.load(x + row * x_stride + f + columns, mask=inside, other=0.0).to(DTYPE)
    tl.store(y + row * f + columns, (gate / (1.0 + tl.exp(-gate)) * up).to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(dy, x, dx, x_stride, f, BLOCK: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < f
    gate = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(DTYPE)
    up = tl.load(x + row * x_stride + f + columns, mask=inside, other=0.0).to(DTYPE)
    gradient = tl.load(dy + row * f + columns, mask=inside, other=0.0).to(DTYPE)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    of_gate = gradient * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    of_up = gradient * gate * sigmoid
    tl.store(dx + row * 2 * f + columns, of_gate.to(dx.dtype.element_ty), mask=inside)
    tl.store(dx + row * 2 * f + f + columns, of_up.to(dx.dtype.element_ty), mask=inside)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])  # [n, 2f]
        rows = rows if rows.stride(-1) == 1 else rows.contiguous()
        n, f = rows.shape[0], rows.shape[1] // 2
        y = torch.empty(n, f, dtype=x.dtype, device=x.device)
        if n:
            _forward[(n, triton.cdiv(f, COLUMNS))](
                rows, y, rows.stride(0), f, BLOCK=COLUMNS, DTYPE=accumulator(x.dtype)[1]
            )
        ctx.save_for_backward(rows)
        return y.view(*x.shape[:-1], f)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (rows,) = ctx.saved_tensors
        n, f = rows.shape[0], rows.shape[1] // 2
        dy = gradient.reshape(n, f).contiguous()
        dx = torch.empty(n, 2 * f, dtype=rows.dtype, device=rows.device)
        if n:
            _backward[(n, triton.cdiv(f, COLUMNS))](
                dy, rows, dx, rows.stride(0), f, BLOCK=COLUMNS, DTYPE=accumulator(rows.dtype)[1]
            )
        return dx.view(*gradient.shape[:-1], 2 * f)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """As plain.swiglu."""
    return _SwiGLU.apply(x)  # type: ignore[no-any-return, no-untyped-call]
