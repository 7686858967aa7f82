"""A whole model in one process, its weights loaded, without DDP or optimizer: for verifying and for scoring."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from megatron_synE.build import build_chunks, transformer_config
from megatron_synE.checkpoint.load import reader_of
from megatron_synE.checkpoint.model_space import local_parameters
from megatron_synE.config.derive import RunPlan, derive
from megatron_synE.config.schema import (
    DataSection,
    InitSection,
    ModelSection,
    ParallelSection,
    RunConfig,
    RunSection,
    StageSection,
    TrainingSection,
)
from megatron_synE.model.gpt import LlamaModel
from megatron_synE.model.layer_spec import choose
from megatron_synE.model.llama import LlamaArchitecture
from megatron_synE.model.packed_row import packed_row
from megatron_synE.runtime.device import Device
from megatron_synE.runtime.distributed import initialize
from megatron_synE.runtime.environment import ALONE
from megatron_synE.runtime.mcore import parallel_state

TENSOR_TABLE = ".metadata"
"""What every DCP folder holds, whoever wrote it."""
CPU = Device("cpu", torch.device("cpu"), "gloo", "cpu")


def planned_alone(
    architecture: LlamaArchitecture, training: TrainingSection, model: ModelSection, device: Device
) -> tuple[RunConfig, RunPlan]:
    """Configuration and plan of a model that no run has, on one rank.

    Starts a process group of one where none exists, also where a launcher has started peers: nothing is shared.
    """
    config = RunConfig(
        run=RunSection(name="alone", dir=Path()),
        training=training,
        data=DataSection(manifests=(), stages=(StageSection(name="none", tokens=1, languages={}),)),
        init=InitSection(source="random"),
        model=model,
        device=device.kind,
    )
    if not dist.is_initialized():
        initialize(device, ALONE, ParallelSection(), seed=1)
    assert parallel_state.get_model_parallel_group().size() == 1
    return config, derive(config, architecture, 1, device=device.kind)


def build_alone(
    architecture: LlamaArchitecture,
    weights: Path,
    *,
    seq_length: int,
    precision: Literal["bf16", "fp32"],
    device: Device,
    attention: Literal["auto", "native"] = "auto",
    kernels: Literal["auto", "torch"] = "auto",
) -> LlamaModel:
    """The model in eval mode with the weights of an HF folder or an iter_* checkpoint.

    Errors: CheckpointError for weights that do not fit.
    """
    training = TrainingSection(seq_length=seq_length, global_batch_size=1, precision=precision)
    config, plan = planned_alone(architecture, training, ModelSection(), device)
    core_config = transformer_config(config, plan, device)
    layers = choose(attention, device, dtype=precision, kernels=kernels)
    (model,) = build_chunks(core_config, config, plan, layers, device)
    _load(model, architecture, weights)
    model.eval()
    return model


@torch.no_grad()
def _load(model: LlamaModel, architecture: LlamaArchitecture, weights: Path) -> None:
    chunks = [chunk for local in local_parameters(model) for chunk in local.chunks(local.key, local.parameter.detach())]
    read = reader_of(architecture, weights, is_hf=not (weights / TENSOR_TABLE).exists())
    for chunk in chunks:
        chunk.tensor().copy_(read(chunk.key, chunk.offsets, chunk.sizes, chunk.dtype))


def build_reference(architecture: LlamaArchitecture, weights: Path, *, seq_length: int) -> LlamaModel:
    """The model in fp32 on the CPU with the weights of an HF folder or an iter_* checkpoint.

    With plain torch's kernels, which round as transformers' layers do: kernels that add in another order lie closer to
    float64, but on a model's worst token fp32 alone is off by a share of 3e-5, and what is compared are the weights.
    Errors: CheckpointError for weights that do not fit.
    """
    return build_alone(
        architecture, weights, seq_length=seq_length, precision="fp32", device=CPU, attention="native", kernels="torch"
    )


@torch.no_grad()
def logits(
    model: LlamaModel,
    tokens: torch.Tensor,
    bounds: Sequence[int] | None = None,
    *,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """tokens [s] int64 -> [s, vocab_size] fp32.

    bounds: borders of documents in the row (0 first, s last); None: one document. positions [s]: None: consecutive.
    """
    borders = tuple(bounds) if bounds is not None else (0, len(tokens))
    row = packed_row(borders, max_segments=len(borders), device=tokens.device)
    if positions is not None:
        row.positions = positions
    out = model(tokens.unsqueeze(0), None, None, packed_seq_params=row)  # [1, s, v]
    return model.gather_logits(out).squeeze(0).float()
