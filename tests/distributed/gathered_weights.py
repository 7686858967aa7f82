"""One rank at ZeRO stage 3 that notes whose weights have memory when a unit is used: argv = out, config, overrides.

Writes OUT/<rank>.json: units in the order in which they were sent for; [unit, units with memory] at each use forward
and backward; units with memory after a forward and after a backward pass, and their bytes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_synE.config.load import load_config
from megatron_synE.runtime.environment import hide_cuda, ranks_from_environment

hide_cuda()

from megatron_synE.runtime import distributed  # noqa: E402
from megatron_synE.sharding import data_parallel  # noqa: E402
from megatron_synE.sharding.bucket import Bucket  # noqa: E402
from megatron_synE.train import build_trainer  # noqa: E402
from megatron_synE.trainer import forward_step  # noqa: E402


def main(out: Path, config: Path, overrides: list[str]) -> None:
    ranks = ranks_from_environment()
    assert ranks is not None
    notes: dict[str, Any] = {"sent for": [], "forward": [], "backward": []}

    def with_memory(owner: Any) -> list[int]:
        return [u.index for u in owner.units if any(b.weights.untyped_storage().nbytes() for b in u.buckets)]

    shipped_gather, shipped_enter = Bucket.start_gather, data_parallel.ShardedDataParallel._enter

    def start_gather(bucket: Bucket, **named: Any) -> None:
        had_memory = bucket.weights.untyped_storage().nbytes()
        shipped_gather(bucket, **named)
        if not had_memory:
            notes["sent for"].append(unit_of[bucket])

    def enter(owner: Any, unit: Any, *_: object) -> None:
        shipped_enter(owner, unit)
        notes["backward" if data_parallel._is_backward() else "forward"].append((unit.index, with_memory(owner)))

    data_parallel.ShardedDataParallel._enter = enter  # type: ignore[method-assign]  # before its hooks are hung up
    trainer = build_trainer(load_config(config, overrides), config, ranks)
    (module,) = trainer.model.ddp
    trainer.iterate(trainer.samples())
    notes["forward"], notes["backward"] = [], []
    unit_of = {bucket: unit.index for unit in module.units for bucket in unit.buckets}
    Bucket.start_gather = start_gather  # type: ignore[method-assign]
    batch = trainer.collate(next(trainer.samples()))
    output, loss = forward_step(iter([batch]), module)
    notes["after forward"] = with_memory(module)
    loss(output)[0].backward()
    notes["after backward"] = with_memory(module)
    notes["bytes after backward"] = sum(b.weights.untyped_storage().nbytes() for b in module.all_buckets)
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(notes))
    trainer.metrics.close()
    distributed.shut_down()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
