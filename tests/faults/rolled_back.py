"""One rank that trains, goes back to a checkpoint and trains on: argv = out, config, overrides.

Writes OUT/<rank>.pt: the whole weights of this rank's model when the checkpoint was made, after going back to it, and
at the end; [loss, gradient norm] of the steps behind the checkpoint, both times.
"""

import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_synE.config.load import load_config
from megatron_synE.runtime.environment import hide_cuda, ranks_from_environment

hide_cuda()

from megatron_synE.runtime import distributed  # noqa: E402
from megatron_synE.stability import Anomaly  # noqa: E402
from megatron_synE.train import build_trainer  # noqa: E402

BEFORE, BEHIND = 2, 3


def whole_weights(trainer: Any) -> dict[str, torch.Tensor]:
    """What this rank computes with, copied. Collective: every rank."""
    (module,), (chunk,) = trainer.model.ddp, trainer.model.chunks
    with module.whole_weights():
        return {name: parameter.detach().clone() for name, parameter in chunk.named_parameters()}


def steps(trainer: Any, num_steps: int) -> list[tuple[float, float]]:
    """[loss, gradient norm] of each; nothing is saved or gathered in between."""
    samples, found = trainer.samples(), []
    for _ in range(num_steps):
        result = trainer.train_step(samples)
        trainer._advance(result)
        found.append((result.lm_loss, result.grad_norm))
    return found


def main(out: Path, config: Path, overrides: list[str]) -> None:
    ranks = ranks_from_environment()
    assert ranks is not None
    trainer = build_trainer(load_config(config, overrides), config, ranks)
    steps(trainer, BEFORE)
    saved = whole_weights(trainer)
    trainer._save(in_background=False)
    first = steps(trainer, BEHIND)
    # No gathering here: it would give weights back that a step had kept, which is one of the faults looked for.
    trainer._go_back_before(BEFORE + 1, Anomaly("nan", math.nan, math.nan, None))
    back = whole_weights(trainer)
    again = steps(trainer, BEHIND)
    found = {"saved": saved, "back": back, "end": whole_weights(trainer), "first": first, "again": again}
    torch.save(found, out / f"{dist.get_rank()}.pt")
    trainer.metrics.close()
    distributed.shut_down()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
