"""What TensorBoard and W&B show is what metrics.jsonl says, also over a restart; read back with their own readers."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from megatron_synE.config.schema import LoggingSection
from megatron_synE.metrics import Metrics
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five iterations in two jobs: the first, of two ranks, leaves after three."""
    root = tmp_path_factory.mktemp("trackers")
    config = tiny.prepared(root, logging={"tensorboard": True, "wandb": "offline"})
    tiny.train(config, "training.stop_after_iterations=3", nproc=2, code=75)
    tiny.train(config)
    return root / "run"


def test_tensorboard_holds_the_rows_of_metrics(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("train/lm_loss")}
    assert shown == {row["iteration"]: pytest.approx(row["lm_loss"], rel=1e-6) for row in tiny.rows(run, "train")}
    assert sorted(shown) == [1, 2, 3, 4, 5]
    held_out = {event.step: event.value for event in events.Scalars("validation/zh/web/law@holdout/ppl")}
    rows = [row for row in tiny.rows(run, "validation") if row["set"] == "zh/web/law@holdout"]
    assert held_out == {row["iteration"]: pytest.approx(row["ppl"], rel=1e-6) for row in rows}


def test_wandb_goes_on_under_the_same_id(run: Path) -> None:
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({folder.name.rsplit("-", 1)[1] for folder in folders}) == 1
    shown: dict[int, float] = {}
    for folder in folders:
        for row in history(next(folder.glob("*.wandb"))):
            if "train/lm_loss" in row:
                assert row["_step"] not in shown
                shown[row["_step"]] = row["train/lm_loss"]
    assert shown == {row["iteration"]: pytest.approx(row["lm_loss"]) for row in tiny.rows(run, "train")}


def logged(folder: Path, rows: str) -> list[dict[str, Any]]:
    """What a new W&B run holds after these lines."""
    program = f"""
import sys
from pathlib import Path
from megatron_synE.config.schema import LoggingSection
from megatron_synE.metrics import Metrics
from megatron_synE.runtime.lease import take
root = Path(sys.argv[1])
metrics = Metrics(
    LoggingSection(tensorboard=False, wandb="offline"), path=root / "metrics.jsonl", run_name="tiny", enabled=True,
    wandb_id=None, iteration=4, lease=take(root),
)
{rows}
metrics.close()
"""
    done = tiny.python("-c", program, folder)
    assert done.returncode == 0, done.stderr
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    return [{key: row[key] for key in row if key == "_step" or "/" in key} for row in history(file)]


def test_wandb_hears_of_a_save_that_ends_behind_a_later_step(tmp_path: Path) -> None:
    """It takes nothing for a step before the last one it has."""
    rows = """
metrics.row("train", 5, lm_loss=2.5)
metrics.row("checkpoint", 4, seconds=3.5)
metrics.row("train", 6, lm_loss=1.5)
"""
    assert logged(tmp_path, rows) == [
        {"_step": 5, "train/lm_loss": 2.5, "checkpoint/seconds": 3.5},
        {"_step": 6, "train/lm_loss": 1.5},
    ]


@pytest.mark.parametrize("reached", [6, 7])
def test_wandb_keeps_the_last_step_s_own_values_until_a_run_that_went_back_is_there_again(
    tmp_path: Path, reached: int
) -> None:
    rows = f"""
for iteration in (5, 6, 7):
    metrics.row("train", iteration, lm_loss=float(iteration))
metrics.go_back_to(4, validated=None)
metrics.row("recovery", 4, bad_iteration=8)
for iteration in range(5, {reached + 1}):
    metrics.row("train", iteration, lm_loss=100.0 + iteration)
"""
    last = {"_step": 7, "train/lm_loss": 107.0 if reached == 7 else 7.0, "recovery/bad_iteration": 8}
    assert logged(tmp_path, rows) == [{"_step": 5, "train/lm_loss": 5.0}, {"_step": 6, "train/lm_loss": 6.0}, last]


def test_a_resumed_job_gives_wandb_what_it_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Online it goes on behind its last step, here 7, which a kill may have cut; no server is here to ask."""
    given: list[tuple[int, dict[str, float]]] = []
    there = SimpleNamespace(starting_step=8, log=lambda numbers, step: given.append((step, numbers)))
    monkeypatch.setattr(wandb, "init", lambda **_: there)
    metrics = Metrics(
        LoggingSection(tensorboard=False, wandb="online"), path=tmp_path / "metrics.jsonl", run_name="tiny",
        enabled=True, wandb_id="id", iteration=4,
    )  # fmt: skip
    metrics.row("validation_time", 4, seconds=1.0)  # a stop came before it
    for iteration in range(5, 10):
        metrics.row("train", iteration, lm_loss=float(iteration))
    assert given == [
        (8, {"validation_time/seconds": 1.0}),
        *((step, {"train/lm_loss": loss}) for step, loss in ((8, 7.0), (8, 8.0), (9, 9.0))),
    ]


def history(file: Path) -> list[dict[str, Any]]:
    """What was logged, from W&B's own record file: LevelDB's log format behind a header of 7 bytes."""
    data, found, position, record = file.read_bytes(), [], 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # no record header is split over two blocks
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            parsed = wandb_internal_pb2.Record()
            parsed.ParseFromString(record)
            record = b""
            if parsed.WhichOneof("record_type") == "history":
                row = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in parsed.history.item}
                found.append({"_step": parsed.history.step.num} | row)
    return found


def test_a_checkpoint_holds_the_sums_of_the_last_validation(run: Path) -> None:
    state = json.loads((run / "checkpoints/iter_0000005/state.json").read_text())
    rows = {row["set"]: row for row in tiny.rows(run, "validation") if row["iteration"] == 5}
    assert state["last_validation"].keys() == {"iteration", "sets"} and state["last_validation"]["iteration"] == 5
    for name, found in state["last_validation"]["sets"].items():
        row = rows.pop(name)
        assert (found["nll_sum"] / found["tokens"], found["tokens"]) == (row["nll"], row["tokens"])
    assert not rows


def test_wandb_that_does_not_start_is_said_without_a_traceback(run: Path, tmp_path: Path) -> None:
    done = tiny.syne(
        "train", "--config", run.parent / "run.yaml", f"run.dir={tmp_path / 'run'}", "logging.wandb_project=a/b"
    )
    assert done.returncode == 2, done.stderr
    assert "logging.wandb" in done.stderr
    assert "Traceback" not in done.stderr
