"""The starts of a run, in attempts.json: does it get further from one to the next, and how much of its time counted?

Goodput: seconds of the training steps that the run still holds, over the seconds it has been allocated, all starts.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile

import psutil

from data_mixers.errors import ConfigError
from data_mixers.file_version import check_version
from data_mixers.strict_json import parse
from megatron_synE.exit_codes import NoProgressError
from megatron_synE.runtime.run_dir import RunDir

ATTEMPTS = "attempts.json"
SCHEMA_VERSION = 1
_WRITE_SECONDS = 60.0
"""At most so much of a killed attempt's time is not counted."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of the run. Times are seconds since 1970 on the host of rank 0."""

    began: float
    """Of the job's time where Slurm says it (SLURM_JOB_START_TIME), else of the process."""
    last_seen: float
    first_iteration: int
    config_digest: str
    """Of the configuration: a person who changed it has another try."""
    job: str | None
    """SLURM_JOB_ID, which a requeue keeps: a person who submits again has another try, as in the job script."""


class Attempts:
    """Rank 0's record of all starts, this one last. Made by `begin`."""

    def __init__(self, run_dir: RunDir, attempts: Sequence[Attempt]) -> None:
        self._run_dir, self._attempts = run_dir, tuple(attempts)
        self._written = 0.0
        self.note()

    def note(self, *, at_once: bool = True) -> None:
        """Write that this start still lives; at_once=False: on disk only if it was not for a minute."""
        now = time.time()
        self._attempts = (*self._attempts[:-1], replace(self._attempts[-1], last_seen=now))
        if not at_once and now - self._written < _WRITE_SECONDS:
            return
        self._written = now
        content = {"schema_version": SCHEMA_VERSION, "attempts": [asdict(attempt) for attempt in self._attempts]}
        self._run_dir.write(ATTEMPTS, json.dumps(content, indent=1) + "\n")

    def goodput(self, productive_seconds: float) -> float:
        """Share of the time allocated until the last `note`."""
        return productive_seconds / max(sum(attempt.last_seen - attempt.began for attempt in self._attempts), 1e-9)


def begin(
    run_dir: RunDir, *, first_iteration: int, is_finished: bool, config_digest: str, restart_budget: int
) -> Attempts:
    """Record this start. Rank 0 alone, as the holder of the lease.

    Errors: NoProgressError if restart_budget restarts with this configuration have begun at this iteration already.
    """
    earlier, job = read(run_dir), os.environ.get("SLURM_JOB_ID")
    this = (first_iteration, config_digest, job)
    same = sum(1 for _ in takewhile(lambda a: (a.first_iteration, a.config_digest, a.job) == this, reversed(earlier)))
    # The first of them was no restart.
    if same > restart_budget and not is_finished:
        raise NoProgressError(
            f"{run_dir.root}: restarted {same - 1} times at iteration {first_iteration} without getting further; the "
            "log says why each start ended. Mend that, then change the configuration, raise "
            f"operations.restart_budget={restart_budget}, or remove {run_dir.root / ATTEMPTS}"
        )
    began = float(os.environ.get("SLURM_JOB_START_TIME") or psutil.Process().create_time())
    if earlier:
        began = max(began, earlier[-1].last_seen)  # a second step of one job
    now = Attempt(
        began=min(began, time.time()), last_seen=time.time(), first_iteration=first_iteration,
        config_digest=config_digest, job=job,
    )  # fmt: skip
    return Attempts(run_dir, (*earlier, now))


def read(run_dir: RunDir) -> tuple[Attempt, ...]:
    """All starts of a run so far. Errors: ConfigError for a damaged attempts.json."""
    file = run_dir.root / ATTEMPTS
    if not file.exists():
        return ()
    cure = "remove it, it holds the run's starts alone"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); {cure}") from error
    check_version(content, understood=SCHEMA_VERSION, file=file, cure=cure, fault=ConfigError)
    try:
        return tuple(parse(Attempt, item, where=ATTEMPTS, fault=ConfigError) for item in content["attempts"])
    except (KeyError, TypeError, ConfigError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); {cure}") from error
