"""Start modes: resume a run, branch from a checkpoint, or take weights alone (from HF or a checkpoint)."""

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_synE.build import Model
from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint.dcp import load_chunks
from megatron_synE.checkpoint.hf import read_rectangle
from megatron_synE.checkpoint.hf_folder import HfFolder
from megatron_synE.checkpoint.training_state import optimizer_chunks_to_load, set_adam_step, weight_chunks_to_load
from megatron_synE.checkpoint.weights import CheckpointWeights
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.model.llama import LlamaArchitecture

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


def load_weights(model: Model, architecture: LlamaArchitecture, folder: Path, *, is_hf: bool) -> None:
    """Fill the weights of this rank from an HF folder or an iter_* folder: its own slices only, no file in between.

    Call before the optimizer is built, so that its masters are copies of these weights.
    Errors: CheckpointError for a weight that is missing, unknown, or of another shape.
    """
    read = reader_of(architecture, folder, is_hf=is_hf)
    chunks = weight_chunks_to_load(model)
    total = sum(math.prod(chunk.sizes) * chunk.dtype.itemsize for chunk in chunks)
    done, spoken = 0, time.monotonic()
    with torch.no_grad():
        for chunk in chunks:
            chunk.tensor().copy_(read(chunk.key, chunk.offsets, chunk.sizes, chunk.dtype))
            done += math.prod(chunk.sizes) * chunk.dtype.itemsize
            if time.monotonic() - spoken >= SECONDS_BETWEEN_LINES:
                spoken = time.monotonic()
                logger.info("reading weights: %.1f of %.1f GB of this rank", done / 1e9, total / 1e9)
    logger.info("weights from %s", folder)


def reader_of(
    architecture: LlamaArchitecture, folder: Path, *, is_hf: bool
) -> Callable[[str, tuple[int, ...], tuple[int, ...], torch.dtype], torch.Tensor]:
    """Of an HF folder or an iter_* folder: (key, offsets, sizes, dtype) -> that rectangle of a global tensor."""
    if is_hf:
        return partial(read_rectangle, HfFolder(folder), architecture)
    return CheckpointWeights(folder, architecture).read


def load_training_state(model: Model, optimizer: Any, folder: Path, state: layout.CommonState) -> None:
    """Weights, masters, moments and Adam's step count, from any layout and either precision.

    Collective: every rank; then each asks check_masters whether what it read belongs together.
    Errors: CheckpointError, on every rank, if the checkpoint holds weights only.
    """
    if not state.has_optimizer:
        raise CheckpointError(f"{folder}: holds weights only; use init.mode=init")
    stored_bf16 = state.weights_dtype == "bfloat16"
    runs_bf16 = model.config.params_dtype == torch.bfloat16
    load_chunks(folder, weight_chunks_to_load(model, from_masters=stored_bf16 and not runs_bf16))
    load_chunks(folder, optimizer_chunks_to_load(model, optimizer, stored_bf16=stored_bf16))
    set_adam_step(optimizer, state.adam_step)
    logger.info("weights and optimizer state from %s", folder)
