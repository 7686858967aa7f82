"""Environment variables of a training job, each with the reason that stands beside it in the job script."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Setting:
    """One `export NAME=value`, and why."""

    name: str
    value: str
    reason: str


def settings_of(device: Literal["auto", "cpu", "cuda"], *, tp: bool = False) -> tuple[Setting, ...]:
    """Those for GPUs only where they may be used; tp: there is tensor parallelism."""
    common = (
        Setting("OMP_NUM_THREADS", "${SLURM_CPUS_PER_TASK:-1}", "a rank would start a thread for every core"),
        Setting("PYTHONFAULTHANDLER", "1", "a rank that crashes in native code prints its Python stack"),
        Setting("HF_HUB_OFFLINE", "1", "compute nodes have no internet: fail at once, not after a timeout"),
        Setting("TOKENIZERS_PARALLELISM", "false", "reader processes are forks; its threads would not survive one"),
    )
    if device == "cpu":
        return common
    cuda = [
        Setting("NCCL_DEBUG", "WARN", "NCCL names what failed; INFO would write megabytes for each rank"),
        Setting("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1", "a rank whose peer has gone ends, and does not wait for good"),
        Setting("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000", "keeps the last collectives, to see which rank did not come"),
        Setting("TORCH_NCCL_DUMP_ON_TIMEOUT", "1", "and writes them down when one times out"),
        Setting("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", "less memory lost between blocks of other size"),
    ]
    if tp:
        cuda.append(
            Setting(
                "CUDA_DEVICE_MAX_CONNECTIONS",
                "1",
                "one queue keeps kernels in order of launch: TP communication starts before the GEMM that hides it",
            )
        )
    return (*common, *cuda)
