"""What a job script is told: which ends are followed by a restart, and when it is enough."""

import json
from pathlib import Path

import pytest

from megatron_synE import exit_codes
from megatron_synE.checkpoint import layout
from tests import tiny
from tools.slurm import after_step

SIGKILL, SIGUSR1 = 137, 138


@pytest.mark.parametrize("code", [exit_codes.PREEMPTED, exit_codes.HANG, SIGKILL, SIGUSR1, 1, 0])
def test_an_end_that_asks_for_it_is_followed_by_a_restart_while_there_is_progress_or_a_retry(code: int) -> None:
    def told(*, before: int, now: int, stuck: int) -> int:
        return after_step.verdict(code, before=before, now=now, finished=False, stuck=stuck, retries=3)[0]

    assert told(before=10, now=20, stuck=0) == exit_codes.PREEMPTED
    assert [told(before=10, now=10, stuck=stuck) for stuck in (1, 2, 3, 4)] == [75, 75, 75, exit_codes.NO_PROGRESS]


@pytest.mark.parametrize("code", [2, 3, 4, 5, 7, 8, 9, 130])
def test_other_ends_are_final_whatever_was_saved(code: int) -> None:
    assert after_step.verdict(code, before=10, now=20, finished=False, stuck=0, retries=3)[0] == code


def test_zero_is_believed_only_of_a_run_that_stands_at_its_end() -> None:
    assert after_step.verdict(0, before=10, now=20, finished=True, stuck=0, retries=3)[0] == 0
    assert after_step.verdict(0, before=10, now=20, finished=False, stuck=0, retries=3)[0] == 75
    assert after_step.verdict(0, before=20, now=20, finished=False, stuck=1, retries=0)[0] == exit_codes.NO_PROGRESS


def asked(run: Path, *arguments: object, job: str = "5", restart: int = 0) -> int:
    environment = {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart)}
    return tiny.python("-m", "tools.slurm.after_step", run, *arguments, **environment).returncode


def checkpoint(run: Path, iteration: int) -> Path:
    folder = run / "checkpoints" / layout.iteration_name(iteration)
    folder.mkdir(parents=True)
    (folder / ".metadata").write_bytes(b"")
    (folder / "state.json").write_text("{}")
    layout.write_manifest(folder, {})
    return folder


def test_restarts_that_slurm_itself_made_count_too(tmp_path: Path) -> None:
    """A lost node kills the script before it can ask how it ended: so the beginning counts."""
    begun = [asked(tmp_path, "begin", 2, restart=restart) for restart in range(4)]
    assert begun == [0, 0, 0, exit_codes.NO_PROGRESS]
    assert asked(tmp_path, "begin", 2, job="6") == 0  # submitted again by a person: not a restart
    checkpoint(tmp_path, 10)
    assert [asked(tmp_path, "begin", 2, restart=restart) for restart in (4, 5, 6, 7)] == [0, 0, 0, 7]


def held(run: Path, job: str | None, restart: int, token: str) -> None:
    fields = {"token": token, "job": job, "restart_count": restart, "host": "node1", "pid": 1}
    (run / "lease.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("code", [75, 137, 134, 6, 1, 8])
def test_who_has_lost_the_run_stops_whatever_code_was_the_highest(tmp_path: Path, code: int) -> None:
    checkpoint(tmp_path, 10)
    held(tmp_path, "4", 0, "before")
    assert asked(tmp_path, "begin", 3, restart=1) == 0
    if code != 8:
        # Whoever wrote before has not taken it from this one, nor has this one itself.
        assert asked(tmp_path, "end", 3, code, restart=1) == exit_codes.PREEMPTED
        held(tmp_path, "5", 1, "own")
        assert asked(tmp_path, "end", 3, code, restart=1) == exit_codes.PREEMPTED
    for job, restart in (("6", 0), ("5", 2)):
        held(tmp_path, job, restart, "other")
        assert asked(tmp_path, "end", 3, code, restart=1) == exit_codes.LEASE_LOST


def test_a_half_written_checkpoint_is_no_progress(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    assert asked(tmp_path, "begin", 0) == 0
    (checkpoint(tmp_path, 20) / "manifest.json").unlink()
    assert asked(tmp_path, "end", 0, 75) == exit_codes.NO_PROGRESS
    checkpoint(tmp_path, 30)
    assert asked(tmp_path, "end", 0, 75) == exit_codes.PREEMPTED


def test_a_line_that_was_cut_costs_no_other(tmp_path: Path) -> None:
    assert asked(tmp_path, "begin", 0) == 0
    file = tmp_path / "slurm" / "attempts.jsonl"
    with file.open("a") as stream:
        stream.write('\n{"job": "5", "rest')
    checkpoint(tmp_path, 10)
    assert asked(tmp_path, "begin", 0, restart=1) == 0
    assert json.loads(file.read_text().splitlines()[-1]) == {
        "job": "5", "restart": 1, "iteration": 10, "token": None,
    }  # fmt: skip
    assert asked(tmp_path, "begin", 0, restart=2) == exit_codes.NO_PROGRESS
