"""One rank of a real trainer that counts the gradients on their way to other ranks: argv = config, out, overrides.

Writes OUT/<rank>.json: the most reductions under way at once in a step, and the most bytes that were held for them, and
for buckets being filled, outside the gradients that are there at rest.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from megatron_synE.config.load import load_config
from megatron_synE.runtime.environment import ALONE, ranks_from_environment
from megatron_synE.runtime.mcore import parallel_state
from megatron_synE.sharding.bucket import Bucket, Reduction
from megatron_synE.train import build_trainer

from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup  # isort: skip


class Seen:
    """The most at once."""

    def __init__(self) -> None:
        self.reductions = self.bytes_held = 0

    def note(self, *, reductions: int, bytes_held: int) -> None:
        self.reductions = max(self.reductions, reductions)
        self.bytes_held = max(self.bytes_held, bytes_held)


def watch_stage_1(ddp: Any, seen: Seen) -> None:
    """megatron-core's: reductions are begun bucket group by bucket group and waited for at the end of the step."""
    shipped = _ParamAndGradBucketGroup.start_grad_sync
    at_rest = {buffer.grad_data.untyped_storage()._cdata for module in ddp for buffer in module.buffers}
    groups = [group for module in ddp for group in module.bucket_groups]

    def start_grad_sync(group: Any, **named: Any) -> None:
        shipped(group, **named)
        under_way = [group for group in groups if group.grad_reduce_handle is not None]
        parts = [part for each in under_way for shards in each.cached_grad_buffer_shard_list for part in shards]
        wholes = [bucket.grad_data for each in under_way for bucket in each.buckets]
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in (*parts, *wholes)}
        held = sum(storage.nbytes() for identity, storage in storages.items() if identity not in at_rest)
        seen.note(reductions=len(under_way), bytes_held=held)

    _ParamAndGradBucketGroup.start_grad_sync = start_grad_sync


def watch_parts(buckets: set[Bucket], seen: Seen) -> None:
    """Ours: what a Reduction holds from its making until it is finished, and what is filled meanwhile."""
    under_way: dict[int, int] = {}
    shipped_begin, shipped_finish, shipped_take = Reduction.__init__, Reduction.finish, Bucket.take

    def note() -> None:
        filled = sum(bucket._unsummed.nbytes for bucket in buckets if bucket._unsummed is not None)
        seen.note(reductions=len(under_way), bytes_held=filled + sum(under_way.values()))

    def begin(reduction: Reduction, *given: Any) -> None:
        shipped_begin(reduction, *given)
        under_way[id(reduction)] = reduction.whole.nbytes
        note()

    def finish(reduction: Reduction) -> None:
        shipped_finish(reduction)
        del under_way[id(reduction)]

    def take(bucket: Bucket, parameter: torch.nn.Parameter) -> bool:
        is_full = shipped_take(bucket, parameter)
        note()
        return is_full

    Reduction.__init__ = begin  # type: ignore[method-assign]
    Reduction.finish = finish  # type: ignore[method-assign]
    Bucket.take = take  # type: ignore[method-assign]


def main(config_path: Path, out: Path, overrides: list[str]) -> None:
    """Two steps first: megatron-core overlaps from the second on."""
    trainer = build_trainer(load_config(config_path, overrides), config_path, ranks_from_environment() or ALONE)
    samples, seen = trainer.samples(), Seen()
    for _ in range(2):
        trainer.iterate(samples)
    if trainer.plan.zero_stage == 1:
        watch_stage_1(trainer.model.ddp, seen)
    else:
        watch_parts(set(trainer.model.buckets.values()), seen)
    trainer.iterate(samples)
    rank, stage = torch.distributed.get_rank(), parallel_state.get_pipeline_model_parallel_rank()
    (out / f"{rank}.json").write_text(json.dumps(vars(seen) | {"stage": stage}))
    torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
