"""Gradients summed and weights gathered over gloo: from rank to rank (runtime/gloo.py) against torch's own collectives.

Two processes of one machine, one thread each; as many elements as SmolLM2-135M has weights: gradients in fp32, weights
in bf16. In turn, between barriers.

python -m benchmarks.gloo_sums [--pairs 12] [--elements 134515008]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import interleaved, ratio_of
from megatron_synE.runtime import gloo
from megatron_synE.runtime.cpu_memory import keep_freed_memory
from megatron_synE.runtime.launch import launch

RANKS = 2


def seconds_of(collective: Callable[[], object]) -> float:
    """From when all ranks are there until all are through."""
    dist.barrier()
    started = time.perf_counter()
    collective()
    dist.barrier()
    return time.perf_counter() - started


def rank(out: Path, num_pairs: int, elements: int) -> None:
    """One rank; the first writes the pairs of each collective."""
    keep_freed_memory()
    dist.init_process_group("gloo")
    here = slice(dist.get_rank() * elements // RANKS, (dist.get_rank() + 1) * elements // RANKS)
    gradients, weights = torch.ones(elements), torch.ones(elements, dtype=torch.bfloat16)
    sides = {
        "reduce-scatter": (
            partial(dist.reduce_scatter_tensor, gradients[here], gradients),
            partial(gloo.reduce_scatter, gradients[here], gradients),
        ),
        "all-gather": (
            partial(dist.all_gather_into_tensor, weights, weights[here]),
            partial(gloo.all_gather, weights, weights[here]),
        ),
    }
    found = {
        name: interleaved(partial(seconds_of, theirs), partial(seconds_of, ours), num_pairs=num_pairs)
        for name, (theirs, ours) in sides.items()
    }
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))


def main() -> None:
    parser = parser_of(__doc__, pairs=12)
    parser.add_argument("--elements", type=int, default=134_515_008, help="over all ranks")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        rank(options.rank, options.pairs, options.elements)
        return
    with Record("gloo_sums", keep=options.record) as record, tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pairs.json"
        os.environ["OMP_NUM_THREADS"] = "1"
        command = ["-W", "ignore", "-m", "benchmarks.gloo_sums", "--pairs", options.pairs, "--elements",
                   options.elements, "--rank", out]  # fmt: skip
        if launch([str(word) for word in command], RANKS):
            sys.exit("a rank failed")
        found = json.loads(out.read_text())
        for name, kind in (("reduce-scatter", "gradients in fp32"), ("all-gather", "weights in bf16")):
            pairs = found[name]
            note = f"{1e3 * min(pair[1] for pair in pairs):.0f} against {1e3 * min(pair[0] for pair in pairs):.0f} ms"
            what = f"{name} from rank to rank to torch's over gloo, two processes, {options.elements:,} {kind}"
            record.add(Figure.of(what, ratio_of(pairs), note=note))


if __name__ == "__main__":
    main()
