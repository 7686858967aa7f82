"""RMSNorm and SwiGLU by rows on a CPU against the plain functions of torch, forward and backward.

1,024 tokens of the widths of SmolLM2-135M and Llama-3-8B, one thread, in turn, by CPU time.

python -m benchmarks.cpu_layers [--pairs 12]
"""

from collections.abc import Callable
from functools import partial
from itertools import product

import torch

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import cpu_seconds_of, interleaved, ratio_of
from megatron_synE.kernels import cpu_layers, plain
from megatron_synE.runtime.cpu_memory import keep_freed_memory

WIDTHS = {"SmolLM2-135M": (576, 1536), "Llama-3-8B": (4096, 14336)}
"""Hidden, MLP."""
TOKENS = 1024
Layer = Callable[..., torch.Tensor]


def compare(name: str, model: str, dtype: torch.dtype, *, num_pairs: int) -> Figure:
    hidden, mlp = WIDTHS[model]
    is_norm = name == "RMSNorm"
    inputs = [torch.randn(TOKENS, 1, hidden), torch.ones(hidden)] if is_norm else [torch.randn(TOKENS, 1, 2 * mlp)]
    inputs, gradient = [x.to(dtype) for x in inputs], torch.randn(TOKENS, 1, hidden if is_norm else mlp).to(dtype)
    theirs: Layer = partial(plain.rms_norm, eps=1e-5) if is_norm else plain.swiglu
    ours: Layer = partial(cpu_layers.rms_norm, eps=1e-5) if is_norm else cpu_layers.swiglu

    def both_ways(layer: Layer) -> None:
        leaves = [x.detach().requires_grad_() for x in inputs]
        torch.autograd.grad(layer(*leaves), leaves, gradient)

    timed = [partial(cpu_seconds_of, partial(both_ways, layer), repeats=5) for layer in (theirs, ours)]
    pairs = interleaved(*timed, num_pairs=num_pairs)
    note = f"{1e3 * min(pair[1] for pair in pairs):.2f} against {1e3 * min(pair[0] for pair in pairs):.2f} ms"
    kind = str(dtype).removeprefix("torch.")
    return Figure.of(f"{name} by rows to torch's, width of {model}, {kind}", ratio_of(pairs), note=note)


def main() -> None:
    options = parser_of(__doc__, pairs=12).parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(1)
    with Record("cpu_layers", keep=options.record) as record:
        for name, model, dtype in product(("RMSNorm", "SwiGLU"), WIDTHS, (torch.bfloat16, torch.float32)):
            record.add(compare(name, model, dtype, num_pairs=options.pairs))


if __name__ == "__main__":
    main()
