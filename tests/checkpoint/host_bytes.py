"""One rank that saves and loads a model of 96 M parameters, and says what host memory that took: argv = root, config.

Writes <root>/bytes_<rank>.json: the rank's own shard, and the most resident bytes beyond those before, of each action.
"""

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_synE.config.load import load_config
from megatron_synE.runtime.environment import hide_cuda, ranks_from_environment

hide_cuda()

import torch.distributed as dist  # noqa: E402

from megatron_synE.checkpoint import layout  # noqa: E402
from megatron_synE.checkpoint.load import load_training_state  # noqa: E402
from megatron_synE.checkpoint.training_state import chunks_to_save, optimizer_shards  # noqa: E402
from megatron_synE.train import build_trainer  # noqa: E402

root, config = Path(sys.argv[1]), Path(sys.argv[2])


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def most_beyond(act: Callable[[], Any]) -> int:
    """The peak of resident bytes during `act` beyond those before. Freed memory goes back to the system first."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS
    before = resident("VmRSS")
    kept = act()
    peak = resident("VmHWM") - before
    del kept
    dist.barrier()
    return peak


trainer = build_trainer(load_config(config, []), config, ranks_from_environment())  # type: ignore[arg-type]
for shard in optimizer_shards(trainer.model, trainer.optimizer):
    for moment in shard.moments.values():
        moment.fill_(0.5)  # touched: an untouched page of zeros is no memory
own = sum(chunk.size_bytes for chunk in chunks_to_save(trainer.model, trainer.optimizer))


def saved(*, in_background: bool) -> None:
    trainer._save(in_background=in_background)
    trainer.saver.finish()
    trainer.progress.iteration += 1


def loaded() -> None:
    folder = layout.newest_complete(trainer.run_dir.checkpoints)
    assert folder is not None
    load_training_state(trainer.model, trainer.optimizer, folder, layout.read_state(folder))


def megatron_core_s() -> Any:
    model = trainer.model.chunks[0].sharded_state_dict(metadata={"non_homogeneous_layers": True})
    kind = {"distrib_optim_sharding_type": "fully_reshardable"}
    return trainer.optimizer.sharded_state_dict(model, is_loading=False, metadata=kind)


found = {
    "own": own,
    "save": most_beyond(lambda: saved(in_background=False)),
    "background save": most_beyond(lambda: saved(in_background=True)),
    "load": most_beyond(loaded),
    "fully_reshardable": most_beyond(megatron_core_s),
}
(root / f"bytes_{dist.get_rank()}.json").write_text(json.dumps(found))
