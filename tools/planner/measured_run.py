"""A few steps of one candidate layout, timed: no validation, no checkpoint, one JSON file at the end.

python -m tools.planner.measured_run CONFIG RESULT --steps 20 [--nproc N]      a rank under srun; alone with --nproc
"""

import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import typer

from data_mixers.atomic import write_atomic
from megatron_synE.config.load import load_config
from megatron_synE.runtime.environment import ALONE, hide_cuda, ranks_from_environment
from megatron_synE.runtime.launch import launch
from tools.cli_options import one_message

WARM_UP_SHARE = 0.25
"""Steps left out at the beginning: kernels are chosen, memory pools grow, files are opened."""


def measured_run(
    config: Path,
    result: Path,
    steps: Annotated[int, typer.Option(min=2)] = 20,
    nproc: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """Time `steps` iterations and write RESULT. A fault of the run is an exit code other than 0."""
    loaded = load_config(config)
    if loaded.resolved.device == "cpu":
        hide_cuda()
    ranks = ranks_from_environment()
    if ranks is None and nproc is not None and nproc > 1:
        arguments = ["-m", "tools.planner.measured_run", str(config), str(result), "--steps", str(steps)]
        raise typer.Exit(launch(arguments, nproc))
    import torch.distributed as dist

    from megatron_synE.runtime import distributed
    from megatron_synE.train import build_trainer

    ranks = ranks or ALONE
    trainer = build_trainer(loaded, config, ranks)
    samples, seconds = trainer.samples(), []
    for _ in range(steps):
        trainer.device.synchronize()
        started = time.perf_counter()
        trainer.iterate(samples)
        trainer.device.synchronize()
        seconds.append(time.perf_counter() - started)
    peaks = [0] * ranks.world_size
    dist.all_gather_object(peaks, trainer.device.peak_memory_bytes(), group=trainer.control_group)
    if ranks.rank == 0:
        timed = seconds[int(WARM_UP_SHARE * steps) :]
        median = statistics.median(timed)
        found = {
            "steps": len(timed),
            "step_seconds": median,
            "tokens_per_second_per_gpu": trainer.plan.tokens_per_iteration / median / ranks.world_size,
            "peak_memory_bytes": max(peaks),
            "device": trainer.device.kind,
            "device_name": trainer.device.name,
            "world_size": ranks.world_size,
        }
        write_atomic(result, (json.dumps(found, indent=1) + "\n").encode())
    distributed.shut_down()


if __name__ == "__main__":
    with one_message():
        typer.run(measured_run)
