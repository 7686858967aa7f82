"""A run that was stopped, killed or moved to another layout is the run that was not."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_synE.checkpoint.chunk_reader import ChunkReader
from tests import tiny
from tests.layouts import CP2, OVERLAP, PP2, TP2, TP2_SP, VPP, ZERO2, ZERO3

KILLED = Path(__file__).with_name("killed_run.py")
COMPARED = ("iteration", "consumed_samples", "consumed_tokens", "lm_loss", "loss_tokens", "grad_norm", "learning_rate")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and data for a run of ten iterations that saves at every second one."""
    root = tmp_path_factory.mktemp("resume")
    tiny.prepared(
        root,
        data={"stages": [{"name": "adapt", "tokens": 10 * 256, "languages": {"zh": 0.2, "en": 0.8}}]},
        checkpoint={"interval_tokens": 512, "keep_last": None, "async_save": True},
        validation={"manifests": [str(root / "held")], "interval_tokens": 512},
    )
    return root


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, put together from its rectangles."""
    reader = ChunkReader(checkpoint)
    return {key: reader.read(key, (0,) * len(reader.shape(key)), reader.shape(key)) for key in reader.keys}


def assert_same_tensors(left: Path, right: Path) -> None:
    found, expected = tensors(left), tensors(right)
    assert found.keys() == expected.keys()
    assert any(key.startswith("optimizer.exp_avg_sq.") for key in found)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def training_rows(run: Path) -> list[dict[str, Any]]:
    return [{key: row[key] for key in COMPARED} for row in tiny.rows(run, "train")]


def validation_rows(run: Path) -> list[tuple[int, str, float]]:
    return [(row["iteration"], row["set"], row["nll"]) for row in tiny.rows(run, "validation")]


def assert_same_run(found: Path, expected: Path) -> None:
    """Every iteration, every validation, and every tensor of the last checkpoint."""
    assert training_rows(found) == training_rows(expected)
    assert validation_rows(found) == validation_rows(expected)
    last = f"checkpoints/iter_{training_rows(expected)[-1]['iteration']:07d}"
    assert_same_tensors(found / last, expected / last)


@pytest.mark.parametrize(
    ("nproc", "overrides"),
    [
        (2, [*CP2, "training.precision=bf16"]),
        (2, ["training.precision=bf16", *OVERLAP]),
        (2, ["training.precision=bf16", *ZERO2, "training.micro_batch_size=1"]),
        (2, [*ZERO3, *OVERLAP]),
        (2, [*TP2_SP, "training.precision=bf16"]),
        (2, VPP),
    ],
    ids=["CP2 bf16", "DP2 bf16 overlapped", "DP2 ZeRO2 bf16", "DP2 ZeRO3 overlapped", "TP2 SP bf16", "VPP"],
)
def test_stopping_and_resuming_is_bit_equal_to_a_straight_run(
    root: Path, tmp_path: Path, nproc: int, overrides: list[str]
) -> None:
    straight, sliced = tmp_path / "straight", tmp_path / "sliced"
    tiny.train(root / "run.yaml", f"run.dir={straight}", *overrides, nproc=nproc)
    # Five iterations: between two saves and between two validations.
    tiny.train(
        root / "run.yaml", f"run.dir={sliced}", "training.stop_after_iterations=5", *overrides, nproc=nproc, code=75
    )
    tiny.train(root / "run.yaml", f"run.dir={sliced}", *overrides, nproc=nproc)
    assert_same_run(sliced, straight)


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_step_resumes_bit_equal(root: Path, tmp_path: Path, stage: int) -> None:
    straight, killed, sharding = tmp_path / "straight", tmp_path / "killed", f"parallel.zero_stage={stage}"
    tiny.train(root / "run.yaml", f"run.dir={straight}", sharding, nproc=2)
    iterations = sorted(random.sample(range(1, 9), 2))
    print(f"killed after iterations {iterations}")
    for iteration in iterations:
        tiny.launched(2, KILLED, iteration, root / "run.yaml", f"run.dir={killed}", sharding, code=-signal.SIGKILL)
    tiny.train(root / "run.yaml", f"run.dir={killed}", sharding, nproc=2)
    assert_same_run(killed, straight)


def test_term_saves_and_asks_for_a_requeue(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    endless = ("checkpoint.interval_tokens=null", "data.stages.0.tokens=200000", "data.max_epochs=100")
    for number, code in ((signal.SIGTERM, 75), (signal.SIGUSR1, 75)):
        seen = num_rows(run)
        command = ("train", "--config", root / "run.yaml", "--nproc", 2, f"run.dir={run}", *endless)
        with tiny.started(*command) as launcher:
            while num_rows(run) <= seen:
                assert launcher.poll() is None
                time.sleep(0.02)
            os.kill(launcher.pid, number)
            assert launcher.wait(timeout=240) == code
        last = tiny.rows(run, "train")[-1]["iteration"]
        assert (run / "checkpoints" / f"iter_{last:07d}" / "manifest.json").exists()
        assert last > seen


def num_rows(run: Path) -> int:
    """Training rows so far; the last may be half written."""
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('{"kind": "train"') if metrics.exists() else 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_another_layout_loads_the_same_weights_and_moments_and_goes_on_alike(
    root: Path, tmp_path: Path, precision: str
) -> None:
    """TP2 SP writes at iteration 4; every layout reads it, writes it again unchanged, and runs five more steps."""
    source = tmp_path / "source"
    same = f"training.precision={precision}"
    tiny.train(
        root / "run.yaml", f"run.dir={source}", "training.stop_after_iterations=4", same, *TP2_SP, nproc=2, code=75
    )
    expected = None
    layouts: dict[str, tuple[int, list[str]]] = {
        "DP2": (2, []),
        "DP2 ZeRO3": (2, ZERO3),
        "VPP": (2, VPP),
    }
    if precision == "fp32":
        layouts |= {
            "TP2": (2, TP2_SP),
            "TP1": (1, []),
            "CP2": (2, CP2),
        }
    for name, (nproc, overrides) in layouts.items():
        run = tmp_path / name
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints/iter_0000004").symlink_to(source / "checkpoints/iter_0000004")
        rewritten = tmp_path / f"{name}-rewritten"
        script = Path(__file__).with_name("rewrite_checkpoint.py")
        tiny.launched(nproc, script, root / "run.yaml", rewritten, f"run.dir={run}", same, *overrides)
        assert_same_tensors(rewritten, source / "checkpoints/iter_0000004")
        tiny.train(
            root / "run.yaml",
            f"run.dir={run}",
            same,
            "training.stop_after_iterations=5",
            *overrides,
            nproc=nproc,
            code=75,
        )
        found = [row["lm_loss"] for row in tiny.rows(run, "train")]
        weights = tensors(run / "checkpoints/iter_0000009")
        if expected is None:
            expected = (found, weights)
        tolerance = 1e-5 if precision == "fp32" else 2e-3  # bf16 rounds products of TP shards before they are summed
        assert found == pytest.approx(expected[0], abs=tolerance)
        for key, value in expected[1].items():
            if not key.startswith("optimizer.exp_avg") and precision == "fp32":
                # 1e-4 as in tests/parity: Adam on gradients near zero.
                assert (weights[key] - value).abs().max() <= 1e-4, key


@pytest.mark.parametrize(
    ("nproc", "overrides", "changes"),
    [
        (2, [], {}),
        (4, [*TP2, *PP2], {"tie_word_embeddings": True, "vocab_size": 257}),
    ],
    ids=["DP2", "TP2 PP2 tied, padded vocabulary"],
)
def test_a_weights_only_start_keeps_every_weight_through_a_step_at_rate_zero(
    root: Path, tmp_path: Path, nproc: int, overrides: list[str], changes: dict[str, Any]
) -> None:
    """bf16 weights, fp32 masters: a master left at its random start would be written back by the first step."""
    tiny.hf_folder(tmp_path / "hf", dtype=torch.bfloat16, **changes)
    run = tmp_path / "run"
    first_step = ["training.precision=bf16", "lr_schedule.start_lr=0", "lr_schedule.warmup_tokens=1024"]
    first_step += ["training.stop_after_iterations=1"]
    tiny.train(
        root / "run.yaml", f"run.dir={run}", f"init.path={tmp_path / 'hf'}", *first_step, *overrides,
        nproc=nproc, code=75,
    )  # fmt: skip
    done = tiny.syne("verify", "--hf", tmp_path / "hf", "--checkpoint", run)
    assert done.returncode == 0, done.stderr
    stored = tensors(run / "checkpoints/iter_0000001")
    for key in [key for key in stored if key.startswith("optimizer.master.")]:
        assert torch.equal(stored[key].bfloat16(), stored[key.removeprefix("optimizer.master.")]), key
    weights_only = tmp_path / "weights-only"
    tiny.train(
        root / "run.yaml", f"run.dir={weights_only}", "init.from=checkpoint", f"init.path={run}", *first_step,
        nproc=1, code=75,
    )  # fmt: skip
    assert tiny.syne("verify", "--hf", tmp_path / "hf", "--checkpoint", weights_only).returncode == 0


def test_a_branch_goes_on_with_moments_tokens_and_rate(root: Path, tmp_path: Path) -> None:
    parent, branch = tmp_path / "parent", tmp_path / "branch"
    tiny.train(root / "run.yaml", f"run.dir={parent}", "training.stop_after_iterations=4", nproc=2, code=75)
    tiny.train(
        root / "run.yaml", f"run.dir={branch}", "init.from=checkpoint", f"init.path={parent}", "init.mode=branch",
        "data.stages.0.tokens=768", "lr_schedule.decay_tokens=512", "lr_schedule.decay_style=linear",
    )  # fmt: skip
    found = tiny.rows(branch, "train")
    assert [row["consumed_tokens"] for row in found] == [1280, 1536, 1792]
    # 4 iterations of 256 tokens came before; 768 more make 1792; the decay is its last 512, by hand:
    assert [row["learning_rate"] for row in found] == pytest.approx([1e-3, 1e-3, 5e-4])
    state = json.loads((branch / "checkpoints/iter_0000003/state.json").read_text())
    assert state["adam_step"] == 7
