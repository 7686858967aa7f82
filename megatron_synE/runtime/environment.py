"""Who this process is, as launchers tell it through the environment. No torch."""

import os
import resource
from dataclasses import dataclass

from data_mixers.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among all of them."""

    rank: int
    world_size: int
    local_rank: int


MANY_FILES = 1 << 16
"""Ours: more than any corpus of ours has shards, less than what makes programs that close all descriptors slow."""
ALONE = Ranks(rank=0, world_size=1, local_rank=0)
"""A process without peers."""


def ranks_from_environment() -> Ranks | None:
    """What torchrun, srun, or our own local launcher says; None when this process was started by hand.

    Errors: ConfigError if srun started several tasks without telling them where rank 0 is.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return Ranks(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0")))
    if (task := _task_of_step()) is not None:
        if "MASTER_ADDR" not in env or "MASTER_PORT" not in env:
            raise ConfigError(
                "under srun, export MASTER_ADDR (first host of the job) and MASTER_PORT in the sbatch script"
            )
        return task
    return None


def _task_of_step() -> Ranks | None:
    """This process among the tasks that srun has started, if they are more than one.

    The shell that salloc opens is a step of one task, and has the SLURM_NTASKS of the whole job (srun --preserve-env).
    """
    env = os.environ
    if "SLURM_STEP_ID" not in env:
        return None
    of_job = int(env.get("SLURM_NTASKS", "1"))
    size = min(of_job, int(env.get("SLURM_STEP_NUM_TASKS", of_job)))
    return Ranks(int(env["SLURM_PROCID"]), size, int(env["SLURM_LOCALID"])) if size > 1 else None


def independent_ranks() -> Ranks | None:
    """This process among those that share out work without talking: torchrun, srun, or a SLURM job array.

    None when it was started by hand. A job array whose jobs have several tasks counts them all.
    Errors: ConfigError for an array of ids at unequal distances: its jobs know their count, not the ids of the others.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return Ranks(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0")))
    task = _task_of_step() or ALONE
    rank, size, local = task.rank, task.world_size, task.local_rank
    if "SLURM_ARRAY_TASK_ID" in env:
        # Ids may begin anywhere and leave steps out (--array=10-50:10).
        number, first, last = (int(env[f"SLURM_ARRAY_TASK_{key}"]) for key in ("ID", "MIN", "MAX"))
        count = int(env["SLURM_ARRAY_TASK_COUNT"])
        step = (last - first) // max(1, count - 1) or 1
        if first + step * (count - 1) != last or (number - first) % step:
            raise ConfigError(
                f"the {count} ids of this job array, {first} to {last}, do not lie at equal distances, so two of its "
                f"jobs would take the same share; submit it as a range, e.g. --array=0-{count - 1}"
            )
        rank, size = (number - first) // step * size + rank, count * size
    return Ranks(rank, size, local) if size > 1 else None


def allow_many_files() -> None:
    """Let this process, and those it starts, open as many files as the system lets it.

    A reader keeps two descriptors for each token file: 100 B tokens lie in some 700, and many systems begin with a
    limit of 1,024, of which the run's own sockets take their share. `syne data preprocess` maps every run of a topic.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def keep_order_of_kernels() -> None:
    """One queue to a card: tensor parallelism's messages start before the product that hides them, as launched.

    Without tensor parallelism it would keep apart what may run at once. Must run before a card is first used.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def hide_cuda() -> None:
    """Make this process, and what it starts, see no GPU. Must run before torch is first imported."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
