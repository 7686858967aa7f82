"""The options of a SLURM job array, the same for every `syne data` command that runs a stage."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from typer import Option

from data_mixers.errors import ConfigError

TASK_MEMORY_GB = 4  # ours: every stage's working set is below 1 GB a process; the rest is for page cache and models


@dataclass(frozen=True, kw_only=True)
class SlurmArray:
    """A job array to run a stage on; what is None or missing is left to the cluster's defaults.

    cpus, mem_gb and gpus are of an element.
    """

    tasks: int
    """Elements of the array, each with a part of the stage's tasks; the result does not depend on it."""
    partition: str | None = None
    time: str | None = None
    """Limit of an element, as sbatch writes it."""
    cpus: int = 1
    mem_gb: int = TASK_MEMORY_GB
    gpus: int = 0
    sbatch_args: dict[str, str] = field(default_factory=dict)
    """More options of sbatch; an empty value: a flag."""


OWN = {
    "array": "--slurm-tasks",
    "partition": "--slurm-partition",
    "time": "--slurm-time",
    "cpus-per-task": "--slurm-cpus",
    "mem": "--slurm-mem-gb",
    "mem-per-cpu": "--slurm-mem-gb",
    "gpus": "--slurm-gpus",
}
FIXED = ("job-name", "nodes", "ntasks", "output", "error", "export", "chdir", "wrap")  # the stage relies on them


def _slurm_array(
    slurm_tasks: Annotated[
        int | None, Option(min=1, help="Run as a SLURM job array of so many elements, not here.")
    ] = None,
    slurm_partition: Annotated[str | None, Option(help="Default: the cluster's.")] = None,
    slurm_time: Annotated[str | None, Option(help="Limit of an element, 4:00:00.")] = None,
    slurm_cpus: Annotated[int | None, Option(min=1, help="Of an element; default 1.")] = None,
    slurm_mem_gb: Annotated[int | None, Option(min=1, help=f"Of an element; default {TASK_MEMORY_GB}.")] = None,
    slurm_gpus: Annotated[int | None, Option(min=0, help="Of an element; default 0.")] = None,
    slurm_args: Annotated[
        list[str] | None, Option(metavar="KEY=VALUE", help="More for sbatch, e.g. account=lab; may be repeated.")
    ] = None,
) -> SlurmArray | None:
    given = {
        "partition": slurm_partition,
        "time": slurm_time,
        "cpus": slurm_cpus,
        "mem_gb": slurm_mem_gb,
        "gpus": slurm_gpus,
        "sbatch_args": _sbatch_args(slurm_args) if slurm_args else None,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if slurm_tasks is None:
        if chosen:
            raise ConfigError("the --slurm-... options have no effect without --slurm-tasks N")
        return None
    return SlurmArray(tasks=slurm_tasks, **chosen)


Array = Annotated[SlurmArray | None, _slurm_array]
"""Run on a cluster, not in this machine's processes. For a dataclass that `takes` makes options of."""


@dataclass(frozen=True, kw_only=True)
class OnSlurm:
    """For a command that `takes` no other dataclass."""

    array: Array = None


def _sbatch_args(texts: list[str]) -> dict[str, str]:
    arguments = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", key) or "\n" in value:
            raise ConfigError(
                f"--slurm-args {text!r}: give a long option of sbatch without its dashes, e.g. account=lab"
            )
        if key in OWN:
            raise ConfigError(f"--slurm-args {text!r}: use {OWN[key]}")
        if key in FIXED:
            raise ConfigError(f"--slurm-args {text!r}: {key} is set by the stage itself")
        arguments[key] = value
    return arguments
