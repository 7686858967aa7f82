"""RMSNorm in one pass forward and one backward, by Triton.

Bound by memory: forward reads and writes a row once, backward reads two and writes one. Sums are in fp32 (in fp64 for
fp64 inputs), as torch's are.

Legend: n rows, h hidden.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from megatron_synE.kernels.launch import accumulator, next_power_of_two, num_programs, warps_of


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    x, weight, y, inverse, x_stride, h, eps,
    BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < h
    values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(DTYPE)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, axis=0) / h + eps)
    tl.store(inverse + row, scale)
    weights = tl.load(weight + columns, mask=inside, other=0.0).to(DTYPE)
    tl.store(y + row * h + columns, (values * scale * weights).to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    dy, x, weight, inverse, dx, partial, x_stride, n, h, per_program,
    BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < h
    weights = tl.load(weight + columns, mask=inside, other=0.0).to(DTYPE)
    of_weight = tl.zeros((BLOCK,), dtype=DTYPE)
    first = program * per_program
    for row in range(first, tl.minimum(first + per_program, n)):
        values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(DTYPE)
        gradient = tl.load(dy + row * h + columns, mask=inside, other=0.0).to(DTYPE)
        scale = tl.load(inverse + row)
        normed = values * scale
        of_weight += gradient * normed
        through = gradient * weights
        shared = tl.sum(through * normed, axis=0) / h
        out = (through - normed * shared) * scale
        tl.store(dx + row * h + columns, out.to(dx.dtype.element_ty), mask=inside)
    tl.store(partial + program * h + columns, of_weight, mask=inside)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])  # [n, h]
        rows = rows if rows.stride(-1) == 1 else rows.contiguous()
        n, h = rows.shape
        dtype, compute = accumulator(x.dtype)
        y = torch.empty_like(rows, memory_format=torch.contiguous_format)
        inverse = torch.empty(n, dtype=dtype, device=x.device)
        block = next_power_of_two(h)
        if n:
            _forward[(n,)](
                rows, weight, y, inverse, rows.stride(0), h, eps, BLOCK=block, DTYPE=compute, num_warps=warps_of(block)
            )  # fmt: skip
        ctx.save_for_backward(rows, weight, inverse)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        rows, weight, inverse = ctx.saved_tensors
        n, h = rows.shape
        dy = gradient.reshape(n, h).contiguous()
        dx = torch.empty_like(dy, dtype=rows.dtype)
        programs = num_programs(rows.device, at_most=n)
        # Rows are summed inside a program and programs by torch, in one order: the gradient is the same every time.
        partial = torch.zeros(programs, h, dtype=inverse.dtype, device=rows.device)
        block = next_power_of_two(h)
        if n:
            _backward[(programs,)](
                dy, rows, weight, inverse, dx, partial, rows.stride(0), n, h, -(-n // programs),
                BLOCK=block, DTYPE=accumulator(rows.dtype)[1], num_warps=warps_of(block),
            )  # fmt: skip
        return dx.view(gradient.shape), partial.sum(0).to(weight.dtype), None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As plain.rms_norm. A row must fit a block: h ≤ 65,536."""
    if x.shape[-1] > 65_536:
        raise AssertionError(f"a row of {x.shape[-1]} does not fit one block")
    return _RMSNorm.apply(x, weight, eps)  # type: ignore[no-any-return, no-untyped-call]
