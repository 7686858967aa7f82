"""A loss that leaves the path: what is left out is in the schedule, and the run is the one that never had it."""

import json
import math
import statistics
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule, read_schedule
from megatron_synE.checkpoint import layout
from megatron_synE.config.schema import StabilitySection
from megatron_synE.exit_codes import DivergedError
from megatron_synE.stability import Anomaly, Remedy, Stability, find_anomaly
from tests import tiny
from tests.distributed.test_resume import assert_same_run, training_rows
from tests.layouts import PP2, ZERO3

SCRIPT = Path(__file__).with_name("poisoned_run.py")
BATCH = 8
SAVING = ["checkpoint.interval_tokens=256", "checkpoint.keep_last=null", "checkpoint.async_save=true"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten iterations in two stages; the bad sample of most tests is number 43, in iteration 6."""
    root = tmp_path_factory.mktemp("stability")
    stages = [
        {"name": "one", "tokens": 9 * 256, "languages": {"zh": 0.2, "en": 0.8}},
        {"name": "two", "tokens": 256, "languages": {"zh": 0.6, "en": 0.4}},
    ]
    tiny.prepared(root, data={"stages": stages})
    return root


def run_poisoned(root: Path, run: Path, what: str, *overrides: str, nproc: int = 2, code: int = 0) -> str:
    done = tiny.python("-c", tiny.LAUNCH, nproc, SCRIPT, what, root / "run.yaml", f"run.dir={run}", *overrides)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr
    return done.stderr


def left_out_from_the_start(root: Path, run: Path, ranges: list[str], *overrides: str) -> None:
    tiny.train(root / "run.yaml", f"run.dir={run}", f"data.skip_samples={json.dumps(ranges)}", *overrides, nproc=2)


def addresses(schedule: Schedule, start: int, stop: int) -> list[Any]:
    return [Sampler(schedule).address(sample) for sample in range(start, stop)]


def assert_same_run_and_data(run: Path, other: Path) -> None:
    assert read_schedule(run) == read_schedule(other)
    assert_same_run(run, other)


@pytest.mark.parametrize("overrides", [[], pytest.param(PP2, marks=pytest.mark.slow)], ids=["DP2", "PP2"])
def test_a_batch_that_gives_nan_is_left_out_and_the_run_is_the_one_that_never_had_it(
    root: Path, tmp_path: Path, overrides: list[str]
) -> None:
    run, without = tmp_path / "run", tmp_path / "without"
    said = run_poisoned(root, run, "nan:43", "stability.on_nan=skip", *overrides)
    assert said.count("the loss is nan") == 1 and "samples 40 to 47 is left out" in said
    left_out_from_the_start(root, without, ["40:48"], *overrides)
    assert_same_run_and_data(run, without)
    # By the laws of the schedule itself: what is read is the plan with a hole, and counts stay whole.
    plan, followed = Schedule.from_json(read_schedule(without).to_json()), read_schedule(run)
    unskipped = Schedule(seed=plan.seed, seq_length=plan.seq_length, sources=plan.sources, phases=plan.phases)
    assert addresses(followed, 0, 40) == addresses(unskipped, 0, 40)
    assert addresses(followed, 40, 64) == addresses(unskipped, 48, 72)
    assert [row["consumed_samples"] for row in tiny.rows(run, "train")] == [BATCH * i for i in range(1, 11)]
    (row,) = tiny.rows(run, "recovery")
    assert (row["bad_iteration"], row["start_sample"], row["stop_sample"], row["lm_loss"]) == (6, 40, 48, "nan")


def test_a_stop_after_the_recovery_resumes_to_the_same_run(root: Path, tmp_path: Path) -> None:
    run, without = tmp_path / "run", tmp_path / "without"
    run_poisoned(root, run, "nan:43", "stability.on_nan=skip", "training.stop_after_iterations=7", code=75)
    tiny.train(root / "run.yaml", f"run.dir={run}", "stability.on_nan=skip", nproc=2)
    left_out_from_the_start(root, without, ["40:48"])
    assert_same_run_and_data(run, without)


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_a_stop_in_the_step_that_is_left_out_does_not_bring_it_back(root: Path, tmp_path: Path, action: str) -> None:
    """The iteration it leaves with is saved already, without what was left out."""
    run, without = tmp_path / "run", tmp_path / "without"
    mend = [*SAVING, f"stability.on_nan={action}", "stability.rollback_steps=1"]
    said = run_poisoned(root, run, "stopped-nan:43", *mend, code=75)
    assert said.count("the loss is nan") == 1
    tiny.train(root / "run.yaml", f"run.dir={run}", *mend, nproc=2)
    left_out_from_the_start(root, without, ["40:48"])
    assert_same_run_and_data(run, without)


def test_a_spike_goes_back_to_a_checkpoint_and_leaves_out_what_came_before_it(root: Path, tmp_path: Path) -> None:
    run, without = tmp_path / "run", tmp_path / "without"
    spike = ["stability.on_spike=rollback", "stability.spike_window=4", "stability.spike_sigma=6",
             "stability.rollback_steps=3"]  # fmt: skip
    said = run_poisoned(root, run, "spike:43", *SAVING, *spike)
    assert "at iteration 6: back at iteration 3, the data of samples 24 to 47 is left out" in said
    left_out_from_the_start(root, without, ["24:48"])
    assert_same_run_and_data(run, without)
    # What the run left is nowhere: not in metrics, not among the checkpoints, not in a resumed run.
    rows = tiny.rows(run, "train")
    assert [row["iteration"] for row in rows] == list(range(1, 11))
    kept = accumulate(row["step_seconds"] for row in rows)
    assert [row["productive_seconds"] for row in rows] == pytest.approx(list(kept))
    saved = [row["iteration"] for row in tiny.rows(run, "checkpoint")]
    assert saved == [1, 2, 3, *range(3, 11)]  # 3 again, now that it knows what is left out
    states = [layout.read_state(folder) for folder in layout.complete_checkpoints(run / "checkpoints")]
    assert [state.iteration for state in states] == list(range(1, 11))
    for state in states[3:]:
        assert state.schedule is not None and state.schedule["mixture"]["bad_ranges"] == [[24, 48]]


def test_what_was_left_out_stays_out_when_the_run_goes_back_behind_it(root: Path, tmp_path: Path) -> None:
    """Sample 51 comes in place of the first bad one; leaving it out reaches back before what is left out already."""
    run, without = tmp_path / "run", tmp_path / "without"
    said = run_poisoned(root, run, "nan:43,51", *SAVING, "stability.on_nan=rollback", "stability.rollback_steps=3")
    assert "back at iteration 3, the data of samples 24 to 47 is left out" in said
    assert "at iteration 4: back at iteration 1, the data of samples 24 to 31 is left out" in said
    assert said.count("the loss is nan") == 2
    left_out_from_the_start(root, without, ["24:48", "24:32"])
    assert_same_run_and_data(run, without)
    followed = read_schedule(run)
    unskipped = Schedule(
        seed=followed.seed, seq_length=followed.seq_length, sources=followed.sources, phases=followed.phases
    )
    assert addresses(followed, 0, 24) == addresses(unskipped, 0, 24)
    assert addresses(followed, 24, 40) == addresses(unskipped, 56, 72)


def test_a_weight_that_became_nan_on_one_rank_is_healed_by_going_back(root: Path, tmp_path: Path) -> None:
    run, without = tmp_path / "run", tmp_path / "without"
    # A skip cannot help here, and ends after as many tries as it may.
    said = run_poisoned(root, tmp_path / "skips", "weight:5", "stability.on_nan=skip", code=5)
    assert "after 3 recoveries in a row" in said and "at iteration 6" in said
    run_poisoned(root, run, "weight:5", *SAVING, "stability.on_nan=rollback", "stability.rollback_steps=1")
    left_out_from_the_start(root, without, ["40:48"])
    assert_same_run_and_data(run, without)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_part_that_became_nan_is_healed_under_zero_3(root: Path, tmp_path: Path, precision: str) -> None:
    """Nobody else has this part: in fp32 it is weight and master in one, and the other rank gets it by gathering."""
    run, without = tmp_path / "run", tmp_path / "without"
    sharded = [*ZERO3, "parallel.overlap_param_gather=true", f"training.precision={precision}"]
    back = ["stability.on_nan=rollback", "stability.rollback_steps=1"]
    said = run_poisoned(root, run, "weight:5", *SAVING, *back, *sharded)
    assert "the loss is nan" in said and "back at iteration 5, the data of samples 40 to 47 is left out" in said
    left_out_from_the_start(root, without, ["40:48"], *sharded)
    assert_same_run_and_data(run, without)


def test_nothing_to_go_back_to_is_said(root: Path, tmp_path: Path) -> None:
    said = run_poisoned(
        root, tmp_path / "run", "nan:3", *SAVING, "stability.on_nan=rollback", "stability.rollback_steps=1", code=5
    )
    assert "holds no checkpoint before iteration 1 to go back to" in said


def test_stop_is_the_default_for_nan(root: Path, tmp_path: Path) -> None:
    said = run_poisoned(root, tmp_path / "run", "nan:43", code=5)
    assert "the weights are untouched" in said
    assert [row["iteration"] for row in tiny.rows(tmp_path / "run", "train")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("what", "nproc", "code"), [("late-nan", 1, 5), ("late-nan", 2, 5), ("late-data", 2, 3)])
def test_what_is_being_saved_when_a_run_must_end_becomes_a_checkpoint(
    root: Path, tmp_path: Path, what: str, nproc: int, code: int
) -> None:
    """Iteration 5 is saved in the background, which takes longer than the step that ends the run."""
    saving = ["checkpoint.interval_tokens=1280", "checkpoint.async_save=true"]
    run_poisoned(root, tmp_path / "run", f"{what}:43", *saving, nproc=nproc, code=code)
    assert [folder.name for folder in layout.complete_checkpoints(tmp_path / "run/checkpoints")] == ["iter_0000005"]


def test_a_save_that_fails_when_the_run_must_end_is_said_before_why_it_ends(root: Path, tmp_path: Path) -> None:
    saving = ["checkpoint.interval_tokens=1280", "checkpoint.async_save=true"]
    said = run_poisoned(root, tmp_path / "run", "late-full:43", *saving, code=5)
    assert said.count("No space left on device") == 1 and said.count("error: ") == 1
    assert said.index("iter_0000005: not written; ") < said.index("error: the loss is nan")


def test_a_step_computed_again_tells_hardware_from_data(root: Path, tmp_path: Path) -> None:
    again = ["stability.on_spike=stop", "stability.spike_window=4", "stability.reexecute=true"]
    plain = tmp_path / "plain"
    tiny.train(root / "run.yaml", f"run.dir={plain}", nproc=2)
    said = run_poisoned(root, tmp_path / "flip", "flip:5", *again)
    assert "another loss when it was computed again on rank 1" in said and "fault of the hardware" in said
    assert training_rows(tmp_path / "flip") == training_rows(plain)  # the second computation counts, and was right
    said = run_poisoned(root, tmp_path / "data", "spike:43", *again, code=5)
    assert "hardware" not in said and "at iteration 6" in said


def test_a_rollback_without_old_enough_checkpoints_is_refused_before_the_run(root: Path, tmp_path: Path) -> None:
    arguments = ("train", "--config", root / "run.yaml", f"run.dir={tmp_path / 'run'}", "stability.on_nan=rollback")
    done = tiny.syne(*arguments)
    assert done.returncode == 2
    assert "stability.on_nan: rollback needs checkpoints" in done.stderr
    done = tiny.syne(*arguments, "checkpoint.interval_tokens=512", "checkpoint.keep_last=2")
    # 100 steps back with one checkpoint every 2 iterations: 50 of them beside the newest.
    assert "stability.rollback_steps" in done.stderr and "checkpoint.keep_last=51" in done.stderr


# The decision alone


def section(**changes: Any) -> StabilitySection:
    return StabilitySection(on_spike="skip", spike_window=4, spike_sigma=2.0, **changes)


def test_a_spike_is_beyond_mean_and_deviation_of_the_window() -> None:
    recent = (2.0, 2.2, 1.8, 2.0)
    bound = 2.0 + 2.0 * statistics.stdev(recent)
    assert find_anomaly(section(), recent, lm_loss=bound - 1e-9, grad_norm=1.0) is None
    found = find_anomaly(section(), recent, lm_loss=bound + 1e-9, grad_norm=1.0)
    assert found is not None and found.kind == "spike"
    assert find_anomaly(section(), recent[1:], lm_loss=100.0, grad_norm=1.0) is None  # too few to compare with
    assert find_anomaly(section(), (2.0,) * 4, lm_loss=2.0, grad_norm=1.0) is None  # what stands still is no spike
    for loss, norm in ((math.nan, 1.0), (2.0, math.inf)):
        found = find_anomaly(section(), (), lm_loss=loss, grad_norm=norm)
        assert found is not None and found.kind == "nan"


def test_what_is_told_of_an_anomaly_is_json_with_words_for_what_is_no_number() -> None:
    told = {
        Anomaly(
            "nan", math.nan, math.inf, None
        ): '{"anomaly": "nan", "lm_loss": "nan", "grad_norm": "inf", "bound": null}',
        Anomaly("spike", 3.5, 1.5, 2.5): '{"anomaly": "spike", "lm_loss": 3.5, "grad_norm": 1.5, "bound": 2.5}',
    }
    for anomaly, text in told.items():
        assert json.dumps(anomaly.facts(), allow_nan=False) == text


def test_the_window_begins_anew_with_a_stage_and_forgets_what_is_old() -> None:
    stability = Stability(section())
    assert stability.losses_after((1.0, 2.0, 3.0, 4.0), 5.0, ends_stage=False) == (2.0, 3.0, 4.0, 5.0)
    assert stability.losses_after((1.0, 2.0), 5.0, ends_stage=True) == ()


def test_recoveries_are_counted_until_a_good_step_beyond_them() -> None:
    stability = Stability(StabilitySection(on_nan="rollback", rollback_steps=3, max_recoveries=2))
    bad = find_anomaly(stability.section, (), lm_loss=math.nan, grad_norm=1.0)
    assert bad is not None
    assert stability.remedy(bad, iteration=10) == Remedy("rollback", 8, 10)
    for iteration in (8, 9):
        stability.good(iteration)  # the way back to where it was bad
    stability.remedy(bad, iteration=10)
    stability.good(9)
    with pytest.raises(DivergedError, match="after 2 recoveries in a row"):
        stability.remedy(bad, iteration=10)
    stability.good(10)
    stability.remedy(bad, iteration=11)


def test_a_held_out_loss_too_large_for_a_ppl_ends_the_run_as_diverged(tmp_path: Path) -> None:
    """Finite, but exp of it is not: logits a hundred thousand times as large as they should be."""
    tiny.prepared(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    model.save_pretrained(tmp_path / "hf")
    done = tiny.train(tmp_path / "run.yaml", code=5)
    assert (
        "is above 700 nats per token, or none, at iteration 0; lower optimizer.lr" in done.stderr
        and "Traceback" not in done.stderr
    )
