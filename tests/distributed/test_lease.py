"""A copy of a run that was held up while its job was requeued cannot write beside the new one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_synE.checkpoint import layout
from tests import tiny
from tests.distributed.test_resume import assert_same_tensors, training_rows, validation_rows


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten iterations that saves at every second one, and the same undisturbed."""
    root = tmp_path_factory.mktemp("lease")
    tiny.prepared(
        root,
        data={"stages": [{"name": "adapt", "tokens": 10 * 256, "languages": {"zh": 0.2, "en": 0.8}}]},
        checkpoint={"interval_tokens": 512, "keep_last": 2, "async_save": True},
    )
    tiny.train(root / "run.yaml", f"run.dir={root / 'straight'}")
    return root


def snapshot(run: Path) -> dict[str, bytes]:
    """Everything a reader of the run sees."""
    return {
        str(file.relative_to(run)): file.read_bytes()
        for file in run.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_old_copy_held_up_inside_a_save_is_fenced_off(root: Path, tmp_path: Path, moment: str) -> None:
    run, straight = tmp_path / "run", root / "straight"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "77"}
    old = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("paused_rank.py"), moment, "6", root / "run.yaml", f"run.dir={run}"],
        cwd=tiny.ROOT, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        _, status = os.waitpid(old.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        # It holds the folder's lock, and stands before or after the rename of iteration 6.
        assert (run / "checkpoints/iter_0000006").exists() == (moment == "after")
        done = tiny.syne(
            "train", "--config", root / "run.yaml", f"run.dir={run}", SLURM_JOB_ID="77", SLURM_RESTART_COUNT="1"
        )
        assert done.returncode == 0, done.stderr
        assert "it is fenced off" in done.stderr
        assert f"resume from {run / 'checkpoints'}/iter_000000{6 if moment == 'after' else 4}" in done.stderr
        seen = snapshot(run)
        os.kill(old.pid, signal.SIGCONT)
        _, said = old.communicate(timeout=60)
    finally:
        old.kill()
    assert old.returncode == 8, said
    assert "restart 1 of job 77" in said and "Traceback" not in said
    assert snapshot(run) == seen
    assert not list(run.rglob(".tmp-*"))
    assert training_rows(run) == training_rows(straight)
    assert validation_rows(run) == validation_rows(straight)
    assert_same_tensors(run / "checkpoints/iter_0000010", straight / "checkpoints/iter_0000010")
    assert [folder.name for folder in layout.complete_checkpoints(run / "checkpoints")] == [
        "iter_0000008",
        "iter_0000010",
    ]


def test_a_second_run_in_the_folder_is_refused(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    old = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("paused_rank.py"), "after", "2", root / "run.yaml", f"run.dir={run}"],
        cwd=tiny.ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        os.waitpid(old.pid, os.WUNTRACED)
        done = tiny.syne("train", "--config", root / "run.yaml", f"run.dir={run}", SLURM_JOB_ID="78")
        assert done.returncode == 2
        assert f"another run is writing there (process {old.pid} on" in done.stderr
    finally:
        old.kill()
        old.wait()
