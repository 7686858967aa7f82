"""RMSNorm and attention in plain torch, for any device: what is used where Transformer Engine is not.

Legend: t tokens of one packed row, np query heads and ng key/value groups on this TP rank, hn head dim.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from megatron_synE.model.packed_row import PackedRow
from megatron_synE.model.rope import rotate
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

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Under sequence parallelism each TP rank sees a part of the tokens: finalize_model_grads sums the gradient
        # of weights that carry this mark over TP. Without it losses look right and weights drift.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class NativeAttention(MegatronModule):
    """Causal attention inside each segment of a packed row, by torch's fused kernels."""

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
        if config.context_parallel_size != 1 or config.attention_dropout:
            raise AssertionError("native attention has neither context parallelism nor dropout")
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
        """query [t, np, hn], key and value [t, ng, hn] -> [t, np * hn]."""
        assert packed_seq_params is not None
        if query.is_cuda:
            return self._varlen(query, key, value, packed_seq_params)
        return self._by_segment(query, key, value, packed_seq_params.bounds)

    def _varlen(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, row: PackedRow) -> torch.Tensor:
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # [t, np, hn]
        out = varlen_attn(
            q, k, v, row.cu_seqlens_q, row.cu_seqlens_kv, row.max_seqlen_q, row.max_seqlen_kv,
            scale=self.scale, window_size=(-1, 0),
        )  # fmt: skip
        assert isinstance(out, torch.Tensor)  # a pair only when auxiliary results are asked for
        return out.reshape(out.shape[0], -1)  # [t, np * hn]

    def _by_segment(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: tuple[int, ...]
    ) -> torch.Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))  # [1, heads, t, hn], views
        grouped = q.shape[1] != k.shape[1]
        # Split, not sliced: a slice's gradient is written into a zeroed tensor of the whole row, one for each segment.
        lengths = [stop - start for start, stop in pairwise(bounds)]
        queries, keys, values = (torch.split(x, lengths, dim=2) for x in (q, k, v))  # each [1, heads, length, hn]
        parts = [
            scaled_dot_product_attention(a, b, c, is_causal=True, scale=self.scale, enable_gqa=grouped)
            for a, b, c in zip(queries, keys, values, strict=True)
        ]
        out = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]  # [1, np, t, hn]
        return out.squeeze(0).transpose(0, 1).reshape(query.shape[0], -1)  # [t, np * hn]

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}


class RotaryCoreAttention(MegatronModule):
    """Turns queries and keys by their positions in the document, then calls the core attention it wraps.

    megatron-core's own RoPE ignores reset positions; applying it here works alike for native attention and for
    Transformer Engine's, under every layout.
    """

    def __init__(self, config: TransformerConfig, core_attention: ModuleSpec | type, **kwargs: Any) -> None:
        super().__init__(config=config)
        pg_collection = kwargs.get("pg_collection") or ProcessGroupCollection.use_mpu_process_groups()
        self.core = build_module(core_attention, config=config, **(kwargs | {"pg_collection": pg_collection}))

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
        """query [t, np, hn], key and value [t, ng, hn] -> [t, np * hn]."""
        assert packed_seq_params is not None and packed_seq_params.rotary_cos is not None
        cos, sin = packed_seq_params.rotary_cos, packed_seq_params.rotary_sin
        assert sin is not None
        return self.core(  # type: ignore[no-any-return]
            rotate(query, cos, sin),
            rotate(key, cos, sin),
            value,
            attention_mask,
            attn_mask_type=attn_mask_type,
            attention_bias=attention_bias,
            packed_seq_params=packed_seq_params,
        )
