"""The device that this process computes on; with cpu_compat the only place that says `cuda`."""

import resource
from dataclasses import dataclass
from typing import Literal

import torch

from data_mixers.errors import ConfigError
from megatron_synE.exit_codes import OneRankError
from megatron_synE.runtime.cpu_features import cpu_has_bf16
from megatron_synE.runtime.cpu_memory import keep_freed_memory


@dataclass(frozen=True)
class Device:
    """What the rest of the trainer needs to know about the hardware."""

    kind: Literal["cpu", "cuda"]
    torch_device: torch.device
    backend: Literal["gloo", "nccl"]
    name: str

    @property
    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    def synchronize(self) -> None:
        """Wait until everything launched has run."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def peak_memory_bytes(self) -> int:
        """Most device memory allocated so far; on a CPU the peak resident set of this process."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @property
    def has_bf16(self) -> bool:
        """bf16 matrix products in hardware."""
        return torch.cuda.is_bf16_supported(including_emulation=False) if self.is_cuda else cpu_has_bf16()

    @property
    def has_fp8(self) -> bool:
        """FP8 matrix products: compute capability 8.9 and above; on a CPU torch emulates them."""
        return not self.is_cuda or torch.cuda.get_device_capability(self.torch_device) >= (8, 9)


def select(kind: Literal["auto", "cpu", "cuda"], *, local_rank: int) -> Device:
    """The device of this rank.

    Errors: ConfigError if a GPU is asked for and none is visible; OneRankError if there are fewer than ranks.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and available == 0:
        raise ConfigError(
            "device=cuda, but torch sees no CUDA device; use device=cpu, or check nvidia-smi and the driver"
        )
    if kind == "cpu" or available == 0:
        keep_freed_memory()
        return Device("cpu", torch.device("cpu"), "gloo", "cpu")
    if local_rank >= available:
        raise OneRankError(
            ConfigError(
                f"local rank {local_rank} has no GPU: {available} visible; start at most that many per node, and let "
                "each task see all of its node's (under Slurm --gpus-per-node, no --gpus-per-task, no --gpu-bind)"
            )
        )
    torch.cuda.set_device(local_rank)
    # NVIDIA's containers set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1: products of fp32 would be rounded to ten bits.
    torch.set_float32_matmul_precision("highest")
    return Device("cuda", torch.device("cuda", local_rank), "nccl", torch.cuda.get_device_name(local_rank))
