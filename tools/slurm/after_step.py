"""What a job script asks between its steps: may this attempt begin, and what follows from how the last one ended.

    begin: 0, or 7 when the attempts so far got nowhere          end CODE: the script's own exit code; 75 means requeue
Run inside the job as `python -m tools.slurm.after_step RUN_DIR begin`. Every attempt leaves a line in
<run.dir>/slurm/attempts.jsonl, also one that Slurm itself requeued because a node was lost; so the count cannot be
escaped. What counts as progress is a newer complete checkpoint, whatever a trainer says of itself.
"""

import json
import logging
import os
import sys
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

from data_mixers.errors import ConfigError
from data_mixers.schedule import Schedule
from megatron_synE import exit_codes
from megatron_synE.checkpoint import layout
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.runtime.lease import Holder, read_holder

DIED_OF_A_SIGNAL = 128
"""Codes above it: a rank did not end by itself, but for INTERRUPTED: a person pressed Ctrl-C."""
FAULT_OR_LOST_PEER = 1
"""A fault of the program, or what is left of a run one of whose ranks went without a word, with its node or step."""


@dataclass(frozen=True)
class Attempt:
    job: str
    restart: int
    iteration: int
    """Of the newest complete checkpoint at the start; -1: none."""
    token: str | None = None
    """Of the lease at the start: an earlier writer's."""


def newest_iteration(run_dir: Path) -> int:
    """Of the newest complete checkpoint; -1 without one."""
    folder = layout.newest_complete(run_dir / layout.CHECKPOINTS)
    return -1 if folder is None else layout.iteration_of(folder)


def is_finished(run_dir: Path) -> bool:
    """Whether the newest complete checkpoint stands at the end of its schedule."""
    folder = layout.newest_complete(run_dir / layout.CHECKPOINTS)
    if folder is None:
        return False
    try:
        state = layout.read_state(folder)
    except CheckpointError:
        return False
    if state.schedule is None:
        return False
    return state.consumed_samples >= Schedule.from_json(state.schedule["json"]).num_samples


def attempts_without_progress(attempts: list[Attempt], iteration: int) -> int:
    """How many of the last attempts, one after the other, began at `iteration`, where the run still stands."""
    return sum(1 for _ in takewhile(lambda attempt: attempt.iteration == iteration, reversed(attempts)))


def verdict(code: int, *, before: int, now: int, finished: bool, stuck: int, retries: int) -> tuple[int, str]:
    """The job script's exit code and the sentence for its log.

    before, now: newest complete iteration when the attempt began, and after it. stuck: attempts that began at `now`.
    """
    how = {exit_codes.PREEMPTED: "asked to leave", exit_codes.HANG: "hung", FAULT_OR_LOST_PEER: "broken off"}.get(code)
    if code == exit_codes.FINISHED:
        if finished:
            return exit_codes.FINISHED, "finished"
        how = "cancelled"  # srun says 0 too when its step was (seen with Slurm 22.05)
    elif code > DIED_OF_A_SIGNAL and code != exit_codes.INTERRUPTED:
        how = "killed"
    if how is None:
        return code, f"stopped: {exit_codes.MEANINGS.get(code, 'unknown')}"
    if now > before:
        return exit_codes.PREEMPTED, f"{how}; iteration {before} -> {now}: requeue"
    if stuck <= retries:
        return exit_codes.PREEMPTED, f"{how} without a new checkpoint ({stuck} of {retries} retries used): requeue"
    return exit_codes.NO_PROGRESS, f"{how}; {stuck} attempts in a row got no further than iteration {now}: stopped"


def lost_to(begun: Attempt, holder: Holder | None) -> Holder | None:
    """Who took the run while this attempt ran, if another job did, or a later restart of this one.

    srun's code cannot tell: it is the highest of all ranks', and one whose peers have left may die of a signal.
    """
    if holder is None or holder.job is None or holder.token == begun.token:
        return None
    if holder.job == begun.job and holder.restart_count <= begun.restart:
        return None
    return holder


def main(arguments: list[str]) -> int:
    """RUN_DIR begin RETRIES | RUN_DIR end RETRIES CODE"""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    run_dir, action, retries = Path(arguments[0]), arguments[1], int(arguments[2])
    job, restart = os.environ.get("SLURM_JOB_ID", "none"), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    file = run_dir / "slurm" / "attempts.jsonl"
    # A person who submits again has mended something: only this job's own attempts count.
    attempts = [attempt for attempt in _read(file) if attempt.job == job]
    now = newest_iteration(run_dir)
    stuck = attempts_without_progress(attempts, now)
    if action == "begin":
        if stuck > retries:  # allowed: a first attempt at an iteration, and so many more
            _say(f"{stuck} attempts in a row got no further than iteration {now}: stopped")
            return exit_codes.NO_PROGRESS
        _append(file, Attempt(job, restart, now, None if (holder := _holder(run_dir)) is None else holder.token))
        _say(f"restart {restart} of job {job}, from {'nothing' if now < 0 else f'iteration {now}'}")
        return 0
    finished, own = is_finished(run_dir), [attempt for attempt in attempts if attempt.restart == restart]
    if not finished and own and (thief := lost_to(own[-1], _holder(run_dir))) is not None:
        _say(f"step ended with {arguments[3]}; {thief} holds this run now: stopped")
        return exit_codes.LEASE_LOST
    before = attempts[-1].iteration if attempts else now
    code, sentence = verdict(int(arguments[3]), before=before, now=now, finished=finished, stuck=stuck, retries=retries)
    _say(f"step ended with {arguments[3]}; {sentence}")
    return code


def _holder(run_dir: Path) -> Holder | None:
    try:
        return read_holder(run_dir)
    except ConfigError as error:  # the trainer says it too, and stops
        _say(str(error))
        return None


def _read(file: Path) -> list[Attempt]:
    if not file.exists():
        return []
    attempts = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            attempts.append(Attempt(**json.loads(line)))
        except (ValueError, TypeError):
            continue  # cut by the end of a node
    return attempts


def _append(file: Path, attempt: Attempt) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        # After a line that was cut, one of its own.
        stream.write(("" if stream.tell() == 0 else "\n") + json.dumps(asdict(attempt)))
        stream.flush()
        os.fsync(stream.fileno())


def _say(sentence: str) -> None:
    sys.stderr.write(f"syne: {sentence}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
