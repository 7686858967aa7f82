"""Which kernels and layers are chosen, and what is refused with its cure."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from data_mixers.errors import ConfigError
from megatron_synE.build import transformer_config
from megatron_synE.config.derive import derive
from megatron_synE.config.schema import DataSection, RunConfig, RunSection, StageSection, TrainingSection
from megatron_synE.kernels import cpu_layers
from megatron_synE.kernels.choice import CPU as BY_ROWS
from megatron_synE.kernels.choice import PLAIN, can_compile, choose_kernels
from megatron_synE.kernels.float8 import cpu_scales_rows
from megatron_synE.model.layer_spec import choose
from megatron_synE.model.presets import ARCHITECTURES
from megatron_synE.runtime.device import Device

CPU = Device("cpu", torch.device("cpu"), "gloo", "cpu")


class Ampere(Device):
    """A card before FP8."""

    @property
    def has_fp8(self) -> bool:
        return False


A100 = Ampere("cuda", torch.device("cpu"), "nccl", "NVIDIA A100")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing optional is installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.usefixtures("bare")
def test_without_triton_torch_computes_everything() -> None:
    assert choose_kernels("auto", is_cuda=True) is PLAIN
    with pytest.raises(ConfigError, match=r"model.kernels=triton, but triton is not installed; pip install triton"):
        choose_kernels("triton", is_cuda=True)


def test_on_a_cpu_triton_is_refused_outside_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="needs a GPU; use auto or torch"):
        choose_kernels("triton", is_cuda=False)


@pytest.mark.parametrize("compiler", [None, "/usr/bin/gcc"])
def test_without_a_c_compiler_nothing_is_left_to_triton(
    compiler: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It builds what launches its kernels, and those of torch.compile, in the first step."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "triton" else None)
    monkeypatch.setattr(shutil, "which", lambda name: compiler)
    monkeypatch.delenv("CC", raising=False)
    assert can_compile() is (compiler is not None)
    training = TrainingSection(seq_length=16, global_batch_size=1)
    config = RunConfig(
        run=RunSection(name="n", dir=Path()), training=training, device="cuda",
        data=DataSection(manifests=(), stages=(StageSection(name="s", tokens=16, languages={}),)),
    )  # fmt: skip
    plan = derive(config, ARCHITECTURES["smollm2_135m"], 1)
    assert transformer_config(config, plan, A100).bias_activation_fusion is (compiler is not None)
    if compiler is None:
        chosen = choose_kernels("auto", is_cuda=True)
        assert (chosen.rms_norm, chosen.swiglu, chosen.rotate) == (PLAIN.rms_norm, PLAIN.swiglu, PLAIN.rotate)
        assert chosen.names == "torch (no C compiler for Triton (CC, gcc or clang))"
        with pytest.raises(ConfigError, match="there is no C compiler for Triton .*; install one, or use auto or torch"):
            choose_kernels("triton", is_cuda=True)


def test_a_cpu_has_kernels_of_its_own_and_plain_torch_where_asked_for() -> None:
    assert choose_kernels("auto", is_cuda=False) is BY_ROWS and BY_ROWS.swiglu is cpu_layers.swiglu
    assert choose_kernels("torch", is_cuda=False) is PLAIN


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("device", "fp8", "recipe", "message"),
    [
        (A100, "hybrid", "tensorwise", "needs an H100 or newer .* this is NVIDIA A100; remove it"),
        (CPU, "hybrid", "delayed", "fp8_recipe=delayed needs Transformer Engine .* use tensorwise or rowwise"),
    ],
)
def test_fp8_is_refused_with_its_cure(device: Device, fp8: str, recipe: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose("auto", device, fp8=fp8, fp8_recipe=recipe)  # type: ignore[arg-type]


@pytest.mark.usefixtures("bare")
def test_a_torch_that_has_no_scales_a_row_on_a_cpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Now _scaled_mm only supports per-tensor scaling for CPU backend.")  # torch 2.11's words

    monkeypatch.setattr("torch._scaled_mm", refuse)
    cpu_scales_rows.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"rowwise: on a CPU this torch cannot; use tensorwise, or torch 2\.13"):
            choose("auto", CPU, fp8="e4m3", fp8_recipe="rowwise")
    finally:
        cpu_scales_rows.cache_clear()


@pytest.mark.usefixtures("bare")
def test_the_log_says_what_was_chosen() -> None:
    said = str(choose("auto", CPU, fp8="e4m3", fp8_recipe="rowwise"))
    kernels = "kernels: RMSNorm and SwiGLU by rows, RoPE torch"
    assert said == f"native (Transformer Engine is not installed); {kernels}; FP8 e4m3, rowwise"
