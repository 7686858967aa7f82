"""Calls of Slurm's own commands, with its message where it refuses."""

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_mixers.errors import ConfigError

OF_THE_USER = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
"""How to reach the cluster: by which file, which of several, with which token (scontrol token)."""


def call(command: Sequence[str | Path]) -> str:
    """What the command prints. Errors: ConfigError with Slurm's reason, or where there is no Slurm.

    Inside a job it does not see that job's own variables: sbatch would hand them on, and srun in the new job would take
    the cores, GPUs and tasks of another for its own.
    """
    is_inside = "SLURM_JOB_ID" in os.environ
    env = {
        name: value
        for name, value in os.environ.items()
        if not (is_inside and name.startswith("SLURM_") and name not in OF_THE_USER)
    }
    try:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=env)
    except FileNotFoundError as error:
        raise ConfigError(f"no {command[0]} on this machine; call from a login node of the cluster") from error
    if done.returncode != 0:
        raise ConfigError(f"{command[0]} refuses: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def submit(script: Path, *, after: str | None = None) -> str:
    """Submit a script and give its job id; `after`: a job that must have ended with exit code 0.

    Errors: ConfigError with Slurm's reason.
    """
    # Without the second, a job whose predecessor failed would wait for good.
    dependency = [] if after is None else [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    output = call(["sbatch", "--parsable", *dependency, script])
    return output.strip().split(";")[0]  # 12, or 12;cluster where one is named


def in_queue(jobs: Iterable[str]) -> list[str]:
    """Those of the caller's jobs that wait or run."""
    queued = call(["squeue", "--noheader", "--me", "--format=%A"]).split()
    return [job for job in jobs if job in queued]


def cluster_name() -> str:
    """ClusterName of slurm.conf."""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", call(["scontrol", "show", "config"]), re.MULTILINE)
    return found[1] if found else "unknown"
