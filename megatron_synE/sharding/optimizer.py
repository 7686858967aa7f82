"""megatron-core's distributed optimizer on parts: it reads gradients from them and writes weights to them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from megatron_synE.runtime.mcore import OptimizerConfig, mcore_distrib_optimizer
from megatron_synE.sharding.bucket import Bucket
from megatron_synE.sharding.data_parallel import ShardedDataParallel


class ShardedOptimizer(mcore_distrib_optimizer.DistributedOptimizer):
    """Groups, masters, moments, clipping and the gradient norm are megatron-core's."""

    def _pairs(self) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
        """(parameter, fp32 master of this rank's range) of all that it updates."""
        for whole_groups, own_groups in (
            (self.model_float16_groups, self.shard_fp32_from_float16_groups),
            (self.model_fp32_groups, self.shard_fp32_groups),
        ):
            for whole_group, own_group in zip(whole_groups, own_groups, strict=True):
                yield from zip(whole_group, own_group, strict=True)

    def buckets(self) -> dict[torch.nn.Parameter, Bucket]:
        """Where each parameter lives."""
        return {p: bucket for module in self.model_chunks for p, bucket in module.bucket_of().items()}

    def _copy_model_grads_to_main_grads(self) -> None:
        for parameter, master in self._pairs():
            master.grad = parameter.main_grad  # type: ignore[attr-defined]

    def _copy_main_params_to_model_params(self) -> None:
        buckets = self.buckets()
        for parameter, master in self._pairs():
            own = buckets[parameter].own_weights(parameter)
            if own.data_ptr() != master.data_ptr():  # in fp32 they are the same memory
                own.copy_(master)
        for module in self.model_chunks:
            module.go_stale()

    def start_param_sync_for_bucket_group_subset(self) -> None:
        """What megatron-core 0.19 calls after the step, for its own bucket groups; 0.16 calls each chunk itself."""
        for module in self.model_chunks:
            module.start_param_sync()


def on_parts(
    build: Callable[[OptimizerConfig, Sequence[ShardedDataParallel]], Any],
    config: OptimizerConfig,
    modules: Sequence[ShardedDataParallel],
) -> ShardedOptimizer:
    """The DistributedOptimizer that `build` makes, at work on the parts of `modules`. Collective: every rank."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.whole_weights())  # its masters are copies, in fp32 views, of whole weights
        optimizer = build(config, modules)
    # megatron-core names the class that it builds; the methods replaced here keep nothing of their own.
    optimizer.__class__ = ShardedOptimizer
    assert isinstance(optimizer, ShardedOptimizer)
    for parameter, (group, order) in optimizer.model_param_group_index_map.items():
        if parameter.dtype == torch.float32:  # the weight is its own master, and lives in the part
            own = optimizer.buckets()[parameter].own_weights(parameter)
            optimizer.optimizer.param_groups[group]["params"][order].data = own
    return optimizer
