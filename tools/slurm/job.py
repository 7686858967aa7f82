"""What a training job asks of a cluster, checked: nothing here can change a meaning inside a script."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_mixers.errors import ConfigError
from megatron_synE.config.fault import require
from megatron_synE.config.load import load_config
from megatron_synE.config.schema import RunConfig
from megatron_synE.config.validate import world_faults

Container = Literal["none", "pyxis", "apptainer"]

OWN_OPTIONS = {
    "nodes": "--nodes",
    "gpus-per-node": "--gpus-per-node",
    "ntasks-per-node": "--gpus-per-node",
    "cpus-per-task": "--cpus-per-task",
    "time": "--time",
}
FIXED_OPTIONS = ("signal", "requeue", "no-requeue", "open-mode", "output", "error", "wrap", "array", "ntasks", "chdir")
"""The script relies on them."""
# sbatch reads a directive's words itself, not through a shell; so no spaces, quotes, # or backslashes.
_DIRECTIVE_VALUE = re.compile(r"[A-Za-z0-9_.,:=/+@%\[\]*&|!~-]*")
_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Machines and their time; what is not said is left to the cluster."""

    nodes: int
    min_nodes: int | None = None
    """Of a training run: goes on with as few when nodes are lost. None: waits for all of them."""
    gpus_per_node: int = 8
    """Also the tasks of a node: one rank a GPU. With device=cpu: the ranks of a node, without GPUs."""
    cpus_per_task: int | None = None
    """None: whole nodes, whose cores are shared out at run time."""
    time: str = "1-00:00:00"
    """Wall time of one slice, as sbatch writes it."""
    options: dict[str, str] = field(default_factory=dict)
    """More options of sbatch; an empty value: a flag."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is evaluated when a run has been trained and converted."""

    suites: tuple[str, ...]
    data: Path | None = None
    runs_code: bool = False

    def options(self) -> list[str]:
        """Of `syne eval`. Offline, as compute nodes are; a set that is not there is left out, and said to be."""
        data = [] if self.data is None else ["--data", str(self.data)]
        return ["--offline", "--skip-missing", *data, *(["--run-code"] if self.runs_code else [])]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where the commands run."""

    python: str = "python"
    container: Container = "none"
    image: str | None = None
    mounts: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    """More environment variables, e.g. NCCL_SOCKET_IFNAME."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One run as a job that is requeued until the run is finished."""

    config_path: Path
    overrides: tuple[str, ...]
    config: RunConfig
    resources: Resources
    environment: Environment = field(default_factory=Environment)
    retries: int = 3
    """Restarts in a row without a new checkpoint before the job gives up. Ours."""
    preflight: bool = True
    lead_seconds: int | None = None
    """Between the signal and the wall time; None: as measured (lead_time.py)."""
    node_counts: tuple[int, ...]
    """Numbers of nodes it can train on, the largest first; with min_nodes more than one."""


def training_job(
    config_path: Path,
    overrides: tuple[str, ...],
    resources: Resources,
    environment: Environment,
    *,
    retries: int = 3,
    preflight: bool = True,
    lead_seconds: int | None = None,
) -> TrainingJob:
    """A checked job. Errors: ConfigError for what the run's file, Slurm or a shell would not take."""
    config = load_config(config_path, overrides).resolved
    check_resources(resources)
    check_environment(environment)
    node_counts = usable_node_counts(config, resources) if resources.min_nodes else (resources.nodes,)
    if re.search(r"[%\\\n]", str(config.run.dir)):
        raise ConfigError(f"run.dir={config.run.dir}: Slurm reads % and \\ in the name of a log; choose another folder")
    if retries > (budget := config.operations.restart_budget):
        raise ConfigError(
            f"--retries {retries}: the trainer itself stops after operations.restart_budget={budget} restarts; add "
            f"operations.restart_budget={retries}, or lower --retries"
        )
    return TrainingJob(
        config_path=config_path,
        overrides=overrides,
        config=config,
        resources=resources,
        environment=environment,
        retries=retries,
        preflight=preflight,
        lead_seconds=lead_seconds,
        node_counts=node_counts,
    )


def usable_node_counts(config: RunConfig, resources: Resources) -> tuple[int, ...]:
    """From nodes down to min_nodes, those over whose ranks the run's global batch can be divided.

    Errors: ConfigError if `nodes` is none of them, or if there is no smaller one.
    """
    nodes, fewest = resources.nodes, resources.min_nodes or resources.nodes
    if fewest >= nodes:
        raise ConfigError(f"--min-nodes {fewest} is not below --nodes {nodes}; lower it, or leave it out")
    ranks = resources.gpus_per_node
    faults = {count: world_faults(config, world_size=count * ranks) for count in range(nodes, 0, -1)}
    require(faults[nodes], where=f"--nodes {nodes}")
    fitting = [count for count, found in faults.items() if not found]
    usable = tuple(count for count in fitting if count >= fewest)
    if len(usable) == 1:
        cure = f"use --min-nodes {fitting[1]}" if len(fitting) > 1 else "change it, or leave --min-nodes out"
        raise ConfigError(
            f"--min-nodes {fewest}: no number of nodes from {fewest} to {nodes - 1} fits the run; with {nodes - 1}: "
            f"{faults[nodes - 1][0].key}: {faults[nodes - 1][0].message}; {cure}"
        )
    return usable


def check_resources(resources: Resources) -> None:
    """Errors: ConfigError naming the option that sbatch would not take as it is meant."""
    if not _TIME.fullmatch(resources.time):
        raise ConfigError(f"--time {resources.time!r}: give it as sbatch does, e.g. 12:00:00 or 2-00:00:00")
    for name, value in resources.options.items():
        if name in OWN_OPTIONS:
            raise ConfigError(f"--sbatch {name}: use {OWN_OPTIONS[name]}")
        if name in FIXED_OPTIONS or not re.fullmatch(r"[a-z][a-z-]*", name):
            raise ConfigError(f"--sbatch {name}: not an option that can be added; give a long option without dashes")
        if not _DIRECTIVE_VALUE.fullmatch(value):
            raise ConfigError(f"--sbatch {name}={value!r}: holds a character that cannot stand in a directive")


def check_environment(environment: Environment) -> None:
    """Errors: ConfigError for a container without an image, or a name that is no variable's."""
    if (environment.container == "none") != (environment.image is None):
        raise ConfigError("--container pyxis or apptainer needs --image, and --image one of them")
    if environment.container == "none" and environment.mounts:
        raise ConfigError("--mount has no effect without --container")
    for name in environment.variables:
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"--env {name!r}: not the name of an environment variable")


def seconds_of(time: str) -> int:
    """Wall time in seconds: minutes, minutes:seconds, h:m:s, days-hours, days-h:m, days-h:m:s."""
    days, dash, rest = time.rpartition("-")
    numbers = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
