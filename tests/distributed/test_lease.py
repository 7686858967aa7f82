"""A copy of a run that was held up while its job was requeued cannot write beside the new one."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_synE.checkpoint import layout
from megatron_synE.exit_codes import LeaseLostError
from megatron_synE.runtime.control import Decision
from megatron_synE.runtime.lease import read_holder, take
from megatron_synE.runtime.run_dir import RunDir
from megatron_synE.trainer import Trainer
from tests import tiny
from tests.distributed.test_resume import assert_same_run


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


def stopped(run: Path) -> int:
    """The process that holds the run, once it has stopped itself."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        holder = read_holder(run) if run.exists() else None
        if holder is not None and Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return holder.pid
        time.sleep(0.02)
    raise AssertionError("it did not stop")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_old_copy_held_up_inside_a_save_is_fenced_off(root: Path, tmp_path: Path, moment: str) -> None:
    run, straight = tmp_path / "run", root / "straight"
    arguments = (Path(__file__).with_name("paused_rank.py"), moment, 6, root / "run.yaml", f"run.dir={run}")
    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(tiny.python, *arguments, SLURM_JOB_ID="77")
        pid = stopped(run)
        try:
            # It holds the folder's lock, and stands before or after the rename of iteration 6.
            assert (run / "checkpoints/iter_0000006").exists() == (moment == "after")
            done = tiny.syne(
                "train", "--config", root / "run.yaml", f"run.dir={run}", SLURM_JOB_ID="77", SLURM_RESTART_COUNT="1"
            )
            assert done.returncode == 0, done.stderr
            assert "it is fenced off" in done.stderr
            assert f"resume from {run / 'checkpoints'}/iter_000000{6 if moment == 'after' else 4}" in done.stderr
            seen = snapshot(run)
        finally:
            os.kill(pid, signal.SIGCONT)
    ended = old.result()
    assert ended.returncode == 8, ended.stderr
    assert "restart 1 of job 77" in ended.stderr and "Traceback" not in ended.stderr
    assert snapshot(run) == seen
    assert not list(run.rglob(".tmp-*"))
    assert_same_run(run, straight)
    kept = [folder.name for folder in layout.complete_checkpoints(run / "checkpoints")]
    assert kept == ["iter_0000008", "iter_0000010"]


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    mine = take(run)
    done = tiny.syne("train", "--config", root / "run.yaml", f"run.dir={run}", SLURM_JOB_ID="78")
    assert done.returncode == 2
    assert f"another run is writing there (process {os.getpid()} on" in done.stderr
    mine.check()
    mine.release()


def test_every_rank_leaves_where_one_has_lost_the_run(tmp_path: Path) -> None:
    """Rank 0 alone looks; the others would wait for it in their next collective."""
    lost = Decision(stop=False, save_failed=False, lease_lost=True)
    other: Any = SimpleNamespace(agreement=SimpleNamespace(result=lambda: lost), run_dir=RunDir(tmp_path))
    with pytest.raises(LeaseLostError, match="another process holds this run now"):
        Trainer._agreed(other)
