"""On a CPU only megatron.core's modules see "cuda" as the CPU, and they ask for no name that nobody looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.layouts import OVERLAP, PP2, TP2_SP

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU view is never installed where a GPU is seen")

KNOWN_CUDA_NAMES = {
    "current_device",
    "random", "get_rng_state", "default_generators", "manual_seed",  # the tracker of tensor_parallel/random.py
    "_lazy_call", "_lazy_init", "device",  # imported by that file
    "synchronize",  # after batched p2p
    "current_stream",  # 0.19.2: finalize_model_grads waits for side streams, of which there are none here
}  # fmt: skip
"""Every name of torch.cuda that megatron.core 0.16.1 and 0.19.2 ask for while running as below.

A version that asks for another one fails the test: look at what it wants it for before the name is added here.
"""
LAYOUTS = {
    "TP2 SP bf16 full recompute, both overlaps": [
        *TP2_SP, "training.precision=bf16", "training.recompute=full", *OVERLAP,
    ],
    "PP2": PP2,
}  # fmt: skip
_LAUNCH = (
    "import sys; from megatron_synE.runtime.launch import launch; sys.exit(launch(sys.argv[2:], int(sys.argv[1])))"
)


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that sees no GPU."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=tiny.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.prepared(tmp_path_factory.mktemp("view"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_megatron_core_asks_for_no_cuda_name_that_was_not_looked_at(config: Path, tmp_path: Path, layout: str) -> None:
    """Two ranks: validation, a step, save."""
    worker = Path(__file__).with_name("record_cuda_names.py")
    overrides = [f"run.dir={tmp_path / 'run'}", "training.stop_after_iterations=1", *LAYOUTS[layout]]
    done = python("-c", _LAUNCH, 2, worker, tmp_path, config, *overrides)
    assert done.returncode == 75, done.stderr[-3000:]
    assert (tmp_path / "run/checkpoints/iter_0000001/manifest.json").exists()
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert set(seen["asked"]) - KNOWN_CUDA_NAMES == set()
        assert seen["fell_through"] == [], "megatron.core reached the real torch.cuda"
        assert seen["heavy"] == [], "seconds of every start, for nothing that runs on a CPU"
        # The recording itself works: megatron-core cannot seed its ranks without these.
        assert {"current_device", "default_generators", "_lazy_call"} <= set(seen["asked"])
    # What megatron-core always says is filtered; a warning that is left is a new one.
    assert "Warning" not in done.stderr and "DEPRECATED" not in done.stderr, done.stderr


def test_an_unknown_version_is_refused_and_nothing_is_changed() -> None:
    done = python(
        "-c",
        "import sys, torch\n"
        "from data_mixers.errors import ConfigError\n"
        "from megatron_synE.runtime import cpu_compat\n"
        "before = (torch.Tensor.cuda, torch.Tensor.type, torch.nn.Module.cuda, list(sys.meta_path))\n"
        "try:\n"
        "    cpu_compat.install('0.99.0')\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
        "assert before == (torch.Tensor.cuda, torch.Tensor.type, torch.nn.Module.cuda, list(sys.meta_path))\n",
    )
    assert done.returncode == 0, done.stderr
    assert "megatron-core 0.99.0" in done.stdout
    assert "0.16.1" in done.stdout and "0.19.2" in done.stdout


def test_importing_megatron_core_before_the_view_is_refused() -> None:
    """Modules imported earlier would keep the real torch and fail far from here."""
    done = python("-c", "import megatron.core.parallel_state, megatron_synE.runtime.mcore")
    assert done.returncode != 0
    assert "megatron.core was imported before megatron_synE.runtime.mcore" in done.stderr


def test_installing_the_view_changes_no_other_name_of_torch() -> None:
    """All of torch and torch.cuda is the same object after as before, and transformers computes the same bits."""
    done = python(
        "-c",
        "import inspect, torch\n"
        "from tests import tiny\n"
        "import torch._dynamo, torch.distributed.checkpoint  # megatron.core imports one; both add names\n"
        "model = tiny.hf_model(tiny.hf_config())\n"
        "tokens = torch.arange(40).unsqueeze(0)\n"
        "before = model(tokens).logits\n"
        "owners = (torch, torch.cuda, torch.nn.functional, torch.Tensor, torch.nn.Module)\n"
        "def found(owner):\n"
        "    return {name: inspect.getattr_static(owner, name) for name in dir(owner) if name != '__dict__'}\n"
        "names = [found(owner) for owner in owners]\n"
        "import megatron_synE.runtime.mcore\n"
        "for owner, kept in zip(owners, names):\n"
        "    now = found(owner)\n"
        "    print(owner.__name__, *sorted(name for name, value in kept.items() if now.get(name) is not value))\n"
        "assert torch.equal(model(tokens).logits, before)\n"
        "assert model.generate(tokens, max_new_tokens=2, do_sample=False).shape == (1, 42)\n",
    )
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["torch"],
        ["torch.cuda"],
        ["torch.nn.functional"],
        ["Tensor", "cuda", "pin_memory", "record_stream", "type"],
        ["Module", "cuda"],
    ]


def as_called_from(module: str, expression: str, **names: Any) -> Any:
    """The value of an expression evaluated inside a module of this name."""
    scope: dict[str, Any] = {"__name__": module, **names}
    exec(f"def value():\n    return {expression}", scope)
    return scope["value"]()


def test_tensor_type_has_the_cuda_spelling_for_megatron_core_alone() -> None:
    from megatron_synE.runtime import mcore  # noqa: F401  # installs the view

    tensor = torch.ones(2)
    assert tensor.type() == "torch.FloatTensor"
    assert as_called_from("transformers.modeling_utils", "tensor.type()", tensor=tensor) == "torch.FloatTensor"
    assert as_called_from("megatron.core.optimizer.clip_grads", "t.type()", t=tensor) == "torch.cuda.FloatTensor"
    assert as_called_from("megatron.core.optimizer.x", "t.type()", t=tensor.bfloat16()) == "torch.cuda.BFloat16Tensor"
    assert tensor.type(torch.float64).dtype == torch.float64
    converted = as_called_from("megatron.core.x", "t.type('torch.HalfTensor')", t=tensor)
    assert converted.dtype == torch.float16


def test_cuda_is_the_cpu_inside_megatron_core_and_an_error_outside() -> None:
    from megatron_synE.runtime.mcore import parallel_state

    theirs = parallel_state.torch
    assert theirs is not torch
    for make in ("zeros", "ones", "empty", "rand", "randn"):
        assert getattr(theirs, make)(3, device="cuda").device.type == "cpu"
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
            getattr(torch, make)(3, device="cuda")
    assert theirs.tensor([1.0], device=theirs.device("cuda:3")).device.type == "cpu"
    assert isinstance(torch.device("cpu"), theirs.device)
    assert theirs.cuda.current_device() == torch.device("cpu")
    assert theirs.cuda.is_available() is False
    assert theirs.cuda.get_rng_state().equal(torch.get_rng_state())
    with theirs.autocast("cuda", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
