"""megatron-core's parallel linear layers with their matrix products in FP8; what crosses ranks stays as it was."""

from typing import Any

import torch

from megatron_synE.kernels.float8 import Format, Recipe, linear
from megatron_synE.runtime.mcore import ColumnParallelLinear, RowParallelLinear, tensor_parallel


class _Float8:
    """The product of one rank; megatron-core's layers call it between their collectives."""

    form: Format
    recipe: Recipe

    def _forward_impl(
        self,
        input: torch.Tensor,  # megatron-core passes it by this name
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        tp_group: Any,
        **_: object,
    ) -> torch.Tensor:
        assert bias is None
        if sequence_parallel:
            input = tensor_parallel.gather_from_sequence_parallel_region(input, group=tp_group)
        elif allreduce_dgrad:
            input = tensor_parallel.copy_to_tensor_model_parallel_region(input, group=tp_group)
        return linear(input, weight, form=self.form, recipe=self.recipe)


class Float8ColumnParallelLinear(_Float8, ColumnParallelLinear):
    """Outputs split over TP ranks."""

    def __init__(self, *args: Any, form: Format, recipe: Recipe, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.form, self.recipe = form, recipe


class Float8RowParallelLinear(_Float8, RowParallelLinear):
    """Inputs split over TP ranks; megatron-core sums the products."""

    def __init__(self, *args: Any, form: Format, recipe: Recipe, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.form, self.recipe = form, recipe
