"""Causal attention over segments of different lengths on a GPU: the fastest kernel that is installed.

Legend: t queries, s keys, np query heads, ng key/value groups, hn head dim.
"""

import importlib.util
from functools import cache
from typing import Literal

import torch

Source = Literal["flash-attn 3", "flash-attn 2", "torch varlen"]


@cache
def source() -> Source:
    """flash-attn where it is installed (3 is for Hopper alone), else the kernel that comes with torch."""
    is_hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    if is_hopper and importlib.util.find_spec("flash_attn_interface") is not None:
        return "flash-attn 3"
    return "flash-attn 2" if importlib.util.find_spec("flash_attn") is not None else "torch varlen"


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
) -> torch.Tensor:
    """q [t, np, hn], k and v [s, ng, hn] -> [t, np, hn]; a segment's queries are the last of its keys.

    All three align the causal border at the last query and the last key.
    """
    borders = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    match source():
        case "flash-attn 3":
            from flash_attn_interface import flash_attn_varlen_func as third

            out = third(q, k, v, *borders, softmax_scale=scale, causal=True)
            return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]
        case "flash-attn 2":
            from flash_attn import flash_attn_varlen_func as second

            return second(q, k, v, *borders, softmax_scale=scale, causal=True)  # type: ignore[no-any-return]
        case "torch varlen":
            return _by_torch(q, k, v, borders, scale)


Borders = tuple[torch.Tensor, torch.Tensor, int, int]


def _by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, borders: Borders, scale: float) -> torch.Tensor:
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # [s, np, hn]
    from torch.nn.attention.varlen import varlen_attn  # brings torch's compiler: not at the start of a CPU's rank

    out = varlen_attn(q, k, v, *borders, scale=scale, window_size=(-1, 0))
    assert isinstance(out, torch.Tensor)  # a pair only when auxiliary results are asked for
    return out
