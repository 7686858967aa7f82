"""The tensors of a running trainer as chunks: weights, fp32 masters and Adam moments, each rank its own ranges."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from megatron_synE.build import Model
from megatron_synE.checkpoint.dcp import Chunk
from megatron_synE.checkpoint.model_space import LocalParameter, local_parameters
from megatron_synE.exit_codes import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class OptimizerShard:
    """The part of one parameter that this data-parallel rank updates: a flat range."""

    local: LocalParameter
    start: int
    weight: torch.Tensor
    """[elements] what the model computes with."""
    master: torch.Tensor
    """[elements] fp32; under fp32 training a view of the weight itself."""
    moments: dict[str, torch.Tensor]
    """exp_avg and exp_avg_sq, [elements] fp32."""


def all_local_parameters(model: Model) -> list[LocalParameter]:
    return [local for chunk in model.chunks for local in local_parameters(chunk)]


def optimizer_shards(model: Model, optimizer: Any) -> Iterator[OptimizerShard]:
    """This rank's shard of every parameter it updates; moments are created (zero) where no step was taken yet."""
    inner = optimizer.optimizer
    for local in all_local_parameters(model):
        place = optimizer.model_param_group_index_map.get(local.parameter)
        if place is None:
            continue  # another data-parallel rank owns all of it
        group_index, order = place
        master = inner.param_groups[group_index]["params"][order]
        state = inner.state[master]
        for name in MOMENTS:
            if name not in state:
                state[name] = torch.zeros_like(master, dtype=torch.float32)
        start = optimizer._get_model_param_range_map(local.parameter)["param"].start
        bucket = model.buckets.get(local.parameter)
        if bucket is None:
            weight = local.parameter.detach().view(-1)[start : start + master.numel()]
        else:
            weight = bucket.own_weights(local.parameter)
        yield OptimizerShard(local, start, weight, master, {name: state[name] for name in MOMENTS})


def weight_chunks_to_load(model: Model, *, from_masters: bool = False) -> list[Chunk]:
    """Targets for the weights of this rank, views of the parameters; under ZeRO stage 3 of its parts of them.

    from_masters: fill them from the fp32 masters of a bf16 checkpoint (a run that goes on in fp32).
    """
    prefix = "optimizer.master." if from_masters else ""
    return [
        chunk for local in all_local_parameters(model) for chunk in _weight_chunks(model, local, prefix + local.key)
    ]


def _weight_chunks(model: Model, local: LocalParameter, key: str) -> Iterator[Chunk]:
    bucket = model.buckets.get(local.parameter)
    if bucket is None or bucket.keeps_weights:
        yield from local.chunks(key, local.parameter.detach())
    else:
        start, _ = bucket.own_range(local.parameter)
        yield from local.flat_chunks(key, bucket.own_weights(local.parameter), start=start)


def chunks_to_save(model: Model, optimizer: Any) -> list[Chunk]:
    """Everything this rank is to write: each data-parallel rank the ranges that it updates, of weights too."""
    chunks: list[Chunk] = []
    for shard in optimizer_shards(model, optimizer):
        local, start = shard.local, shard.start
        if not local.is_written_here:
            continue
        chunks += local.flat_chunks(local.key, shard.weight, start=start)
        tensors = dict(shard.moments)
        if local.parameter.dtype != torch.float32:
            tensors["master"] = shard.master.detach()
        for name, values in tensors.items():
            chunks += local.flat_chunks(f"optimizer.{name}.{local.key}", values, start=start)
    return chunks


def optimizer_chunks_to_load(model: Model, optimizer: Any, *, stored_bf16: bool) -> list[Chunk]:
    """Targets for the masters (under bf16) and moments of this rank.

    stored_bf16: the checkpoint holds bf16 weights beside fp32 masters; else its weights are the fp32 values.
    """
    runs_bf16 = model.config.params_dtype == torch.bfloat16
    chunks: list[Chunk] = []
    for shard in optimizer_shards(model, optimizer):
        key = shard.local.key
        if runs_bf16:
            stored = f"optimizer.master.{key}" if stored_bf16 else key
            chunks += shard.local.flat_chunks(stored, shard.master.detach(), start=shard.start)
        for name in MOMENTS:
            chunks += shard.local.flat_chunks(f"optimizer.{name}.{key}", shard.moments[name], start=shard.start)
    return chunks


def adam_step(optimizer: Any) -> int:
    """Updates taken so far. Every parameter group counts alike; a group without parameters on this rank counts none."""
    return max((int(group.get("step", 0)) for group in optimizer.optimizer.param_groups), default=0)


def set_adam_step(optimizer: Any, step: int) -> None:
    """Continue Adam's bias correction from `step` updates."""
    for group in optimizer.optimizer.param_groups:
        group["step"] = step


def check_masters(model: Model, optimizer: Any) -> None:
    """Every fp32 master on this rank, rounded to the weights' dtype, must be the weight, bit for bit.

    A weights-only load that leaves masters behind shows loss 2 at the first step and 10 at the second.
    Errors: CheckpointError naming the tensor.
    """
    for shard in optimizer_shards(model, optimizer):
        if not torch.equal(shard.master.detach().to(shard.weight.dtype), shard.weight):
            raise CheckpointError(f"{shard.local.key}: the optimizer's fp32 master is not the weight that was loaded")
