"""Unattended: who is slow, whom to tell, how much of the time counted, and when to stop trying."""

import json
import sys
from itertools import accumulate
from pathlib import Path

import pytest

from megatron_synE import attempts
from megatron_synE.exit_codes import NoProgressError
from megatron_synE.runtime.run_dir import RunDir
from tests import tiny
from tests.faults.test_stability import run_poisoned

TELL = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("operations")
    tiny.prepared(root)
    return root


def telling(file: Path, *, command: str = TELL) -> str:
    return f"operations.on_event={json.dumps([sys.executable, '-c', command, str(file)])}"


def events(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("why", ["slow", "late"])
def test_a_slow_rank_is_named(root: Path, tmp_path: Path, why: str) -> None:
    """Twenty forward passes beside one whole step; or what it reads comes late."""
    run, told = tmp_path / "run", tmp_path / "told"
    said = run_poisoned(root, run, why, telling(told), "data.stages.0.tokens=3072", "data.max_epochs=9")
    (row,) = tiny.rows(run, "ranks")  # of twelve steps, after the tenth
    assert (row["iteration"], row["slow_ranks"]) == (10, [1]), row
    assert "rank 1 is slow" in said and "rank 0 is slow" not in said
    assert [event["event"] for event in events(told)] == ["straggler", "finish"]


def test_the_command_hears_what_happens_and_cannot_harm(root: Path, tmp_path: Path) -> None:
    run, told = tmp_path / "run", tmp_path / "told"
    slice_of_two = "training.stop_after_iterations=2"
    tiny.train(root / "run.yaml", f"run.dir={run}", slice_of_two, telling(told), nproc=2, code=75)
    run_poisoned(root, run, "nan:25", telling(told), "stability.on_nan=skip")  # in iteration 4
    requeue, nan, finish = events(told)
    assert requeue == {"event": "requeue", "run": "tiny", "run_dir": str(run), "iteration": 2, "exit_code": 75}
    assert (nan["event"], nan["iteration"], nan["action"], nan["lm_loss"]) == ("nan", 4, "skip", "nan")
    assert (finish["event"], finish["iteration"], finish["exit_code"]) == ("finish", 5, 0)
    failing = f"operations.on_event={json.dumps([sys.executable, '-c', 'raise SystemExit(9)'])}"
    done = tiny.train(root / "run.yaml", f"run.dir={tmp_path / 'other'}", failing)
    assert "ended with 9 for event finish" in done.stderr
    absent = tiny.syne("train", "--config", root / "run.yaml", "operations.on_event=[no-such-program]")
    assert (absent.returncode, "no-such-program" in absent.stderr) == (2, True)


@pytest.mark.parametrize("nproc", [1, 2])
def test_the_command_hears_of_the_nan_that_ends_the_run(root: Path, tmp_path: Path, nproc: int) -> None:
    told, slowly = tmp_path / "told", f"import time; time.sleep(1); {TELL}"  # else it may come before the run's end
    run_poisoned(root, tmp_path / "run", "nan:25", telling(told, command=slowly), nproc=nproc, code=5)
    (nan,) = events(told)
    assert (nan["event"], nan["iteration"], nan["action"]) == ("nan", 4, "stop")


def test_goodput_counts_the_steps_that_are_kept_over_all_starts(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny.train(root / "run.yaml", f"run.dir={run}", "training.stop_after_iterations=2", code=75)
    done = tiny.train(root / "run.yaml", f"run.dir={run}")
    rows = tiny.rows(run, "train")
    for index, row in enumerate(rows):
        assert row["productive_seconds"] == pytest.approx(sum(r["step_seconds"] for r in rows[: index + 1]))
    spans = [a["last_seen"] - a["began"] for a in json.loads((run / "attempts.json").read_text())["attempts"]]
    assert len(spans) == 2
    share = rows[-1]["productive_seconds"] / sum(spans)
    assert f"goodput: {100 * share:.1f} %" in done.stderr
    assert rows[-1]["goodput"] >= share  # the last save comes after it


def test_a_row_s_times_are_means_over_the_steps_since_the_last(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = tiny.train(root / "run.yaml", f"run.dir={run}", "logging.interval_iterations=2")
    rows = tiny.rows(run, "train")
    assert [row["iteration"] for row in rows] == [2, 4, 5]
    seconds = [n * row["step_seconds"] for n, row in zip((2, 2, 1), rows, strict=True)]
    assert [row["productive_seconds"] for row in rows] == pytest.approx(list(accumulate(seconds)))
    tokens = rows[0]["consumed_tokens"] / 2
    assert [row["tokens_per_second"] * row["step_seconds"] for row in rows] == pytest.approx([tokens] * 3)
    assert f"elapsed time per iteration (ms): {rows[0]['step_seconds'] * 1000:.1f}" in done.stderr


def test_the_rate_of_a_row_is_that_of_one_device(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny.train(root / "run.yaml", f"run.dir={run}", "training.stop_after_iterations=1", nproc=2, code=75)
    (row,) = tiny.rows(run, "train")
    weights = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 112) + 64 * 256  # q and o, k and v, MLP; output layer
    attention = 4 * (16 * 64 * 2) * 2  # a token attends to 16 others on average
    flops = 3 * (2 * weights + attention)
    assert row["tflops_per_device"] == pytest.approx(flops * row["tokens_per_second"] / 2 / 1e12)


def test_a_run_that_gets_no_further_stops_with_code_7(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stuck = ("nan:19", "operations.restart_budget=2")  # in iteration 3, with the default to stop
    tiny.train(
        root / "run.yaml", f"run.dir={run}", "training.stop_after_iterations=2", "operations.restart_budget=2", code=75
    )
    for _ in range(3):
        run_poisoned(root, run, *stuck, code=5)
    said = run_poisoned(root, run, *stuck, code=7)
    assert "restarted 2 times at iteration 2 without getting further" in said and "restart_budget=2" in said
    # Who changes something has another try; and one that gets further counts anew.
    run_poisoned(root, run, *stuck, "optimizer.lr=5e-4", code=5)
    tiny.train(root / "run.yaml", f"run.dir={run}", "operations.restart_budget=2")
    for _ in range(4):  # a finished run may be started as often as one likes
        tiny.train(root / "run.yaml", f"run.dir={run}", "operations.restart_budget=2")


def test_who_submits_again_has_another_try_and_slurm_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunDir(tmp_path)
    folder.create()
    folder.take(takeover=False)

    def start(job: str) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        attempts.begin(folder, first_iteration=4, is_finished=False, config_digest="a", restart_budget=2)

    for _ in range(3):
        start("7")
    with pytest.raises(NoProgressError, match="restarted 2 times at iteration 4"):
        start("7")
    for _ in range(3):
        start("8")
    with pytest.raises(NoProgressError):
        start("8")


def test_a_damaged_record_of_starts_is_said(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / attempts.ATTEMPTS).write_text('{"attempts": [{"began": 1}]}')
    done = tiny.syne("train", "--config", root / "run.yaml", f"run.dir={run}")
    assert done.returncode == 2
    assert "attempts.json" in done.stderr and "remove it" in done.stderr
