"""One rank whose gradients are 1 in the last row of each of its parameters, else 0: argv = out, config, overrides.

Writes OUT/<rank>.json: the gradient norm of the whole model, as the trainer takes it.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_synE.config.load import load_config
from megatron_synE.runtime.environment import hide_cuda, ranks_from_environment

hide_cuda()

from megatron_synE.runtime import distributed  # noqa: E402
from megatron_synE.train import build_trainer  # noqa: E402


def main(out: Path, config: Path, overrides: list[str]) -> None:
    ranks = ranks_from_environment()
    assert ranks is not None
    trainer = build_trainer(load_config(config, overrides), config, ranks)
    trainer.iterate(trainer.samples())
    for parameter in trainer.model.chunks[0].parameters():
        columns = parameter.shape[1] if parameter.dim() == 2 else 1
        bucket = trainer.model.buckets.get(parameter)
        own = parameter.main_grad if bucket is None else bucket.own_gradients(parameter)
        start = 0 if bucket is None else bucket.own_range(parameter)[0]
        place = torch.arange(own.numel()) + start
        own.view(-1).copy_(place >= parameter.numel() - columns)
    trainer.optimizer.prepare_grads()
    norm = float(trainer.optimizer.get_grad_norm())
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(norm))
    trainer.metrics.close()
    distributed.shut_down()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
