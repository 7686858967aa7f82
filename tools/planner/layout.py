"""One way to lay a run over GPUs, and the facts of the run that memory and time depend on."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from megatron_synE.model.llama import LlamaArchitecture

Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
ZeroStage = Literal[1, 2, 3]
Layers = Literal["native_cpu", "native_cuda", "transformer_engine"]
"""Whose kernels run, as they keep different tensors; docs/planner.md says which of them was checked where."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The parallel sizes, spelt as in the configuration."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    context_parallel_size: int = 1
    sequence_parallel: bool = False
    micro_batch_size: int = 1
    recompute: Recompute = "none"
    zero_stage: ZeroStage = 1

    @property
    def model_ranks(self) -> int:
        """GPUs that share one replica."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    def __str__(self) -> str:
        chunks = self.virtual_pipeline_model_parallel_size
        parts = [
            f"TP{self.tensor_model_parallel_size}{' SP' if self.sequence_parallel else ''}",
            f"PP{self.pipeline_model_parallel_size}{f' VPP{chunks}' if chunks else ''}",
            *([f"CP{self.context_parallel_size}"] if self.context_parallel_size > 1 else []),
            f"MBS{self.micro_batch_size}",
            f"recompute {self.recompute}",
            *([f"ZeRO{self.zero_stage}"] if self.zero_stage > 1 else []),
        ]
        return ", ".join(parts)

    def of_section(self, name: str) -> dict[str, Any]:
        """The values that stand in a section of the configuration: parallel, training."""
        return {key: value for key, value in vars(self).items() if section_of(key) == name}

    def overrides(self) -> list[str]:
        """key=value of a configuration in which the run has this layout."""
        shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in vars(self).items()}
        return [f"{section_of(key)}.{key}={value}" for key, value in shown.items()]


def section_of(key: str) -> str:
    return "training" if key in ("micro_batch_size", "recompute") else "parallel"


@dataclass(frozen=True, kw_only=True)
class Job:
    architecture: LlamaArchitecture
    seq_length: int
    global_batch_size: int
    total_tokens: int
    dtype: Literal["bf16", "fp32"] = "bf16"
    grad_reduce_in_fp32: bool = True
    make_vocab_size_divisible_by: int = 128
    layers: Layers = "transformer_engine"

    @property
    def dtype_bytes(self) -> int:
        return 2 if self.dtype == "bf16" else 4

    def padded_vocab_size(self, layout: Layout) -> int:
        """Rows of the embedding over all TP ranks."""
        return self.architecture.padded_vocab_size(
            divisible_by=self.make_vocab_size_divisible_by, tensor_model_parallel_size=layout.tensor_model_parallel_size
        )

    def data_parallel_size(self, layout: Layout, world_size: int) -> int:
        """Replicas of the model."""
        return world_size // layout.model_ranks

    def num_microbatches(self, layout: Layout, world_size: int) -> int:
        """Micro-batches per replica and optimizer step."""
        return self.global_batch_size // (layout.micro_batch_size * self.data_parallel_size(layout, world_size))
