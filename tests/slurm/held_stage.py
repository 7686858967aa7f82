"""A command with a small stage whose tasks can be held: task n waits for a byte in the pipe <out>/hold-n where one is.

    held_stage.py OUT NUM_TASKS [--broken N] --slurm-tasks ...
Every start of a task adds a line to OUT/starts; the results are printed as JSON.
"""

import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from data_mixers.errors import DataError, UserError
from tools.cli_options import takes
from tools.data.slurm_options import OnSlurm
from tools.data.stage import Report, Stage, run_stage

WATCHED = (
    "OMP_NUM_THREADS",
    "SLURM_CPUS_PER_TASK",
    "CUDA_VISIBLE_DEVICES",
    "SLURM_JOB_PARTITION",
    "SLURM_MEM_PER_NODE",
)


def held(folder: Path, broken: int | None, task: int, report: Report) -> dict[str, Any]:
    with (folder / "starts").open("a") as stream:
        stream.write(f"{task} {os.uname().nodename} {os.getpid()}\n")
    hold = folder / f"hold-{task}"
    if hold.exists():
        hold.read_text()  # opening a pipe waits for its writer
    if task == broken:
        raise DataError(f"page {task} is damaged")
    environment = {name: os.environ.get(name) for name in WATCHED}
    (folder / f"environment-{task}.json").write_text(json.dumps({"python": sys.executable, **environment}))
    return {"square": task * task}


@takes(OnSlurm)
def command(
    slurm: OnSlurm,
    out: Path,
    num_tasks: int,
    broken: Annotated[int | None, typer.Option()] = None,
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    do = partial(held, out, broken)
    stage = Stage(name="held stage", work=out / ".work", fingerprint="a", sizes=(1_000_000,) * num_tasks, do=do)
    json.dump(run_stage(stage, workers=1, array=slurm.array), sys.stdout)


if __name__ == "__main__":
    # Under its importable name, so that a node of the cluster finds the functions.
    from tests.slurm import held_stage

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(held_stage.command)
    try:
        app()
    except UserError as error:
        sys.exit(f"error: {error}")
