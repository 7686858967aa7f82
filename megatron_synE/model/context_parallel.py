"""Causal attention over a row that is spread over ranks: keys and values are gathered, queries stay where they are.

Legend: t tokens of the row, cp context-parallel ranks, np query heads and ng key/value groups on this TP rank,
hn head dim.

Grouped queries make keys and values small (an eighth of the queries' width each in Llama-3-8B), so one all-gather costs
less than a ring's rounds are worth, and documents of any length need no padding. Source: arXiv 2407.21783, 3.3.2.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

from megatron_synE.model.packed_row import PackedRow
from megatron_synE.runtime.mcore import tensor_parallel

Core = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, PackedRow], torch.Tensor]
"""(query, key, value, row) -> [queries, np * hn]."""


def attend(
    core: Core, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: PackedRow, group: dist.ProcessGroup
) -> torch.Tensor:
    """query [t / cp, np, hn], key and value [t / cp, ng, hn] -> [t / cp, np * hn].

    Collective: `group`, going forward and going backward.
    """
    both = gather_row(torch.stack((key, value), dim=1), group)  # [t, 2, ng, hn]
    keys, values = both.unbind(1)  # [t, ng, hn], views
    parts = query.chunk(len(row.chunks))
    return torch.cat(
        [
            core(part, keys[chunk.keys], values[chunk.keys], chunk.row)
            for part, chunk in zip(parts, row.chunks, strict=True)
        ]
    )


def gather_row(part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """[t / cp, ...] of every rank -> [t, ...] in the order of the row; gradients are summed and scattered back.

    Collective: `group`.
    """
    gathered = tensor_parallel.gather_from_sequence_parallel_region(part, group=group)  # [cp * t / cp, ...]
    by_rank = gathered.view(group.size(), 2, -1, *part.shape[1:])  # [cp, 2, t / 2cp, ...]
    return torch.cat((by_rank[:, 0], by_rank[:, 1].flip(0))).flatten(0, 1)  # [t, ...]
