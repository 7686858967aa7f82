"""Logits of a folder of weights by our own model in one process: what `syne verify` compares with transformers."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_synE.build import build_chunks, transformer_config
from megatron_synE.checkpoint.dcp import load_chunks
from megatron_synE.checkpoint.hf import HfFolder, read_rectangle
from megatron_synE.checkpoint.model_space import local_parameters
from megatron_synE.config.derive import derive
from megatron_synE.config.schema import (
    DataSection,
    InitSection,
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
from megatron_synE.runtime.environment import Ranks
from megatron_synE.runtime.mcore import parallel_state

CHECKPOINT_NAME = ".metadata"


def build_reference(architecture: LlamaArchitecture, weights: Path, *, seq_length: int) -> LlamaModel:
    """The model in fp32 on the CPU with the weights of an HF folder or an iter_* checkpoint, without DDP or optimizer.

    Starts a process group of one where none exists. Errors: CheckpointError for weights that do not fit.
    """
    config = RunConfig(
        run=RunSection(name="reference", dir=weights),
        training=TrainingSection(seq_length=seq_length, global_batch_size=1, precision="fp32"),
        data=DataSection(manifests=(), stages=(StageSection(name="none", tokens=1, languages={}),)),
        init=InitSection(source="random"),
        device="cpu",
    )
    device = Device("cpu", torch.device("cpu"), "gloo", "cpu")
    if not dist.is_initialized():
        initialize(device, Ranks(rank=0, world_size=1, local_rank=0), ParallelSection(), seed=1)
    assert parallel_state.get_model_parallel_group().size() == 1
    plan = derive(config, architecture, 1, device="cpu")
    core_config = transformer_config(config, plan, device)
    (model,) = build_chunks(core_config, config, plan, choose("native", device), device)
    chunks = [chunk for local in local_parameters(model) for chunk in local.chunks(local.key, local.parameter.detach())]
    if (weights / CHECKPOINT_NAME).exists():
        load_chunks(weights, chunks, no_dist=True)
    else:
        folder = HfFolder(weights)
        for chunk in chunks:
            values = read_rectangle(folder, architecture, chunk.key, chunk.offsets, chunk.sizes, chunk.dtype)
            chunk.tensor().copy_(values)
    model.eval()
    return model


@torch.no_grad()
def logits(model: LlamaModel, tokens: torch.Tensor, bounds: Sequence[int] | None = None) -> torch.Tensor:
    """tokens [s] int64 -> [s, vocab_size] fp32.

    bounds: borders of documents in the row (0 first, s last); None: one document.
    """
    borders = tuple(bounds) if bounds is not None else (0, len(tokens))
    row = packed_row(borders, max_segments=len(borders), device=tokens.device)
    out = model(tokens.unsqueeze(0), None, None, packed_seq_params=row)  # [1, s, v]
    return model.gather_logits(out).squeeze(0).float()
