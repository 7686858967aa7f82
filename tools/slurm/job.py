"""What a training job asks of a cluster, checked: nothing here can change a meaning inside a script."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_mixers.errors import ConfigError
from megatron_synE.config.fault import require
from megatron_synE.config.load import load_config
from megatron_synE.config.schema import RunConfig
from megatron_synE.config.validate import world_faults
from tools.slurm.options import Environment, Resources, RunOptions

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
DEFAULT_LEAD_SECONDS = 600
"""Ours, until the run has saved once: users report 40 s to 6 min for a save of 8B."""
SHORTEST_LEAD_SECONDS = 30
RECENT_STEPS = 200
_TAIL_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One run as a job that is requeued until the run is finished."""

    config_path: Path
    overrides: tuple[str, ...]
    config: RunConfig
    resources: Resources
    environment: Environment
    options: RunOptions
    node_counts: tuple[int, ...]
    """Numbers of nodes it can train on, the largest first; with min_nodes more than one."""


def training_job(
    config_path: Path, overrides: tuple[str, ...], resources: Resources, environment: Environment, options: RunOptions
) -> TrainingJob:
    """A checked job. Errors: ConfigError for what the run's file, Slurm or a shell would not take."""
    config = load_config(config_path, overrides).resolved
    resources = replace(resources, min_nodes=options.min_nodes)
    check_resources(resources)
    check_environment(environment)
    node_counts = usable_node_counts(config, resources) if resources.min_nodes else (resources.nodes,)
    if re.search(r"[%\\\n]", str(config.run.dir)):
        raise ConfigError(f"run.dir={config.run.dir}: Slurm reads % and \\ in the name of a log; choose another folder")
    if options.retries > (budget := config.operations.restart_budget):
        raise ConfigError(
            f"--retries {options.retries}: the trainer itself stops after operations.restart_budget={budget} restarts; "
            f"add operations.restart_budget={options.retries}, or lower --retries"
        )
    return TrainingJob(
        config_path=config_path, overrides=overrides, config=config, resources=resources, environment=environment,
        options=options, node_counts=node_counts,
    )  # fmt: skip


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


def lead_time(metrics: Path) -> tuple[int, str]:
    """(seconds between the signal to save and the wall time, where the number comes from).

    Twice the slowest save on record, one step and one validation batch, rounded up to ten seconds.
    metrics: the run's metrics.jsonl. A validation batch is a forward pass of a part of a global batch, so the slowest
    recent step stands for it too; where not every step is logged, the slowest mean.
    """
    rows = _last_rows(metrics)
    saves = [float(row["seconds"]) for row in rows if row.get("kind") == "checkpoint" and "seconds" in row]
    steps = [float(row["step_seconds"]) for row in rows if row.get("kind") == "train" and "step_seconds" in row]
    if not saves or not steps:
        return DEFAULT_LEAD_SECONDS, f"default, {metrics} tells of no save yet"
    save, step = max(saves), max(steps[-RECENT_STEPS:])
    seconds = max(SHORTEST_LEAD_SECONDS, 10 * -(-int(2 * save + 2 * step + 1) // 10))
    return seconds, f"2 x {save:.1f} s (slowest save measured) + 2 x {step:.1f} s (a step, a validation batch)"


def _last_rows(metrics: Path) -> list[dict[str, Any]]:
    try:
        with metrics.open("rb") as stream:
            stream.seek(max(0, metrics.stat().st_size - _TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut, at either end
        if isinstance(row, dict):
            rows.append(row)
    return rows
