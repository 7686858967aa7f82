"""Which kernels and layers are chosen, and what is refused with its cure."""

import importlib.util
import shutil
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_mixers.errors import ConfigError
from megatron_synE.build import layers_of, transformer_config
from megatron_synE.config.derive import derive
from megatron_synE.config.schema import (
    DataSection,
    ModelSection,
    RunConfig,
    RunSection,
    StageSection,
    TrainingSection,
)
from megatron_synE.kernels import attention, choice, cpu_layers
from megatron_synE.kernels.choice import CPU as BY_ROWS
from megatron_synE.kernels.choice import PLAIN, can_compile, choose_kernels
from megatron_synE.kernels.float8 import cpu_scales_rows
from megatron_synE.model import layer_spec
from megatron_synE.model.layer_spec import choose
from megatron_synE.model.presets import ARCHITECTURES
from megatron_synE.runtime.device import Device

CPU = Device("cpu", torch.device("cpu"), "gloo", "cpu")


class Ampere(Device):
    """A card before FP8."""

    @property
    def has_bf16(self) -> bool:
        return True

    @property
    def has_fp8(self) -> bool:
        return False


class Hopper(Ampere):
    """With it."""

    @property
    def has_fp8(self) -> bool:
        return True


A100 = Ampere("cuda", torch.device("cpu"), "nccl", "NVIDIA A100")
H100 = Hopper("cuda", torch.device("cpu"), "nccl", "NVIDIA H100")


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


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("compiler", [None, "gone", "without headers", "whole"])
def test_without_a_c_compiler_nothing_is_left_to_triton(
    compiler: str | None, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It builds what launches its kernels, and those of torch.compile, in the first step."""
    program = str(tmp_path / "cc")
    if compiler in ("without headers", "whole"):
        Path(program).write_text(f"#!/bin/sh\nexit {int(compiler != 'whole')}  # no Python.h\n")
        Path(program).chmod(0o755)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "triton" else None)
    monkeypatch.setattr(shutil, "which", lambda name: program if compiler is not None and not named else None)
    monkeypatch.delenv("CC", raising=False)
    if named and compiler is not None:
        monkeypatch.setenv("CC", program)
    choice._has_compiler.cache_clear()
    assert can_compile() is (compiler == "whole")
    Path(program).unlink(missing_ok=True)
    assert can_compile() is (compiler == "whole")  # found out once: every FP8 product asks
    training = TrainingSection(seq_length=16, global_batch_size=1)
    config = RunConfig(
        run=RunSection(name="n", dir=Path()), training=training, device="cuda",
        data=DataSection(manifests=(), stages=(StageSection(name="s", tokens=16, languages={}),)),
    )  # fmt: skip
    plan = derive(config, ARCHITECTURES["smollm2_135m"], 1)
    assert transformer_config(config, plan, A100).bias_activation_fusion is (compiler == "whole")
    if compiler != "whole":
        chosen = choose_kernels("auto", is_cuda=True)
        assert (chosen.rms_norm, chosen.swiglu, chosen.rotate) == (PLAIN.rms_norm, PLAIN.swiglu, PLAIN.rotate)
        assert chosen.names == "torch (no C compiler for Triton (CC, gcc or clang, with Python's headers))"
        with pytest.raises(
            ConfigError, match=r"there is no C compiler for Triton .*; install one, or use auto or torch"
        ):
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


def on_a_card(monkeypatch: pytest.MonkeyPatch, folder: Path, **modules: str) -> None:
    """A Hopper on which these modules, and nothing else that is optional, are installed."""
    monkeypatch.syspath_prepend(str(folder))
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    known = {name: object() for name in modules}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: known.get(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    attention.source.cache_clear()


@pytest.fixture(autouse=True)
def _forget_what_was_found() -> Iterator[None]:
    yield
    attention.source.cache_clear()
    choice._has_compiler.cache_clear()


BROKEN = 'raise ImportError("undefined symbol: _ZN3c105ErrorC2E")'


@pytest.mark.parametrize("module", ["flash_attn", "flash_attn_interface"])
def test_a_flash_attn_of_another_torch_is_named_before_the_run(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found, and cannot be imported: without a look at it the first step would end in a traceback."""
    on_a_card(monkeypatch, tmp_path, **{module: BROKEN})
    with pytest.raises(
        ConfigError, match=r"flash-attn \d is installed and cannot be imported \(undefined symbol.*torch"
    ):
        choose("auto", H100)
    assert choose("native", H100, dtype="fp32").name == "native"  # which has no flash kernel
    on_a_card(monkeypatch, tmp_path, **{module: "def flash_attn_varlen_func(): ..."})
    assert attention.source() == {"flash_attn": "flash-attn 2"}.get(module, "flash-attn 3")
    on_a_card(monkeypatch, tmp_path, **{module: ""})  # as a folder that holds flash-attn 4 alone
    assert attention.source() == "torch varlen"


@pytest.mark.parametrize("asked", ["auto", "native"])
def test_bf16_is_refused_on_a_card_without_it(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """precision: auto means bf16 on every card, and attention has no kernel for it there."""
    monkeypatch.setattr(Device, "has_bf16", False)
    t4 = Device("cuda", torch.device("cpu"), "nccl", "Tesla T4")
    config = RunConfig(
        run=RunSection(name="n", dir=Path()), training=TrainingSection(seq_length=16, global_batch_size=1),
        data=DataSection(manifests=(), stages=()), model=ModelSection(attention=asked),  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"bf16 needs an A100 or newer, this is Tesla T4.*precision=fp32"):
        layers_of(config, t4)
    in_fp32 = replace(config, training=replace(config.training, precision="fp32"))
    assert layers_of(in_fp32, t4).name == "native"
    assert choose("native", CPU).name == "native"  # a CPU has bf16 in any case


def test_the_third_flash_attn_is_for_hopper_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_card(monkeypatch, tmp_path, flash_attn_interface=BROKEN)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    assert attention.source() == "torch varlen"


def test_a_transformer_engine_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_card(monkeypatch, tmp_path, transformer_engine=BROKEN)
    for asked in ("auto", "transformer_engine"):
        with pytest.raises(ConfigError, match=r"goes without it \(undefined symbol.*or set model.attention=native"):
            choose(asked, H100)  # type: ignore[arg-type]
    assert choose("native", H100).name == "native"


@pytest.mark.parametrize(("recipe", "fault"), [("mxfp8", "needs 10.0"), ("blockwise", None), ("delayed", None)])
def test_transformer_engine_is_asked_for_its_recipes(
    recipe: str, fault: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = types.SimpleNamespace(
        is_mxfp8_available=lambda: (False, "needs 10.0"), is_fp8_block_scaling_available=lambda: (True, "")
    )
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    theirs = types.SimpleNamespace(FP8GlobalStateManager=state)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch.fp8", theirs)  # type: ignore[arg-type]
    monkeypatch.setattr(layer_spec, "_whose", lambda *_: ("transformer_engine", "installed"))
    if fault is None:
        assert choose("auto", H100, fp8="hybrid", fp8_recipe=recipe).fp8_recipe == recipe
    else:
        with pytest.raises(
            ConfigError, match=f"training.fp8_recipe={recipe}: {fault}; this is NVIDIA H100: use tensorw"
        ):
            choose("auto", H100, fp8="hybrid", fp8_recipe=recipe)
