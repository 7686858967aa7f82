"""Which function computes each fused part of a native layer: Triton's on a GPU, ours on a CPU, or plain torch's."""

import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from data_mixers.errors import ConfigError
from megatron_synE.kernels import cpu_layers, plain

Asked = Literal["auto", "torch", "triton"]


@dataclass(frozen=True)
class Kernels:
    """One function a part, with the signatures of plain.py."""

    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    swiglu: Callable[[torch.Tensor], torch.Tensor] | None
    """None: megatron-core's own MLP computes it."""
    rotate: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    names: str
    """For the log."""


PLAIN = Kernels(plain.rms_norm, None, plain.rotate, "torch")
CPU = Kernels(cpu_layers.rms_norm, cpu_layers.swiglu, plain.rotate, "RMSNorm and SwiGLU by rows, RoPE torch")


def can_compile() -> bool:
    """Whether a GPU's kernels can be compiled here, ours or those of torch.compile.

    Triton builds what launches them with a C compiler and Python's headers, which a slim container or a compute node
    may not have.
    """
    return _has_triton() and _has_compiler()


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _has_compiler() -> bool:
    """Tried as Triton calls it (runtime/build.py), once: every FP8 product asks."""
    compiler = os.environ.get("CC", shutil.which("gcc") or shutil.which("clang"))
    if compiler is None:
        return False
    scheme = sysconfig.get_default_scheme()
    include = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "launcher.c")
        source.write_text("#include <Python.h>\n")
        command = [compiler, str(source), "-shared", "-fPIC", "-o", f"{folder}/launcher.so", f"-I{include}"]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:  # CC names a program that is not here
            return False


def choose_kernels(asked: Asked, *, is_cuda: bool) -> Kernels:
    """auto: on a CPU by rows, on a GPU Triton where it can run (torch's CUDA wheels bring it).

    Errors: ConfigError if Triton is asked for and cannot run here.
    """
    if asked == "auto" and not is_cuda:
        return CPU
    if asked == "torch" or (asked == "auto" and not _has_triton()):
        return PLAIN
    if not _has_triton():
        raise ConfigError("model.kernels=triton, but triton is not installed; pip install triton, or use auto or torch")
    if not is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(
            "model.kernels=triton needs a GPU; use auto or torch (TRITON_INTERPRET=1 runs the kernels in Triton's"
            " interpreter, thousands of times slower: for tests)"
        )
    if is_cuda and not _has_compiler():
        missing = "no C compiler for Triton (CC, gcc or clang, with Python's headers)"
        if asked == "auto":
            return replace(PLAIN, names=f"torch ({missing})")
        raise ConfigError(f"model.kernels=triton, but there is {missing}; install one, or use auto or torch")
    from megatron_synE.kernels import rms_norm, rope, swiglu

    return Kernels(rms_norm.rms_norm, swiglu.swiglu, rope.rotate, "RMSNorm, SwiGLU and RoPE Triton")
