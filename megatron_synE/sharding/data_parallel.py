"""Data parallelism that keeps one part of the gradients (stage 2), and of the weights too (stage 3), on each rank.

    forward    unit i: its weights whole (stage 3: gathered, the next unit's on their way) -> run -> let go
    backward   unit i: its weights whole again -> run -> each full bucket of gradients is summed over ranks, a rank
               keeps its part -> let go
    optimizer  megatron-core's, on this rank's parts; under stage 2 the weights are then gathered as under stage 1

A unit is what is gathered at once: the embedding, one layer, the final norm with the head. It is one or more buckets.
Gradients of every micro-batch are summed over ranks as they come, so that no rank ever holds all of them; stage 1 does
that once a step. docs/performance.md says what this costs and why it is not Megatron-FSDP.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from megatron_synE.model.gpt import LlamaModel
from megatron_synE.runtime.mcore import DistributedDataParallelConfig, MegatronModule, TransformerConfig
from megatron_synE.sharding.bucket import Bucket, Reduction, cut
from megatron_synE.sharding.bucket_size import default_bucket_size

REDUCTIONS_IN_FLIGHT = 2
"""Buckets of a rank being summed while its backward pass fills the next: with two the wire is never idle, and no more
memory is held than two of them. Of all chunks together: each of an interleaved pipeline would keep its last two."""


@dataclass
class Unit:
    """Weights that are used together, in the order in which a forward pass comes to them."""

    index: int
    buckets: list[Bucket]
    is_used_backward: bool
    """False for an embedding alone, whose backward pass does not read it."""
    is_used_to_the_end: bool
    """The head: the forward pass ends with it and the backward pass begins with it, so it is not let go in between."""
    awaited: int = 0
    """Parameters whose gradients this backward pass has not brought yet."""
    num_parameters: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_parameters = self.awaited = sum(len(bucket.params_list) for bucket in self.buckets)


@dataclass(frozen=True)
class Buffer:
    """All buckets of a chunk, under the names that megatron-core's optimizer reads."""

    ddp_config: DistributedDataParallelConfig
    buckets: Sequence[Bucket]
    data_parallel_group: dist.ProcessGroup
    param_dtype: torch.dtype
    grad_dtype: torch.dtype = torch.float32

    @property
    def data_parallel_world_size(self) -> int:
        return self.data_parallel_group.size()

    @property
    def num_optimizer_shards(self) -> int:
        """Asked for from megatron-core 0.19 on."""
        return self.data_parallel_world_size

    @property
    def params(self) -> list[torch.nn.Parameter]:
        return [parameter for bucket in self.buckets for parameter in bucket.params_list]

    @property
    def param_index_map(self) -> dict[torch.nn.Parameter, tuple[int, int, int]]:
        """Parameter -> (start, stop, bucket) among all elements of the chunk."""
        return {
            parameter: (bucket.offset + start, bucket.offset + stop, bucket.bucket_id)
            for bucket in self.buckets
            for parameter, (start, stop) in bucket.places.items()
        }


class ShardedDataParallel(MegatronModule):
    """Wraps one model chunk in place of megatron-core's DistributedDataParallel."""

    def __init__(
        self,
        core_config: TransformerConfig,
        ddp_config: DistributedDataParallelConfig,
        module: torch.nn.Module,
        chunk: LlamaModel,
        group: dist.ProcessGroup,
        *,
        shards_weights: bool,
        reductions: deque[Reduction],
        bucket_size: int | None = None,
    ) -> None:
        """module: `chunk`, or a wrapper of it. group: the ranks that hold the same weights and read other data.

        reductions: under way, one queue for all chunks of this rank. bucket_size: elements; None:
        default_bucket_size().
        """
        super().__init__(config=core_config)
        self.module, self.ddp_config = module, ddp_config
        self.shards_weights = shards_weights
        self._size = bucket_size or default_bucket_size(group.size())
        self._group = group
        self._reduces_in_background = ddp_config.overlap_grad_reduce
        self._gathers_in_background = ddp_config.overlap_param_gather
        self._reductions = reductions
        self.units: list[Unit] = []
        for index, (parameters, backward, to_the_end) in enumerate(_units(chunk)):
            buckets = self._buckets(parameters)
            self.units.append(Unit(index, buckets, backward, to_the_end))
        self.all_buckets = [bucket for unit in self.units for bucket in unit.buckets]
        dtype = next(module.parameters()).dtype
        self.buffers = [Buffer(ddp_config, self.all_buckets, group, dtype)]
        self._watch(chunk)
        self.let_go()

    def _buckets(self, parameters: list[torch.nn.Parameter]) -> list[Bucket]:
        made: list[Bucket] = []
        before = sum(len(unit.buckets) for unit in self.units)
        offset = sum(bucket.numel for unit in self.units for bucket in unit.buckets)
        for group in cut(parameters, bucket_size=self._size):
            bucket = Bucket(
                group,
                bucket_id=before + len(made),
                offset=offset,
                group=self._group,
                reduce_dtype=torch.float32 if self.ddp_config.grad_reduce_in_fp32 else group[0].dtype,
                bucket_size=self._size,
                keeps_weights=not self.shards_weights,
            )
            offset += bucket.numel
            made.append(bucket)
        return made

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The wrapped module's."""
        return self.module(*inputs, **named)

    # What the trainer, megatron-core's schedules and finalize_model_grads call.

    def zero_grad_buffer(self) -> None:
        """Forget all gradients."""
        for bucket in self.all_buckets:
            bucket.gradients.zero_()

    def scale_gradients(self, scaling_factor: torch.Tensor | float) -> None:
        """Multiply this rank's gradients."""
        for bucket in self.all_buckets:
            bucket.gradients.mul_(scaling_factor)

    @torch.no_grad()
    def finish_grad_sync(self, force_all_reduce: bool | None = False) -> None:
        """After the last backward pass: this chunk's gradients are summed when this returns. Collective: the group."""
        assert not force_all_reduce, "a rank cannot hold all gradients"
        for bucket in self.all_buckets:
            if bucket.has_unsummed:  # a parameter without a gradient kept its bucket waiting; alike on every rank
                self._reduce(bucket)
        while self._reductions:
            self._reductions.popleft().finish()
        for unit in self.units:
            unit.awaited = unit.num_parameters
        self.let_go()

    def start_param_sync(self, *_: object, force_sync: bool = False, force_dispatch: bool = False) -> None:
        """After the optimizer: under stage 2 gather all weights. Stage 3 has none to gather. Collective: the group."""
        if not self.shards_weights:
            for unit in self.units:
                self._make_whole(unit)

    def go_stale(self) -> None:
        """The optimizer has written new weights to this rank's parts."""
        for bucket in self.all_buckets:
            bucket.go_stale()

    def let_go(self) -> None:
        """Under stage 3, give back the memory of all whole weights."""
        for bucket in self.all_buckets:
            bucket.let_go()

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """All weights readable within. Collective: the group."""
        for unit in self.units:
            self._make_whole(unit)
        yield
        self.let_go()

    def bucket_of(self) -> dict[torch.nn.Parameter, Bucket]:
        """Where each parameter lives."""
        return {parameter: bucket for bucket in self.all_buckets for parameter in bucket.params_list}

    # Around the modules.

    def _watch(self, chunk: LlamaModel) -> None:
        for unit in self.units:
            for bucket in unit.buckets:
                for parameter in bucket.params_list:
                    parameter.grad_added_to_main_grad = False  # type: ignore[attr-defined]
                    hook = partial(self._arrived, unit, bucket)
                    parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        by_parameter = {p: unit for unit in self.units for bucket in unit.buckets for p in bucket.params_list}
        for module in _entrances(chunk):
            unit = by_parameter[next(module.parameters())]
            module.register_forward_pre_hook(partial(self._enter, unit))
            if not unit.is_used_to_the_end:
                module.register_forward_hook(partial(self._exit, unit))
        chunk.register_forward_hook(self._end)

    @torch.no_grad()
    def _enter(self, unit: Unit, *_: object) -> None:
        """Before anything reads the unit's weights; the one after it, in the direction of this pass, is sent for."""
        self._make_whole(unit)
        if self._gathers_in_background:
            step = -1 if _is_backward() else 1
            if 0 <= unit.index + step < len(self.units):
                following = self.units[unit.index + step]
                if step > 0 or following.is_used_backward:
                    for bucket in following.buckets:
                        bucket.start_gather(in_background=True)

    def _make_whole(self, unit: Unit) -> None:
        for bucket in unit.buckets:
            bucket.start_gather(in_background=self._gathers_in_background)
        for bucket in unit.buckets:
            bucket.finish_gather()

    def _exit(self, unit: Unit, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if self.shards_weights and unit.is_used_backward:
            self._enter_before_backward(output, unit)
        if not _is_backward():  # else a layer is recomputed, and its backward pass follows at once
            for bucket in unit.buckets:
                bucket.let_go()

    def _end(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            self.let_go()
        elif self.shards_weights and self.units[-1].is_used_to_the_end:
            self._enter_before_backward(output, self.units[-1])

    def _enter_before_backward(self, output: Any, unit: Unit) -> None:
        """Have the weights whole before the node that made `output` goes backward."""
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(partial(self._enter, unit))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _arrived(self, unit: Unit, bucket: Bucket, parameter: torch.nn.Parameter) -> None:
        """A gradient is complete for this micro-batch."""
        if bucket.take(parameter):
            self._reduce(bucket)
        unit.awaited -= 1
        if unit.awaited == 0:
            # Every node that reads these weights has run: a gradient comes after all uses of its parameter.
            unit.awaited = unit.num_parameters
            for each in unit.buckets:
                each.let_go()

    def _reduce(self, bucket: Bucket) -> None:
        kept = REDUCTIONS_IN_FLIGHT if self._reduces_in_background else 0
        for reduction in bucket.reductions(in_background=self._reduces_in_background):
            self._reductions.append(reduction)
            while len(self._reductions) > kept:
                self._reductions.popleft().finish()


def _is_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _units(chunk: LlamaModel) -> Iterator[tuple[list[torch.nn.Parameter], bool, bool]]:
    """(parameters, is_used_backward, is_used_to_the_end) in forward order; every parameter of the chunk once."""
    layers = [list(layer.parameters()) for layer in chunk.decoder.layers]
    inside = {parameter for layer in layers for parameter in layer}
    first = list(chunk.embedding.parameters()) if chunk.pre_process else []
    last = [p for p in chunk.parameters() if p not in inside and not any(p is q for q in first)]
    is_tied = chunk.pre_process and chunk.post_process and chunk.share_embeddings_and_output_weights
    if is_tied:  # the embedding is the head too, and lives as long
        first, last = [], [*first, *last]
    if first:
        yield first, False, False
    yield from ((layer, True, False) for layer in layers)
    if last:
        yield last, True, True


def _entrances(chunk: LlamaModel) -> Iterable[torch.nn.Module]:
    """The modules whose call is the first use of a unit in a forward pass."""
    if chunk.pre_process:
        yield chunk.embedding
    yield from chunk.decoder.layers
    if chunk.post_process:
        yield chunk.decoder.final_layernorm
