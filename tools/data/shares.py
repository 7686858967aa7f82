"""Who of a SLURM launch (srun, a raw job array) shares out a stage; a share that nobody comes for is done by others.

    enter ─ run_tasks of its own share ─ take_over ─> the tasks of processes that are not coming
A process notes in the stage's folder that it is there. One without a note may still be queued, as squeue says of an
array's elements. Or it works in another folder (a script that gives each element its own), or was never started (a
shell in a step of several tasks): then its share would be left, and every process would have ended well.
"""

import logging
import os
import subprocess
import time
from pathlib import Path

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError
from megatron_synE.runtime.environment import Ranks
from tools.data.stage import Stage, do_tasks, missing_tasks

logger = logging.getLogger(__name__)

WAIT_SECONDS = 120.0  # ours: for a process that runs to import what it needs, and to hash a model's weights
PAUSE_SECONDS = 5.0
_NOT_COMING = ("RUNNING", "COMPLETING")  # without a note: states in which an element is past its beginning
_NOTE = ".here"


def enter(stage: Stage, ranks: Ranks) -> None:
    """Note that this process takes part; does nothing outside of SLURM, whose launches alone have names of their own.

    Errors: ConfigError if a process of the same launch computes something else: no two would fill one file.
    """
    launch = _launch()
    if launch is None:
        return
    stage.work.mkdir(parents=True, exist_ok=True)
    write_atomic(_note(stage, launch, ranks.rank), stage.fingerprint.encode())
    for rank in sorted(_there(stage, launch, ranks)):
        if _read(_note(stage, launch, rank)) not in (None, stage.fingerprint):
            _note(stage, launch, ranks.rank).unlink(missing_ok=True)  # it does not take part
            raise ConfigError(
                f"{stage.work}: process {rank} of this launch does not compute what this one, {ranks.rank}, does: "
                "other options or data, or --precision auto on unlike nodes. Give all of them the same, --precision "
                "too: each takes its share by itself"
            )


def take_over(stage: Stage, ranks: Ranks) -> None:
    """Do what is missing of the shares of processes that are not coming, after WAIT_SECONDS for those to note.

    Two processes may do one task: both write the same.
    """
    launch = _launch()
    if launch is None:
        return
    end = time.monotonic() + WAIT_SECONDS
    while missing := _left_alone(stage, launch, ranks):
        if time.monotonic() >= end:
            absent = sorted({task % ranks.world_size for task in missing})
            logger.warning(
                "%s: of %d processes %s did not come to %s; their share is done here",
                stage.name, ranks.world_size, ", ".join(map(str, absent[:8])), stage.work,
            )  # fmt: skip
            first = len(missing) * ranks.rank // ranks.world_size  # each begins elsewhere
            do_tasks(stage, missing[first:] + missing[:first], title=f"{stage.name} of others")
            return
        time.sleep(min(PAUSE_SECONDS, WAIT_SECONDS))


def _launch() -> str | None:
    """Name of the launch, the same for all its processes and for no other one."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:  # torchrun: all of them start, or none ends well
        return None
    if "SLURM_ARRAY_TASK_ID" in env:
        job = env.get("SLURM_ARRAY_JOB_ID")
        return None if job is None else f"array-{job}"
    if "SLURM_STEP_ID" in env and "SLURM_JOB_ID" in env:
        return f"step-{env['SLURM_JOB_ID']}-{env['SLURM_STEP_ID']}-{env.get('SLURM_RESTART_COUNT', '0')}"
    return None


def _left_alone(stage: Stage, launch: str, ranks: Ranks) -> list[int]:
    """Missing tasks of processes that are not there, unless they may be queued.

    An element that has begun and is not here tells that this array does not share out this folder: then the queued
    ones will not come either.
    """
    missing = missing_tasks(stage, range(len(stage.sizes)))
    there = _there(stage, launch, ranks)
    missing = [task for task in missing if task % ranks.world_size not in there]
    if missing and launch.startswith("array-"):
        queued = _queued(launch.removeprefix("array-"), ranks)
        if queued is None:
            logger.warning("squeue does not answer, so it is not known whether the other elements will come")
            return []
        if not set(range(ranks.world_size)) - there - queued:
            return []  # every element that has begun is here: so will the others be
    return missing


def _queued(job: str, ranks: Ranks) -> set[int] | None:
    """Ranks of the array's elements that have not begun; None if SLURM does not say."""
    command = ["squeue", "--noheader", "--array", f"--jobs={job}", "--format=%K|%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    if done.returncode != 0:
        return None
    first, last, count = (int(os.environ[f"SLURM_ARRAY_TASK_{key}"]) for key in ("MIN", "MAX", "COUNT"))
    step, tasks_each = (last - first) // max(1, count - 1) or 1, ranks.world_size // count
    queued: set[int] = set()
    for line in done.stdout.splitlines():
        number, _, state = line.strip().partition("|")
        if number.isdecimal() and state not in _NOT_COMING:
            begin = (int(number) - first) // step * tasks_each
            queued |= set(range(begin, begin + tasks_each))
    return queued


def _there(stage: Stage, launch: str, ranks: Ranks) -> set[int]:
    names = {entry.name for entry in os.scandir(stage.work)}  # also makes NFS look again
    return {rank for rank in range(ranks.world_size) if _note(stage, launch, rank).name in names}


def _read(note: Path) -> str | None:
    """None if its process has been refused meanwhile."""
    try:
        return note.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _note(stage: Stage, launch: str, rank: int) -> Path:
    return stage.work / f"{launch}-{rank}{_NOTE}"
