"""Process groups: megatron-core's, and the two that its parallel_state does not hold."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_synE.config.schema import ParallelSection
from megatron_synE.model.context_part import ContextPart
from megatron_synE.runtime.control import require_same
from megatron_synE.runtime.device import Device
from megatron_synE.runtime.environment import Ranks
from megatron_synE.runtime.mcore import parallel_state, tensor_parallel


@dataclass(frozen=True)
class Groups:
    """Groups beside parallel_state: control runs on the host, so a decision never waits for the GPU."""

    control: dist.ProcessGroup
    """gloo over all ranks: stop flags, small decisions."""
    checkpoint: dist.ProcessGroup
    """gloo over all ranks: used by the thread that writes checkpoints, so it cannot cross training's collectives."""


def initialize(
    device: Device, ranks: Ranks, parallel: ParallelSection, *, seed: int, facts: Mapping[str, object] | None = None
) -> Groups:
    """Start torch.distributed and megatron-core's parallel state. Collective: every rank.

    facts: what must be the same on every rank, compared before their groups are made by it.
    Errors: ConfigError on every rank if it is not.
    """
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0" if ranks.world_size == 1 else "29500")
    # A single process needs no port.
    store = torch._C._distributed_c10d.HashStore() if ranks.world_size == 1 else None
    options: dict[str, Any] = {"device_id": device.torch_device} if device.is_cuda else {}
    dist.init_process_group(
        device.backend, store=store, rank=ranks.rank, world_size=ranks.world_size,
        timeout=timedelta(minutes=30), **options,
    )  # fmt: skip
    control = dist.new_group(backend="gloo")
    require_same(control, facts or {})
    initialize_model_parallel(parallel, seed=seed)
    return Groups(control=control, checkpoint=dist.new_group(backend="gloo"))


def initialize_model_parallel(parallel: ParallelSection, *, seed: int) -> None:
    """megatron-core's groups and RNG tracker for one layout. Collective: every rank."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        create_gloo_process_groups=False,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed + 100 * parallel_state.get_pipeline_model_parallel_rank())


def shut_down() -> None:
    """Leave all groups, if there are any yet. Collective: every rank, on the way out of a run that went well."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def context_part() -> ContextPart:
    """The part of every row that this rank computes."""
    return ContextPart(parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size())


def sum_over_tokens(values: torch.Tensor) -> torch.Tensor:
    """In-place sum over the ranks that hold the same part of the model, and each some tokens.

    Collective: the data- and context-parallel group.
    """
    dist.all_reduce(values, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    return values


def sum_of_last_stages(parts: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """What the last pipeline stages computed, summed over all rows and their parts, in the host memory of every rank.

    parts: [2] fp64 each, on `device`; looked at on the last stages alone, where tensor-parallel ranks hold the same.
    Collective: every rank. No synchronisation: on CUDA the values are there after the next one of this stream.
    """
    total = torch.zeros(2, dtype=torch.float64, device=device)
    is_last = parallel_state.is_pipeline_last_stage(ignore_virtual=True)
    if is_last and parallel_state.get_tensor_model_parallel_rank() == 0:
        for part in parts:
            total += part
    dist.all_reduce(total)
    host = torch.empty(2, dtype=torch.float64, pin_memory=device.type == "cuda")
    return host.copy_(total, non_blocking=True)


def broadcast_from_last_stage(values: torch.Tensor) -> torch.Tensor:
    """What the last pipeline stage computed, on every stage. Collective: the pipeline group."""
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        source = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(values, src=source, group=parallel_state.get_pipeline_model_parallel_group())
    return values
