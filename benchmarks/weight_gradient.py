"""A layer's weight gradient added by its product, against the product and then the sum, as DDP's hook has it.

SmolLM2-135M's gate and up over 1,024 tokens, one thread, in turn, by CPU time; and the bytes that each allocates. In
bf16 a CPU has no product that ends in fp32, so both do the same there.

python -m benchmarks.weight_gradient [--pairs 20]
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import cpu_seconds_of, interleaved, ratio_of
from megatron_synE.model.weight_gradient import add_product
from megatron_synE.runtime.cpu_memory import keep_freed_memory

TOKENS, INPUTS, OUTPUTS = 1024, 576, 2 * 1536


def allocated(work: Callable[[], object]) -> int:
    """Bytes that one call asks the allocator for."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = (event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]")
    return sum(size for size in events if size > 0)


def compare(dtype: torch.dtype, *, num_pairs: int) -> Figure:
    d_output, inputs = torch.randn(TOKENS, OUTPUTS).to(dtype), torch.randn(TOKENS, INPUTS).to(dtype)
    main_grad = torch.zeros(OUTPUTS, INPUTS)

    def apart() -> None:
        main_grad.add_(d_output.t() @ inputs)

    def fused() -> None:
        add_product(main_grad, d_output, inputs)

    timed = [partial(cpu_seconds_of, way, repeats=5) for way in (apart, fused)]
    pairs = interleaved(*timed, num_pairs=num_pairs)
    what = (
        f"a weight gradient added by its product to the product and then the sum, {str(dtype).removeprefix('torch.')}"
    )
    note = (
        f"{1e3 * min(pair[1] for pair in pairs):.2f} ms; allocates {allocated(fused) / 1e6:.1f} of "
        f"{allocated(apart) / 1e6:.1f} MB"
    )
    return Figure.of(what, ratio_of(pairs), note=note)


def main() -> None:
    options = parser_of(__doc__, pairs=20).parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with Record("weight_gradient", keep=options.record) as record:
        for dtype in (torch.float32, torch.bfloat16):
            record.add(compare(dtype, num_pairs=options.pairs))


if __name__ == "__main__":
    main()
