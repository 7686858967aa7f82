"""Causal attention over segments of different lengths on a GPU: the fastest kernel that is installed.

Legend: t queries, s keys, np query heads, ng key/value groups, hn head dim.
"""

import importlib
import importlib.util
from functools import cache
from typing import Literal

import torch

from data_mixers.errors import ConfigError

Source = Literal["flash-attn 3", "flash-attn 2", "torch varlen"]


@cache
def source() -> Source:
    """flash-attn where it is installed (3 is for Hopper alone), else the kernel that comes with torch.

    Errors: ConfigError for one that is installed and cannot be imported: often it was built for another torch.
    """
    is_hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    known: tuple[tuple[str, Source], ...] = (("flash_attn_interface", "flash-attn 3"), ("flash_attn", "flash-attn 2"))
    for module, name in known if is_hopper else known[1:]:
        if importlib.util.find_spec(module) is None:
            continue
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"{name} is installed and cannot be imported ({error}); build it again for torch {torch.__version__}, "
                "or uninstall it: torch has a kernel of its own"
            ) from error
        if hasattr(found, "flash_attn_varlen_func"):  # flash-attn 4 has a folder flash_attn without it
            return name
    return "torch varlen"


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
