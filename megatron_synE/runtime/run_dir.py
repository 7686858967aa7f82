"""The run folder: what lies where, and the manifest that says what the run was."""

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_mixers.errors import ConfigError
from data_mixers.file_version import check_version
from megatron_synE.runtime import lease

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
"""Of manifest.json, and of what lies beside it without a number of its own: metrics.jsonl, lease.json, slurm/."""
OTHER_VERSION = "go on with the version of the program that began the run, or take another run.dir"

_SECRET_WORDS = ("key", "token", "secret", "password", "passwd", "credential", "auth", "jwt", "cookie")
_LOGIN_IN_URL = re.compile(r"://[^/@\s]+@")
_RECORDED_ENVIRONMENT = ("NCCL_", "CUDA_", "TORCH_", "OMP_", "SLURM_", "NVTE_", "WANDB_", "HF_")
_PACKAGES = (
    "megatron-core", "torch", "transformers", "safetensors", "numpy", "transformer-engine", "apex", "flash-attn",
    "triton", "fastokens",
)  # fmt: skip


class RunDir:
    """Paths below run.dir."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.metrics = root / "metrics.jsonl"
        self.hf = root / "hf"
        self.manifest = root / "manifest.json"
        self.lease: lease.Lease | None = None
        """Held by rank 0 alone."""

    def create(self) -> None:
        """Make the folders. Errors: ConfigError if they cannot be written."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".writable-{os.getpid()}"
            probe.write_text("")
            probe.unlink(missing_ok=True)  # ranks in containers on other nodes may have the same process id
        except OSError as error:
            raise ConfigError(
                f"run.dir={self.root}: cannot be written ({error.strerror}); choose another folder"
            ) from error

    def take(self, *, takeover: bool) -> None:
        """Become its one writer until this process ends, or another takes it over. Rank 0 alone calls it.

        Errors: ConfigError if another run writes there; LeaseLostError if a later restart of this job does.
        """
        self.lease = lease.take(self.root, takeover=takeover)

    def release(self) -> None:
        """Leave it to the next run."""
        if self.lease is not None:
            self.lease.release()

    @property
    def token(self) -> str:
        """Of this writer. On rank 0."""
        assert self.lease is not None
        return self.lease.token

    @property
    def is_lost(self) -> bool:
        """Whether another process was seen to have become the writer; False on ranks that do not look."""
        return self.lease is not None and self.lease.lost

    def write(self, name: str, text: str) -> None:
        """Write one file of the run atomically. Only the holder of the lease may.

        Errors: ConfigError if the disk refuses; LeaseLostError.
        """
        assert self.lease is not None
        try:
            lease.write_text(self.root / name, text, token=self.lease.token, lease=self.lease)
        except OSError as error:
            raise ConfigError(f"{self.root / name}: cannot be written ({error.strerror}); make room") from error


def versions() -> dict[str, str]:
    """Installed versions of what decides results; absent packages are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def recorded_environment() -> dict[str, str]:
    """Environment variables that launchers set for NCCL, CUDA and Slurm; secrets, also logins in URLs, are masked."""
    return {
        name: "***" if any(word in name.lower() for word in _SECRET_WORDS) else _LOGIN_IN_URL.sub("://***@", value)
        for name, value in sorted(os.environ.items())
        if name.startswith(_RECORDED_ENVIRONMENT)
    }


def masked(tree: Any) -> Any:
    """A copy of a configuration tree whose secret-looking values are masked."""
    if isinstance(tree, dict):
        return {
            key: "***" if isinstance(value, str) and _is_secret(key) else masked(value) for key, value in tree.items()
        }
    return [masked(item) for item in tree] if isinstance(tree, list | tuple) else tree


def _is_secret(key: str) -> bool:
    words = key.lower().replace("-", "_").split("_")
    return any(word in words for word in ("password", "secret", "credential", "apikey")) or key.lower().endswith(
        "api_key"
    )


def git_state() -> dict[str, str]:
    """Commit and cleanliness of the source tree; empty when it is not a git checkout."""
    source = Path(__file__).resolve().parents[2]
    state = {}
    for key, arguments in {"commit": ("rev-parse", "HEAD"), "dirty": ("status", "--porcelain")}.items():
        try:
            done = subprocess.run(["git", "-C", str(source), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return {}
        if done.returncode:
            return {}
        state[key] = done.stdout.strip() if key == "commit" else str(bool(done.stdout.strip())).lower()
    return state


def check_run_version(manifest: object, file: Path) -> None:
    """Errors: ConfigError if a run's manifest.json is of another version."""
    check_version(manifest, understood=SCHEMA_VERSION, file=file, cure=OTHER_VERSION, fault=ConfigError)


def read_run_manifest(run_dir: RunDir) -> dict[str, Any]:
    """manifest.json of the attempt before this one; empty without one, and with a logged warning if it is damaged.

    Errors: ConfigError if it is of another version.
    """
    if not run_dir.manifest.exists():
        return {}
    try:
        previous = json.loads(run_dir.manifest.read_text(encoding="utf-8"))
    except ValueError:
        logger.warning("%s is damaged; its history is lost", run_dir.manifest)
        return {}
    check_run_version(previous, run_dir.manifest)
    return dict(previous)


def write_run_manifest(
    run_dir: RunDir, previous: Mapping[str, Any], *, changes: Mapping[str, Any] | None = None, **facts: Any
) -> None:
    """Write manifest.json: what ran, from what, on what. Earlier attempts of the run are kept in `attempts`.

    previous: what read_run_manifest gave. changes: of the configuration since then, {key: [was, is]}.
    """
    attempts = [*previous.get("attempts", []), previous["attempt"]] if "attempt" in previous else []
    slurm = {name: value for name, value in recorded_environment().items() if name.startswith("SLURM_")}
    attempt = {
        "command": sys.argv,
        "host": platform.node(),
        "versions": versions(),
        "git": git_state(),
        "environment": recorded_environment(),
        "slurm_job_id": slurm.get("SLURM_JOB_ID"),
        "slurm_restart_count": slurm.get("SLURM_RESTART_COUNT", "0") if slurm else None,
        "changes": changes or {},
    }
    document = {"schema_version": SCHEMA_VERSION, **facts, "attempt": attempt, "attempts": attempts}
    run_dir.write("manifest.json", json.dumps(document, indent=1, default=str) + "\n")
