"""A CPU's attention by blocks, forward and backward in bf16, against torch's own kernel for CPUs.

Rows of 512 tokens in documents of each length, or one longer document; the heads of SmolLM2-135M and of Llama-3-8B, one
thread, in turn, by CPU time; and how far each lies from float64, the furthest of the output and the three gradients.

python -m benchmarks.cpu_attention [--pairs 12]
"""

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import cpu_seconds_of, interleaved, ratio_of
from megatron_synE.kernels.cpu_attention import attend
from megatron_synE.runtime.cpu_memory import keep_freed_memory

HEADS = {"SmolLM2-135M": (9, 3, 64), "Llama-3-8B": (32, 8, 128)}
"""Query heads, key/value groups, head dim."""
ROW = 512
LENGTHS = (16, 32, 64, 128, 512, 2048)
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""[t, heads, head dim] of queries, keys and values -> [t, heads, head dim]."""


def by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, length: int) -> torch.Tensor:
    """scaled_dot_product_attention, a call for each document, and what comes out as the next layer takes it."""
    documents = zip(*(torch.split(x.transpose(0, 1).unsqueeze(0), length, dim=2) for x in (q, k, v)), strict=True)
    parts = [scaled_dot_product_attention(*document, is_causal=True, enable_gqa=True) for document in documents]
    return torch.cat(parts, dim=2)[0].transpose(0, 1).contiguous()


def by_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, length: int) -> torch.Tensor:
    """Ours."""
    bounds = range(0, len(q) + 1, length)
    return attend(q, k, v, bounds, bounds, q.shape[-1] ** -0.5)


def gradients(attention: Attention, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """What comes out, and the gradients of queries, keys and values; the last input is the gradient of the output."""
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs[3])]


def distance(attention: Attention, reference: Attention, inputs: list[torch.Tensor]) -> float:
    """The largest relative distance, in the 2-norm, of the four to the reference's in float64."""
    exact = gradients(reference, [x.double() for x in inputs])
    found = gradients(attention, inputs)
    return max(float((x.double() - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True))


def compare(model: str, length: int, *, num_pairs: int) -> Figure:
    heads, groups, head_dim = HEADS[model]
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(max(ROW, length), number, head_dim, generator=generator).bfloat16()
        for number in (heads, groups, groups, heads)
    ]
    torchs, ours = partial(by_torch, length=length), partial(by_blocks, length=length)
    repeats = max(1, 2 * ROW // len(inputs[0]))
    timed = [partial(cpu_seconds_of, partial(gradients, side, inputs), repeats=repeats) for side in (torchs, ours)]
    pairs = interleaved(*timed, num_pairs=num_pairs)
    note = (
        f"{1e3 * min(pair[1] for pair in pairs):.2f} against {1e3 * min(pair[0] for pair in pairs):.2f} ms; from"
        f" float64 {distance(ours, torchs, inputs):.1e} against {distance(torchs, torchs, inputs):.1e}"
    )
    what = f"attention by blocks to torch's kernel for CPUs, documents of {length:,} tokens, heads of {model}, bf16"
    return Figure.of(what, ratio_of(pairs), note=note)


def main() -> None:
    options = parser_of(__doc__, pairs=12).parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with Record("cpu_attention", keep=options.record) as record:
        for model, length in product(HEADS, LENGTHS):
            record.add(compare(model, length, num_pairs=options.pairs))


if __name__ == "__main__":
    main()
