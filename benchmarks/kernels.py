"""Every kernel of the native path against this machine's own ceiling: GB/s of a copy, TFLOP/s of a bf16 product.

Each in plain torch and, where Triton runs, in Triton; forward, and forward with backward.

python -m benchmarks.kernels [--tiny] [--device cpu]
"""

import argparse
import contextlib
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks._timing import device_seconds_of
from megatron_synE.kernels import float8, plain
from megatron_synE.kernels.choice import choose_kernels
from megatron_synE.model.native_layers import NativeAttention
from megatron_synE.model.packed_row import packed_row
from megatron_synE.model.rope import cos_sin
from megatron_synE.model.weight_gradient import add_product, adds_into_fp32
from megatron_synE.optim.bf16_adam import Bf16Adam
from megatron_synE.optim.fused_adam import FusedAdam
from megatron_synE.runtime import device as devices
from megatron_synE.runtime.device import Device


@dataclass(frozen=True)
class Shape:
    """Of one layer's work."""

    tokens: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_dim: int
    square: int
    """Side of the product that is the ceiling."""
    copied_bytes: int
    document: int
    """Tokens of each document where documents are masked."""


LLAMA3_8B = Shape(8192, 4096, 14336, 32, 8, 128, 8192, 1 << 30, 1024)
TINY = Shape(64, 32, 48, 4, 2, 16, 64, 1 << 16, 16)


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    name: str
    by: str
    seconds: float
    rate: float
    unit: Literal["GB/s", "TFLOP/s"]
    of_ceiling: float
    """Of the copy, or of the product, measured in the same run."""


def ceilings(shape: Shape, device: Device) -> dict[str, float]:
    """{"GB/s": read and written by a copy, "TFLOP/s": of a square product in bf16}."""
    source = torch.ones(shape.copied_bytes // 4, device=device.torch_device)
    target = torch.empty_like(source)
    copy = device_seconds_of(lambda: target.copy_(source), device)
    a = torch.randn(shape.square, shape.square, device=device.torch_device).bfloat16()
    product = device_seconds_of(lambda: a @ a, device)
    return {"GB/s": 2 * shape.copied_bytes / copy / 1e9, "TFLOP/s": 2 * shape.square**3 / product / 1e12}


def figures(shape: Shape, device: Device, ceiling: dict[str, float]) -> list[Figure]:
    """All kernels. Bytes are those that must be moved at least, FLOPs those of the useful products."""
    found: list[Figure] = []

    def add(name: str, by: str, work: Callable[[], object], amount: float, unit: Literal["GB/s", "TFLOP/s"]) -> None:
        seconds = device_seconds_of(work, device)
        rate = amount / seconds / (1e9 if unit == "GB/s" else 1e12)
        found.append(Figure(name, by, seconds, rate, unit, rate / ceiling[unit]))

    for add_all in (_elementwise, _products, _attention, _optimizers):
        add_all(shape, device, add)
    return found


Add = Callable[[str, str, Callable[[], object], float, Literal["GB/s", "TFLOP/s"]], None]


def _random(device: Device, *sizes: int) -> torch.Tensor:
    return torch.randn(*sizes, device=device.torch_device).bfloat16().requires_grad_()


def _with_backward(function: Callable[[], torch.Tensor], *inputs: torch.Tensor) -> Callable[[], object]:
    gradient = torch.ones_like(function())
    return lambda: torch.autograd.grad(function(), inputs, gradient)


def _elementwise(shape: Shape, device: Device, add: Add) -> None:
    s = shape
    x, weight = _random(device, s.tokens, s.hidden), _random(device, s.hidden)
    gate_up = _random(device, s.tokens, 2 * s.ffn)
    product = torch.randn(s.tokens, s.heads + 2 * s.groups, s.head_dim, device=device.torch_device).bfloat16()
    query = product[:, : s.heads].requires_grad_()  # strided, as in the model
    positions = torch.arange(s.tokens, device=device.torch_device)
    inverse = torch.ones(s.head_dim // 2, device=device.torch_device)
    cos, sin = cos_sin(inverse, positions, torch.bfloat16)
    row, wide, heads = (2 * s.tokens * width for width in (s.hidden, s.ffn, s.heads * s.head_dim))
    kinds = {"torch": choose_kernels("torch", is_cuda=device.is_cuda)}
    fused = choose_kernels("auto", is_cuda=device.is_cuda)
    if fused.names != kinds["torch"].names:
        kinds["triton"] = fused
    for by, kernels in kinds.items():
        swiglu = kernels.swiglu or plain.swiglu

        def turn(rotate: Callable[..., torch.Tensor] = kernels.rotate) -> torch.Tensor:
            return rotate(query, cos, sin)

        # Going backward a norm reads two rows and writes one, the activation reads three and writes two.
        for name, work, inputs, once, twice in (
            ("rms_norm", partial(kernels.rms_norm, x, weight, 1e-5), (x, weight), 2 * row, 5 * row),
            ("swiglu", partial(swiglu, gate_up), (gate_up,), 3 * wide, 8 * wide),
            ("rotate", turn, (query,), 2 * heads, 4 * heads),
        ):
            with torch.no_grad():
                add(name, by, work, once, "GB/s")
            add(f"{name} and backward", by, _with_backward(work, *inputs), twice, "GB/s")


def _products(shape: Shape, device: Device, add: Add) -> None:
    s = shape
    x, weight = _random(device, s.tokens, s.hidden), _random(device, 2 * s.ffn, s.hidden)
    flops, unit = 2.0 * s.tokens * s.hidden * 2 * s.ffn, "TFLOP/s"
    linears: dict[str, Callable[[], torch.Tensor]] = {"bf16": lambda: torch.nn.functional.linear(x, weight)}
    if device.has_fp8:
        linears["FP8 tensorwise"] = lambda: float8.linear(x, weight, form="hybrid", recipe="tensorwise")
        linears["FP8 rowwise"] = lambda: float8.linear(x, weight, form="e4m3", recipe="rowwise")
    for by, work in linears.items():
        with torch.no_grad():
            add("gate and up", by, work, flops, unit)
        add("gate and up, and backward", by, _with_backward(work, x, weight), 3 * flops, unit)
    inputs, d_output = x.detach(), torch.ones(s.tokens, 2 * s.ffn, device=x.device, dtype=x.dtype)
    main_grad = torch.zeros(2 * s.ffn, s.hidden, device=x.device)
    name = "gradient of gate and up"
    add(name, "bf16, then added in fp32", lambda: main_grad.add_(d_output.t() @ inputs), flops, unit)
    by = "product into fp32" if adds_into_fp32(x.device) else "no product into fp32"
    add(name, by, lambda: add_product(main_grad, d_output, inputs), flops, unit)


def _attention(shape: Shape, device: Device, add: Add) -> None:
    """Causal: half of each document's square. Backward is two and a half times forward (five products against two)."""
    s = shape
    attention = NativeAttention.__new__(NativeAttention)
    torch.nn.Module.__init__(attention)
    attention.scale = s.head_dim**-0.5
    q = _random(device, s.tokens, s.heads, s.head_dim)
    k, v = (_random(device, s.tokens, s.groups, s.head_dim) for _ in range(2))
    for name, document in (("causal attention", s.tokens), ("masked attention", s.document)):
        bounds = tuple(range(0, s.tokens + 1, document))
        row = packed_row(bounds, max_segments=len(bounds) - 1, device=device.torch_device)
        work = partial(attention, q, k, v, None, packed_seq_params=row)
        flops = 4.0 * s.heads * s.head_dim * s.tokens * document / 2
        with torch.no_grad():
            add(name, attention.source(device.is_cuda), work, flops, "TFLOP/s")
        both = _with_backward(work, q, k, v)
        add(f"{name} and backward", attention.source(device.is_cuda), both, 3.5 * flops, "TFLOP/s")
    _peers_of_attention(q, k, v, add, 3.5 * 4.0 * s.heads * s.head_dim * s.tokens * s.tokens / 2)


def _peers_of_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, add: Add, flops: float) -> None:
    """What torch's own kernels make of the plain causal row; those that will not take it are left out."""
    by_head = [x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)]  # [1, heads, t, hn]
    work = partial(scaled_dot_product_attention, *by_head, is_causal=True, enable_gqa=True)
    for name, backend in (("SDPA cuDNN", SDPBackend.CUDNN_ATTENTION), ("SDPA flash", SDPBackend.FLASH_ATTENTION)):
        # A kernel that cannot take it is warned about and then refused.
        with contextlib.suppress(RuntimeError), warnings.catch_warnings(), sdpa_kernel(backend):
            warnings.simplefilter("ignore")
            add("causal attention and backward", name, _with_backward(work, q, k, v), flops, "TFLOP/s")


def _optimizers(shape: Shape, device: Device, add: Add) -> None:
    count = shape.hidden * shape.ffn
    master = torch.nn.Parameter(torch.randn(count, device=device.torch_device))
    master.grad = torch.ones_like(master)
    add("AdamW", "fp32 masters and moments", FusedAdam([master]).step, 28.0 * count, "GB/s")
    weight = torch.nn.Parameter(torch.randn(count, device=device.torch_device).bfloat16())
    weight.grad = torch.ones_like(weight)
    add("AdamW", "all in bf16", Bf16Adam([weight], lr=1e-3).step, 14.0 * count, "GB/s")


def run(*, tiny: bool, device: Device) -> dict[str, Any]:
    """Ceilings and figures as plain values."""
    shape = TINY if tiny else LLAMA3_8B
    ceiling = ceilings(shape, device)
    found = figures(shape, device, ceiling)
    return {"shape": asdict(shape), "ceilings": ceiling, "figures": [asdict(figure) for figure in found]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="shapes of nothing, as always on a CPU: does it run?")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    options = parser.parse_args()
    device = devices.select(options.device, local_rank=0)
    result = run(tiny=options.tiny or not device.is_cuda, device=device)
    print(f"{device.name}, ceilings: " + ", ".join(f"{rate:,.1f} {unit}" for unit, rate in result["ceilings"].items()))
    for figure in result["figures"]:
        print(
            f"{figure['name']:32} {figure['by']:28} {1e6 * figure['seconds']:12,.1f} us"
            f" {figure['rate']:10,.2f} {figure['unit']:8} {100 * figure['of_ceiling']:6.1f} %"
        )


if __name__ == "__main__":
    main()
