"""One rank of a real trainer that counts its own bytes: parts at rest, and what a forward and a backward pass allocate.

    measured_memory.py CONFIG OUT [key=value ...]      under launch(); writes OUT/<rank>.json
The counts come from the allocator's own events (torch.profiler) and from the storages of the live tensors, never from
the planner's formulas.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.profiler import ProfilerActivity, profile

from megatron_synE.checkpoint.training_state import optimizer_shards
from megatron_synE.config.load import load_config
from megatron_synE.runtime.environment import ALONE, ranks_from_environment
from megatron_synE.train import build_trainer
from megatron_synE.trainer import Trainer, forward_step


def storage_bytes(
    tensors: Iterable[torch.Tensor], *, besides: frozenset[int] = frozenset()
) -> tuple[int, frozenset[int]]:
    """Bytes of the distinct storages behind `tensors`, and which; those in `besides` are not counted."""
    sizes = {identity(t): t.untyped_storage().nbytes() for t in tensors}
    kept = {pointer: size for pointer, size in sizes.items() if pointer not in besides}
    return sum(kept.values()), frozenset(kept)


def identity(tensor: torch.Tensor) -> int:
    """Of the storage; its address changes where ZeRO stage 3 gives memory back and takes it again."""
    return int(tensor.untyped_storage()._cdata)


def parts_at_rest(trainer: Trainer) -> dict[str, int]:
    """Weights, gradients and optimizer state of this rank after a step."""
    buckets = set(trainer.model.buckets.values())
    kept = [p for chunk in trainer.model.chunks for p in chunk.parameters()] + [bucket.part for bucket in buckets]
    weights, weight_pointers = storage_bytes(kept)
    if buckets:
        gradients, _ = storage_bytes(bucket.gradients for bucket in buckets)
    else:
        gradients, _ = storage_bytes(buffer.grad_data for module in trainer.model.ddp for buffer in module.buffers)
    state = [
        tensor
        for shard in optimizer_shards(trainer.model, trainer.optimizer)
        for tensor in (shard.master, *shard.moments.values())
    ]
    optimizer, _ = storage_bytes(state, besides=weight_pointers)
    return {"weights": weights, "gradients": gradients, "optimizer": optimizer}


def balance(events: Any) -> tuple[int, int]:
    """(bytes alive at the end, most bytes alive at once) over the allocations of a profile, from zero."""
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    alive = peak = 0
    for _, size in memory:
        alive += size
        peak = max(peak, alive)
    return alive, peak


class Held:
    """A tensor that autograd keeps; counts its storage, once, for as long as any of it is kept."""

    counts: ClassVar[Counter[int]] = Counter()
    alive = 0
    peak = 0
    besides: frozenset[int] = frozenset()

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        storage = tensor.untyped_storage()
        self.pointer, self.size = identity(tensor), storage.nbytes()
        if self.pointer in Held.besides:
            return
        Held.counts[self.pointer] += 1
        if Held.counts[self.pointer] == 1:
            Held.alive += self.size
            Held.peak = max(Held.peak, Held.alive)

    def __del__(self) -> None:
        if self.pointer in Held.besides:
            return
        Held.counts[self.pointer] -= 1
        if Held.counts[self.pointer] == 0:
            Held.alive -= self.size


def saved(trainer: Trainer, batches: list[Any]) -> dict[str, int]:
    """Most bytes that autograd kept at once in a whole step's passes: every micro-batch in flight counts."""
    parameters = [p for chunk in trainer.model.chunks for p in chunk.parameters()]
    Held.besides = storage_bytes(parameters)[1]
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        trainer._forward_backward(batches)
    return {"saved_peak": Held.peak, "saved_left": Held.alive}


def saved_by_forward(trainer: Trainer, batch: Any) -> dict[str, int]:
    """What one forward pass of the only stage leaves for the backward pass."""
    parameters = [p for chunk in trainer.model.chunks for p in chunk.parameters()]
    Held.besides = storage_bytes(parameters)[1]
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        output, loss = forward_step(iter([batch]), trainer.model.ddp[0])
        total = loss(output)[0]
    kept = Held.alive
    total.backward()
    return {"forward_saved": kept}


def allocated_by_forward(trainer: Trainer, batch: Any) -> dict[str, int]:
    """The same by the allocator's events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        output, loss = forward_step(iter([batch]), trainer.model.ddp[0])
        total = loss(output)[0]
    kept, peak = balance(seen.profiler.kineto_results.events())
    total.backward()
    return {"forward_allocated": kept, "forward_peak": peak}


def step_peak(trainer: Trainer, batches: list[Any]) -> int:
    """Most bytes that the passes of a whole step allocate at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        trainer._forward_backward(batches)
    return balance(seen.profiler.kineto_results.events())[1]


PROFILED_STEPS = 5
"""Under ZeRO stages 2 and 3: a thread of gloo's may let go of what it summed only after the next bucket, or the next
step, has begun, which only adds to a peak: the least counts. Not elsewhere: a second step over the same batches begins
with rows that pipelining still holds, whose release would count against its peak."""


def main(config_path: Path, out: Path, overrides: list[str]) -> None:
    """Two steps first, so that buffers and moments exist."""
    trainer = build_trainer(load_config(config_path, overrides), config_path, ranks_from_environment() or ALONE)
    samples = trainer.samples()
    for _ in range(2):
        trainer.iterate(samples)
    found: dict[str, Any] = parts_at_rest(trainer)
    batches = [trainer.collate(next(samples)) for _ in range(trainer.plan.num_microbatches)]
    if trainer.config.parallel.pipeline_model_parallel_size == 1:
        found |= saved_by_forward(trainer, batches[0]) | allocated_by_forward(trainer, batches[0])
    Held.peak = Held.alive
    found |= saved(trainer, batches)
    num_steps = PROFILED_STEPS if trainer.plan.zero_stage > 1 else 1
    found["step_peak"] = min(step_peak(trainer, batches) for _ in range(num_steps))
    rank = torch.distributed.get_rank()
    (out / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
