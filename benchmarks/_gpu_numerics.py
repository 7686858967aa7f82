"""Is what is to be timed right? Every fused part on this device against plain torch in float64."""

from dataclasses import dataclass
from functools import partial

import torch

from megatron_synE.kernels import float8, plain
from megatron_synE.kernels.choice import choose_kernels
from megatron_synE.model.context_part import ContextPart
from megatron_synE.model.head import linear_cross_entropy, vocabulary_part
from megatron_synE.model.native_layers import NativeAttention
from megatron_synE.model.packed_row import packed_row
from megatron_synE.model.weight_gradient import add_product, adds_into_fp32
from megatron_synE.optim.bf16_adam import Bf16Adam, round_stochastically
from megatron_synE.runtime.device import Device

BF16 = 2.0**-8
"""Half a unit in the last place of bf16 over its smallest mantissa."""


@dataclass(frozen=True)
class Error:
    """Norm of the difference over norm of what is right."""

    name: str
    error: float
    allowed: float


def errors(device: Device, *, tiny: bool) -> list[Error]:
    """Values and gradients of all fused parts; the means of what is rounded stochastically."""
    return [
        *_fused(device, tokens=37 if tiny else 1031, width=48 if tiny else 4096),
        *_products(device, size=32 if tiny else 1024),
        *_attention(device, tokens=64 if tiny else 2048),
        *_head(device, tokens=37 if tiny else 3000, width=16 if tiny else 256, vocabulary=61 if tiny else 128_256),
        _added(device, size=32 if tiny else 1024),
        *_rounded(device),
    ]


def used(device: Device) -> dict[str, str]:
    """Which of the ways that the product chooses from were looked at: without Triton all is plain torch, silently."""
    return {
        "kernels": choose_kernels("auto", is_cuda=device.is_cuda).names,
        "attention": NativeAttention.source(device.is_cuda),
        "weight gradients": "product into fp32" if adds_into_fp32(device.torch_device) else "product, then sum",
    }


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """In float64; NaN where either has one, which no bound allows."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _random(device: Device, *sizes: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, generator=random).bfloat16().to(device.torch_device)


def _both(name, ours, theirs, inputs, allowed) -> list[Error]:  # type: ignore[no-untyped-def]
    """Value and gradients of one function in bf16 against another in float64, on the same rounded inputs.

    The gradient that comes in is random: one of ones would hide a transposed or permuted one.
    """
    low = [x.clone().requires_grad_() for x in inputs]
    high = [x.double().requires_grad_() for x in inputs]
    out, right = ours(*low), theirs(*high)
    found = [Error(name, relative(out.detach(), right.detach()), allowed)]
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out)
    out.backward(gradient)
    right.backward(gradient.double())
    for index, (x, y) in enumerate(zip(low, high, strict=True)):
        assert x.grad is not None and y.grad is not None
        found.append(Error(f"{name}, gradient {index}", relative(x.grad, y.grad), allowed))
    return found


def _fused(device: Device, *, tokens: int, width: int) -> list[Error]:
    kernels = choose_kernels("auto", is_cuda=device.is_cuda)
    weight, angles = 1 + 0.1 * _random(device, width, seed=1), _random(device, tokens, 1, 8, seed=2).double()
    angles = torch.cat((angles, angles), -1)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    swiglu = kernels.swiglu or plain.swiglu
    return [
        *_both(
            "rms_norm", lambda x, w: kernels.rms_norm(x, w, 1e-5), lambda x, w: plain.rms_norm(x, w, 1e-5),
            (_random(device, tokens, width), weight), 2 * BF16,
        ),
        *_both("swiglu", swiglu, plain.swiglu, (_random(device, tokens, 2 * width),), 2 * BF16),
        *_both(
            "rotate", lambda x: kernels.rotate(x, cos, sin), lambda x: plain.rotate(x, cos.double(), sin.double()),
            (_random(device, tokens, 3, 16),), 2 * BF16,
        ),
    ]  # fmt: skip


def _products(device: Device, *, size: int) -> list[Error]:
    """e4m3 has three bits of mantissa: 2.6 % rms of each factor; e5m2, of gradients, two."""
    if not device.has_fp8:
        return []
    x, weight = _random(device, size, size), _random(device, size, size, seed=1)
    found = []
    for form, recipe in (("hybrid", "tensorwise"), ("e4m3", "rowwise")):
        ours = partial(float8.linear, form=form, recipe=recipe)
        found += _both(f"FP8 {recipe}", ours, torch.nn.functional.linear, (x, weight), 0.08)
    return found


def _attention(device: Device, *, tokens: int) -> list[Error]:
    """Against softmax written out in float64, documents apart, and one chunk whose keys begin before its queries."""
    heads, groups, width = 4, 2, 64
    attention = NativeAttention.__new__(NativeAttention)
    torch.nn.Module.__init__(attention)
    attention.scale = width**-0.5
    bounds = (0, tokens // 3, tokens // 3 + 1, tokens)
    row = packed_row(bounds, max_segments=64, device=device.torch_device)
    document = torch.bucketize(torch.arange(tokens), torch.tensor(bounds[1:-1]), right=True)
    position = torch.arange(tokens)
    seen = (document[:, None] == document[None, :]) & (position[:, None] >= position[None, :])

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q, k, v, None, packed_seq_params=row)  # type: ignore[no-any-return]

    def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (x.repeat_interleave(heads // groups, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * width**-0.5
        scores = scores.masked_fill(~seen.to(q.device), float("-inf"))
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(tokens, -1)

    q = _random(device, tokens, heads, width)
    k, v = (_random(device, tokens, groups, width, seed=seed) for seed in (1, 2))
    # Rank 1 of 2 has the second quarter of the row first; its first document began in the first quarter.
    part = ContextPart(1, 2)
    own = slice(tokens // 4, tokens // 2)
    chunk = packed_row(bounds, max_segments=4, device=device.torch_device, part=part).chunks[0]

    def ours_of_chunk(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = attention(q[own], k[chunk.keys], v[chunk.keys], None, packed_seq_params=chunk.row)
        return out

    def theirs_of_chunk(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return theirs(q, k, v)[own]

    return [
        *_both("attention", ours, theirs, (q, k, v), 4 * BF16),
        *_both("attention of a chunk", ours_of_chunk, theirs_of_chunk, (q, k, v), 4 * BF16),
    ]


def _head(device: Device, *, tokens: int, width: int, vocabulary: int) -> list[Error]:
    """Output layer and cross-entropy in one, over several chunks, a third of the tokens without loss."""
    random = torch.Generator().manual_seed(3)
    labels = torch.randint(vocabulary, (tokens,), generator=random).to(device.torch_device)
    mask = (torch.arange(tokens, device=device.torch_device) % 3 > 0).float()

    def ours(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        part = vocabulary_part(vocabulary, vocab_size=vocabulary)
        return linear_cross_entropy(hidden, weight, labels, part, token_weights=mask).sum().view(1)

    def theirs(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        nll = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="none")
        return (nll * mask).sum().view(1)

    # Logits of about 1: those of random weights would be large, and their bf16 off by tenths of a nat.
    weight = _random(device, vocabulary, width, seed=1) * width**-0.5
    return _both("head", ours, theirs, (_random(device, tokens, width), weight), 4 * BF16)


def _added(device: Device, *, size: int) -> Error:
    """A weight's gradient added to what is there. fp32 sums of bf16's exact products: 1e-4 is far above their error."""
    d_output, inputs = _random(device, 2 * size, size), _random(device, 2 * size, size + 16, seed=1)
    main_grad = 30 * _random(device, size, size + 16, seed=2).float()
    expected = main_grad.double() + d_output.double().t() @ inputs.double()
    add_product(main_grad, d_output, inputs)
    allowed = 1e-4 if adds_into_fp32(device.torch_device) else 2 * BF16
    return Error("added weight gradient", relative(main_grad, expected), allowed)


def _rounded(device: Device) -> list[Error]:
    """Means of many stochastic roundings, off by less than five deviations of them.

    Of a number between two of bf16's; and of weights of 1 after a first step of Adam, which moves each by lr, a quarter
    of what lies between 1 and bf16's next number below.
    """
    x = torch.full((4096,), 1.0 + 2.0**-9, device=device.torch_device)
    mean = float(round_stochastically(x, torch.Generator(device.torch_device).manual_seed(0)).double().mean())
    weight = torch.nn.Parameter(torch.ones(65_536, dtype=torch.bfloat16, device=device.torch_device))
    weight.grad = torch.full_like(weight, 0.5)
    Bf16Adam([weight], lr=2.0**-10, weight_decay=0.0).step()
    return [
        Error("stochastic rounding", abs(mean - float(x[0])), 5 * 2.0**-7 / 2 / 64),
        Error("AdamW all in bf16", abs(float(weight.detach().double().mean()) - (1 - 2.0**-10)), 5 * 2.0**-8 / 2 / 256),
    ]
