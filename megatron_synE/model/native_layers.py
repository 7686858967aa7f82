"""RMSNorm and attention in plain torch, for any device: what is used where Transformer Engine is not.

Legend: t tokens of one packed row, cp context-parallel ranks, np query heads and ng key/value groups on this TP rank,
hn head dim.
"""

import copy
import math
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from megatron_synE.kernels import attention as varlen
from megatron_synE.kernels import cpu_attention, plain
from megatron_synE.kernels.choice import PLAIN, Kernels
from megatron_synE.model.context_parallel import attend
from megatron_synE.model.packed_row import PackedRow
from megatron_synE.runtime.mcore import (
    AttnMaskType,
    MegatronModule,
    ModuleSpec,
    ProcessGroupCollection,
    TransformerConfig,
    build_module,
)


class RMSNorm(torch.nn.Module):
    """x / rms(x) * weight."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, kernels: Kernels = PLAIN, **_: object
    ) -> None:
        super().__init__()
        self.eps, self.norm = eps, kernels.rms_norm
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Under sequence parallelism each TP rank sees a part of the tokens: finalize_model_grads sums the gradient
        # of weights that carry this mark over TP. Without it losses look right and weights drift.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x, self.weight, self.eps)


class SwiGLU(torch.nn.Module):
    """The MLP's whole activation, of gate and up side by side."""

    def __init__(self, config: TransformerConfig, kernels: Kernels = PLAIN) -> None:
        super().__init__()
        self.swiglu = kernels.swiglu or plain.swiglu

    def forward(self, gate_and_up: torch.Tensor) -> torch.Tensor:
        return self.swiglu(gate_and_up)

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}


class NativeAttention(MegatronModule):
    """Causal attention inside each segment of a packed row, or of a chunk of one."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: object,
    ) -> None:
        super().__init__(config=config)
        if config.attention_dropout:
            raise AssertionError("native attention has no dropout")
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedRow | None = None,
    ) -> torch.Tensor:
        """query [t, np, hn], key and value [t, ng, hn] -> [t, np * hn]; in a chunk there are more keys than queries."""
        row = packed_seq_params
        assert row is not None
        if query.dtype == torch.float32:  # flash kernels have none
            return self._by_segment(query, key, value, row)
        if query.is_cuda:
            borders = (row.cu_seqlens_q, row.cu_seqlens_kv, row.max_seqlen_q, row.max_seqlen_kv)
            out = varlen.attend(query, key, value, *borders, self.scale)  # [t, np, hn]
        else:
            out = cpu_attention.attend(query, key, value, row.bounds, row.key_bounds, self.scale)  # [t, np, hn]
        return out.flatten(1)  # [t, np * hn]

    @staticmethod
    def source(is_cuda: bool) -> str:
        """Whose kernel it is."""
        return varlen.source() if is_cuda else "products by blocks in bf16, torch SDPA in fp32"

    def _by_segment(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: PackedRow) -> torch.Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))  # [1, heads, t, hn], views
        grouped = q.shape[1] != k.shape[1]
        # Split, not sliced: a slice's gradient is written into a zeroed tensor of the whole row, one for each segment.
        queries, keys = ([stop - start for start, stop in pairwise(ends)] for ends in (row.bounds, row.key_bounds))
        parts = []
        for q_part, k_part, v_part in zip(
            torch.split(q, queries, dim=2), torch.split(k, keys, dim=2), torch.split(v, keys, dim=2), strict=True
        ):
            # In a chunk's first segment there may be keys before the first query.
            num_queries, num_keys = q_part.shape[2], k_part.shape[2]
            is_whole = num_queries == num_keys
            mask = None if is_whole else _lower_right(num_queries, num_keys, q.device)
            parts.append(
                scaled_dot_product_attention(
                    q_part, k_part, v_part, attn_mask=mask, is_causal=is_whole, scale=self.scale, enable_gqa=grouped
                )
            )
        out = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]  # [1, np, t, hn]
        return out.squeeze(0).transpose(0, 1).reshape(query.shape[0], -1)  # [t, np * hn]

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}


def _lower_right(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """[queries, keys] bool: the last query sees every key, each one before it one fewer."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class RotaryCoreAttention(MegatronModule):
    """Turns queries and keys by their positions in the document, then calls the core attention it wraps.

    megatron-core's own RoPE ignores reset positions; applying it here works alike for native attention and for
    Transformer Engine's, under every layout. So does context parallelism, which the wrapped attention never hears of.
    """

    def __init__(
        self,
        config: TransformerConfig,
        core_attention: ModuleSpec | type,
        chunk_mask_type: Any,
        kernels: Kernels = PLAIN,
        **kwargs: Any,
    ) -> None:
        """chunk_mask_type: what the core calls causal attention of queries that are the last of their keys."""
        super().__init__(config=config)
        pg_collection = kwargs.get("pg_collection") or ProcessGroupCollection.use_mpu_process_groups()
        self.context_parallel_group = pg_collection.cp
        self.chunk_mask_type, self.rotate = chunk_mask_type, kernels.rotate
        kwargs.pop("cp_comm_type", None)
        alone = copy.copy(config)
        alone.context_parallel_size = 1
        self.core = build_module(core_attention, config=alone, **(kwargs | {"pg_collection": pg_collection}))

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedRow | None = None,
    ) -> torch.Tensor:
        """query [t / cp, np, hn], key and value [t / cp, ng, hn] -> [t / cp, np * hn]."""
        assert packed_seq_params is not None and packed_seq_params.rotary_cos is not None
        cos, sin = packed_seq_params.rotary_cos, packed_seq_params.rotary_sin
        assert sin is not None
        query, key = self.rotate(query, cos, sin), self.rotate(key, cos, sin)
        if packed_seq_params.chunks:
            return attend(self._of_chunk, query, key, value, packed_seq_params, self.context_parallel_group)
        return self.core(  # type: ignore[no-any-return]
            query,
            key,
            value,
            attention_mask,
            attn_mask_type=attn_mask_type,
            attention_bias=attention_bias,
            packed_seq_params=packed_seq_params,
        )

    def _of_chunk(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, chunk: PackedRow) -> torch.Tensor:
        return self.core(  # type: ignore[no-any-return]
            query, key, value, None, attn_mask_type=self.chunk_mask_type, packed_seq_params=chunk
        )
