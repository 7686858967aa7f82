"""The GPU suite runs whole on a CPU with shapes of nothing, and a section that hangs or fails costs itself alone."""

import gc
import json
import math
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _bench_model, gpu_suite, kernels
from benchmarks._gpu_sections import SECTIONS, Setting
from benchmarks._one_card import planned_bytes
from megatron_synE.model.presets import ARCHITECTURES
from megatron_synE.runtime import device as devices
from tests import tiny

TINY = Setting("cpu", tiny=True)


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def test_the_dry_run_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = tiny.python(
        "-m", "benchmarks.gpu_suite", "--tiny", "--device", "cpu", "--in-process", "--out", out,
        CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(out.read_text())
    assert list(result["sections"]) == list(SECTIONS)
    assert {section["status"] for section in result["sections"].values()} == {"done"}
    assert result["tiny"] is True and result["device"] == "cpu" and result["versions"]["torch"]
    figures = {name: section["figures"] for name, section in result["sections"].items()}
    assert figures["numerics"]["failed"] == []
    assert all(math.isfinite(number) for number in numbers(figures))
    step = figures["step_llama3_2_1b"]["masked"]
    assert step["last_loss"] < step["first_loss"]
    assert step["tokens_per_second"] * step["seconds"] == pytest.approx(64)
    assert "tflops" not in figures["llama3_8b_full"]  # its row is masked
    assert figures["llama3_8b_full"]["last_loss"] < figures["llama3_8b_full"]["first_loss"]
    assert "planned: total" in done.stderr


def test_what_an_8b_on_one_card_takes_by_hand() -> None:
    planned = planned_bytes(ARCHITECTURES["llama3_8b"], seq_length=8192)
    at_rest = sum(planned[name] for name in ("weights", "gradients", "first moments", "second moments"))
    assert at_rest == 8 * 8_030_261_248
    assert planned["rows kept"] == 32 * 8192 * 4096 * 2
    # 8 even chunks of 1,024 tokens (1 << 27 logits are 1,046 rows) in bf16; 261 tokens of one (1 << 25) in fp32.
    assert planned["logits"] == 128256 * (1024 * 2 + 261 * 4)
    assert planned["gradients of the head"] == 2 * 4096 * (128256 + 8192)
    # Of a layer, bf16: two norms' rows, q, k and v and their rotated twins or outputs, five rows as wide as the MLP.
    assert planned["one layer recomputed"] == 8192 * 2 * (2 * 4096 + 3 * 128 * (32 + 8) + 5 * 14336)
    assert planned["total"] == 69_464_204_288


def test_each_section_is_flushed_and_a_bad_one_costs_itself_alone(tmp_path: Path) -> None:
    """Sections stand in for a process that hangs and one that dies; the file is whole after each."""
    out, seen = tmp_path / "results.json", []

    def run(name: str, setting: Setting, limit: float) -> dict[str, Any]:
        if out.exists():
            seen.append(list(json.loads(out.read_text())["sections"]))
        assert limit <= gpu_suite.LIMIT_SECONDS < 600
        return {"kernels": {"status": "timed out"}}.get(name, {"status": "done", "figures": {}})

    result = gpu_suite.suite(["block_stack", "kernels", "ppl_scoring"], TINY, out, limit=1e9, run=run)
    assert seen == [["block_stack"], ["block_stack", "kernels"]]
    assert [section["status"] for section in result["sections"].values()] == ["done", "timed out", "done"]
    assert json.loads(out.read_text()) == result


def test_wrong_numerics_end_the_suite(tmp_path: Path) -> None:
    def run(name: str, setting: Setting, limit: float) -> dict[str, Any]:
        return {"status": "done", "figures": {"failed": ["rms_norm"]}}

    result = gpu_suite.suite(["numerics", "kernels"], TINY, tmp_path / "r.json", limit=1.0, run=run)
    assert list(result["sections"]) == ["numerics"]


def test_a_section_of_its_own_process_is_ended_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    late = gpu_suite.in_own_process("numerics", TINY, 0.2)
    assert late == {"status": "timed out", "limit_seconds": 0.2, "stderr": ""}
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert gpu_suite.in_own_process("numerics", TINY, 20.0) == {"status": "failed", "exit_code": 1, "stderr": ""}


@pytest.mark.parametrize("said", ["", "not json"])
def test_a_section_that_says_no_figures_has_failed(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process ends well: a script stands in that prints something else."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho '{said}'\necho why >&2\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    found = gpu_suite.in_own_process("numerics", TINY, 20.0)
    assert found == {"status": "failed", "exit_code": 0, "stderr": "why\n"}


def test_a_section_of_its_own_process_gives_its_figures() -> None:
    found = gpu_suite.in_own_process("numerics", TINY, 300.0)
    assert found["status"] == "done" and found["figures"]["failed"] == [] and set(found["figures"]["used"]) == {
        "kernels", "attention", "weight gradients"
    }  # fmt: skip


@pytest.mark.parametrize("section", ["block_stack", "step_llama3_2_1b"])
def test_a_model_is_gone_before_the_next_is_built(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else four stacks lie on a card at once, and a step that did not fit fits no better when it is recomputed."""
    weights: list[weakref.ref[torch.Tensor]] = []
    build = _bench_model.trained_model

    def build_and_note(*given: Any) -> _bench_model.TrainedModel:
        assert [reference() for reference in weights] == [None] * len(weights)
        trained = build(*given)
        weights.append(weakref.ref(trained.optimizer.param_groups[0]["params"][0]))
        return trained

    def step(*_: object) -> float:
        raise torch.OutOfMemoryError("as a card says it")

    monkeypatch.setattr(_bench_model, "trained_model", build_and_note)
    monkeypatch.setattr(_bench_model.TrainedModel, "step", step)
    gc.disable()
    try:
        found = SECTIONS[section](TINY)
    finally:
        gc.enable()
    if section == "block_stack":
        assert len(weights) == 4
    else:
        assert list(found) == ["recompute none", "recompute full"] and len(weights) == 2


def test_numerics_find_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_synE.kernels import choice, plain

    wrong = choice.Kernels(lambda x, w, eps: 1.02 * plain.rms_norm(x, w, eps), None, plain.rotate, "wrong")
    monkeypatch.setattr("benchmarks._gpu_numerics.choose_kernels", lambda *_, **__: wrong)
    assert SECTIONS["numerics"](TINY)["failed"] == ["rms_norm", "rms_norm, gradient 0", "rms_norm, gradient 1"]


def test_every_kernel_has_a_figure_beside_the_ceiling() -> None:
    result = kernels.run(tiny=True, device=devices.select("cpu", local_rank=0))
    names = {figure["name"] for figure in result["figures"]}
    assert names >= {"rms_norm", "swiglu and backward", "rotate", "gate and up", "masked attention", "AdamW"}
    # Documents of a quarter of the row: a quarter of the causal square's products.
    flops = {f["name"]: f["rate"] * f["seconds"] for f in result["figures"] if f["by"].startswith("products by blocks")}
    assert flops["masked attention"] == pytest.approx(flops["causal attention"] / 4)
    assert flops["masked attention and backward"] == pytest.approx(3.5 * flops["masked attention"])
    peers = [f["by"] for f in result["figures"] if f["name"] == "causal attention and backward"]
    assert peers == [
        "products by blocks in bf16, torch SDPA in fp32",
        "SDPA flash",
    ]  # cuDNN does not take a CPU's tensors
    for figure in result["figures"]:
        assert figure["of_ceiling"] == pytest.approx(figure["rate"] / result["ceilings"][figure["unit"]])
