"""Memory of the head: plain product and cross-entropy against the head in chunks, by the allocator's own events.

Llama-3's sizes at 8192 tokens with a GPU's chunks, made smaller so that a CPU can hold the plain side: tokens, width
and chunks by 8, vocabulary by 4. Every part of the peak is then smaller by 32 on both sides (the gradient of the rows,
half a percent of the plain peak, by 64). Inputs are not counted; both sides end with the gradients of the rows and of
the output matrix, and "working" is the peak above those two. --reduction 1 needs 16 GB to spare.

python -m benchmarks.memory [--tokens 8192] [--hidden 4096] [--vocabulary 128256] [--reduction 8]
"""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from benchmarks._figures import Figure, Record, parser_of
from megatron_synE.model.head import linear_cross_entropy, vocabulary_part
from megatron_synE.model.head_sizes import CHUNK_ELEMENTS, PIECE_ELEMENTS

TARGET = 0.15


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As transformers computes it: logits, then in fp32, then cross_entropy."""
    logits = (hidden @ weight.t()).float()
    return (cross_entropy(logits, labels, reduction="none") * mask).sum()


def chunked(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Ours."""
    part = vocabulary_part(len(weight), vocab_size=len(weight))
    return linear_cross_entropy(hidden, weight, labels, part, token_weights=mask).sum()


def peak_bytes(
    loss: Callable[..., torch.Tensor], *, tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype
) -> int:
    """Most bytes allocated at once in a forward and backward pass."""
    x = torch.randn(tokens, hidden).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, hidden).to(dtype).requires_grad_()
    labels, mask = torch.randint(0, vocabulary, (tokens,)), torch.ones(tokens)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss(x, weight, labels, mask).backward()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events):
        alive += size
        peak = max(peak, alive)
    return peak


def main() -> None:
    options = parser_of(__doc__, tokens=8192, hidden=4096, vocabulary=128_256, reduction=8).parse_args()
    by, by_rows = options.reduction, max(1, options.reduction // 2)
    tokens, hidden, vocabulary = options.tokens // by, options.hidden // by, options.vocabulary // by_rows
    CHUNK_ELEMENTS["cpu"] = CHUNK_ELEMENTS["cuda"] // (by * by_rows)
    PIECE_ELEMENTS["cpu"] = PIECE_ELEMENTS["cuda"] // (by * by_rows)
    with Record("memory", keep=options.record) as record:
        for dtype in (torch.bfloat16, torch.float32):
            naive, ours = (
                peak_bytes(loss, tokens=tokens, hidden=hidden, vocabulary=vocabulary, dtype=dtype)
                for loss in (plain, chunked)
            )
            working = ours - (tokens + vocabulary) * hidden * dtype.itemsize
            full = by * by_rows / 1e9
            what = (
                f"memory of the head, {options.tokens:,} tokens, {str(dtype).removeprefix('torch.')}, to plain product "
                "and cross-entropy, both gradients counted"
            )
            note = (
                f"{ours * full:.2f} of {naive * full:.2f} GB at full size, events of a {by * by_rows}th of it; above "
                f"the gradients {working * full:.2f} GB, {working / naive:.1%}"
            )
            percent = 100 * ours / naive
            record.add(Figure(what=what, value=percent, unit="%", target=100 * TARGET, at_most=True, note=note))


if __name__ == "__main__":
    main()
