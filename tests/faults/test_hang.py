"""A rank that stands still: every rank ends with code 6, and the stacks say where the others waited."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_synE.runtime import watchdog
from megatron_synE.runtime.control import Decision
from megatron_synE.runtime.launch import _free_port
from megatron_synE.stability import Anomaly
from megatron_synE.step_log import StepResult
from megatron_synE.trainer import Trainer
from tests import tiny

SCRIPT = Path(__file__).with_name("stopped_rank.py")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hang")
    tiny.prepared(root, data={"num_workers": 0})
    return root


def test_a_stopped_rank_ends_the_run_with_code_6_and_stacks_of_those_that_wait(root: Path, tmp_path: Path) -> None:
    run, told, port = tmp_path / "run", tmp_path / "told", str(_free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, "3", root / "run.yaml", f"run.dir={run}", "operations.watchdog_seconds=2",
             f"operations.on_event=[tee, -a, {told}]"],
            cwd=tiny.ROOT, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
                              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        _, status = os.waitpid(ranks[1].pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)  # rank 1, inside its fourth step
        _, said = ranks[0].communicate(timeout=240)
        assert ranks[0].returncode == 6, said
        (stacks,) = run.glob("stacks-*")
        assert "after iteration 3" in said and str(stacks) in said and "none from rank 1" in said
        waiting = (stacks / "rank_00000.txt").read_text()
        assert "all_reduce" in waiting or "wait" in waiting
        assert "in train_step" in waiting
        (event,) = map(json.loads, told.read_text().splitlines())
        assert (event["event"], event["run"]) == ("hang", "tiny")
        # The one that stood still finds itself alone when it goes on: the same code, and its own stacks.
        os.kill(ranks[1].pid, signal.SIGCONT)
        ranks[1].communicate(timeout=240)
        assert ranks[1].returncode == 6
        assert "in train_step" in (stacks / "rank_00001.txt").read_text()
    finally:
        for rank in ranks:
            rank.kill()
    assert [row["iteration"] for row in tiny.rows(run, "train")] == [1, 2, 3]


@pytest.mark.slow
def test_the_launcher_ends_with_code_6_too(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny.launched(2, SCRIPT, 1, root / "run.yaml", f"run.dir={run}", "operations.watchdog_seconds=1", code=6)
    assert len(list(run.glob("stacks-*/rank_00000.txt"))) == 1


def test_whoever_writes_a_huge_limit_is_still_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that would end with the clock's OverflowError is the one that hears of other ranks' hangs."""
    ended: list[object] = []
    monkeypatch.setattr(threading, "excepthook", ended.append)
    watched = watchdog.Watchdog(tmp_path / "stacks", rank=0, world_size=1, timeout_seconds=1e30)
    looks = iter([False, True])
    monkeypatch.setattr(watched._over, "wait", lambda seconds: next(looks))
    thread = threading.Thread(target=watched._watch)
    thread.start()
    thread.join()
    assert not ended


def test_the_limit_follows_the_measured_steps(tmp_path: Path) -> None:
    watched = watchdog.Watchdog(tmp_path / "stacks", rank=0, world_size=1, timeout_seconds=None)
    assert watched.limit_seconds == watchdog.PATIENCE_SECONDS  # the first step
    watched.step(1, 1.0)
    assert watched.limit_seconds == 300.0
    for iteration, seconds in enumerate([100.0, 110.0, 120.0, 5000.0], start=2):
        watched.step(iteration, seconds)
    assert watched.limit_seconds == 10 * 110.0  # ten times the median of 1, 100, 110, 120, 5000
    with watched.patient():
        assert watched.limit_seconds == 3600.0
    assert watched.limit_seconds == 1100.0


def test_a_file_system_that_hangs_hides_no_hang() -> None:
    """Whoever asks for the folder of stacks waits for good, as in a call to a server that is away."""
    program = """
import threading
from pathlib import PosixPath
from megatron_synE.runtime.watchdog import Watchdog
class Away(PosixPath):
    def exists(self): threading.Event().wait()
    def mkdir(self, *args, **named): threading.Event().wait()
watched = Watchdog(Away("/away/stacks"), rank=0, world_size=1, timeout_seconds=0.1)
with watched:
    watched.step(1, 0.0)
    threading.Event().wait()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tiny.ROOT, check=False, timeout=60)
    assert done.returncode == 6


def test_a_main_thread_that_keeps_the_interpreters_lock_hides_no_hang() -> None:
    """No Python thread runs then; a call through PyDLL keeps the lock, as native code at fault would."""
    program = """
import ctypes, faulthandler, threading
from pathlib import Path
from megatron_synE.runtime import watchdog
watchdog.BACKSTOP_SECONDS = 0.5
looked, arm = threading.Event(), faulthandler.dump_traceback_later
faulthandler.dump_traceback_later = lambda *given, **named: (arm(*given, **named), looked.set())
watched = watchdog.Watchdog(Path("/nowhere/stacks"), rank=0, world_size=1, timeout_seconds=2.0)
watched.step(1, 0.0)
with watched:
    looked.wait()  # the watching thread looks every 0.2 s: long before it would end the run itself
    ctypes.PyDLL(None).sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tiny.ROOT, capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr and 'File "<string>"' in done.stderr


def test_a_hang_ends_also_where_no_stacks_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    program = """
import sys, threading
from pathlib import Path
from megatron_synE.runtime.watchdog import Watchdog
watched = Watchdog(Path(sys.argv[1]), rank=0, world_size=1, timeout_seconds=0.1)
with watched:
    watched.step(1, 0.0)
    threading.Event().wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file/stacks")],
        cwd=tiny.ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 6
    assert "stacks cannot be written" in done.stderr and "File " in done.stderr


def test_a_step_that_is_left_out_is_a_sign_of_life(tmp_path: Path) -> None:
    """Else two steps in a row would have to fit into the time of one."""
    bad = StepResult(lm_loss=float("nan"), tokens=1, grad_norm=1.0, anomaly=Anomaly("nan", float("nan"), 1.0, None))
    watched = watchdog.Watchdog(tmp_path / "stacks", rank=0, world_size=1, timeout_seconds=None)
    began = watched._last
    run: Any = SimpleNamespace(
        _begin_agreement=lambda: None, train_step=lambda samples: bad, _agreed=lambda: "decision",
        _recover=lambda anomaly: None, watchdog=watched,
    )  # fmt: skip
    assert Trainer.iterate(run, iter(())) == "decision"
    assert watched._last > began


def test_each_part_of_a_validation_is_a_sign_of_life_and_hears_of_a_stop(tmp_path: Path) -> None:
    """Else all of it would have to fit into the time of ten steps, or into the grace before a kill."""
    watched = watchdog.Watchdog(tmp_path / "stacks", rank=0, world_size=1, timeout_seconds=None)
    began = watched._last
    for stop in (False, True):
        agreed = Decision(stop=stop, save_failed=False, lease_lost=False)
        run: Any = SimpleNamespace(
            _begin_agreement=lambda: None, _agreed=lambda agreed=agreed: agreed, watchdog=watched
        )
        assert Trainer._stop_is_agreed(run) is stop
    assert watched._last > began
