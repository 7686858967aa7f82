"""Causal attention over the segments of a packed row on a CPU, forward and backward, by products of matrices.

torch's own flash kernel for CPUs multiplies small tiles; here a block of queries of all heads that share a key is one
product with all the keys it may see, which takes half the time (docs/performance.md). Memory grows with a segment's
length, not with its square: only one block's probabilities exist at a time, and the backward pass computes them again.

Scores and their softmax are in fp32, as in the flash kernel: rounded to bf16, a score of 20 would be off by 0.06.

Legend: t queries, s keys, np query heads, ng key/value groups, hn head dim, r = np / ng, b queries of a block, e keys
they see.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.autograd.function import once_differentiable

BLOCK_QUERIES, BLOCK_SCORES = 128, 1 << 19
"""A block has at most so many queries, and fewer, down to 32, where r heads of them would have more scores: 2 MB in
fp32. Measured; ours."""


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: Sequence[int],
    key_bounds: Sequence[int],
    scale: float,
) -> torch.Tensor:
    """q [t, np, hn], k and v [s, ng, hn] -> [t, np, hn]; a segment's queries are the last of its keys.

    Segment i has the queries bounds[i]:bounds[i + 1] and the keys key_bounds[i]:key_bounds[i + 1].
    """
    apply: Any = _Attention.apply
    out: torch.Tensor = apply(q, k, v, list(zip(pairwise(bounds), pairwise(key_bounds), strict=True)), scale)
    return out


Segments = Sequence[tuple[tuple[int, int], tuple[int, int]]]
"""(queries from, to), (keys from, to)."""


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.segments, ctx.scale = segments, scale
        out = q.new_empty(q.shape)
        future = _future(q.device)
        for heads, group in _groups(q, k):
            for (first, last), keys in segments:
                k_t = k[slice(*keys), group].float().t()  # [hn, s]
                values = v[slice(*keys), group].contiguous()
                for block, seen in _blocks(first, last, keys, r=q.shape[1] // k.shape[1]):
                    p = _probabilities(q[block, heads], k_t[:, :seen], future, scale)
                    out[block, heads] = (p @ values[:seen]).view(q[block, heads].shape)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: torch.Tensor) -> Any:
        q, k, v = ctx.saved_tensors
        dq, dk, dv = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
        future, hn = _future(q.device), q.shape[2]
        for heads, group in _groups(q, k):
            for (first, last), keys in ctx.segments:
                here = slice(*keys)
                key, v_t = k[here, group].contiguous(), v[here, group].contiguous().t()
                k_t = key.float().t()
                # Sums over blocks, in fp32.
                dk_sum, dv_sum = (torch.zeros(key.shape, dtype=k_t.dtype, device=key.device) for _ in range(2))
                for block, seen in _blocks(first, last, keys, r=q.shape[1] // k.shape[1]):
                    query, d = q[block, heads].reshape(-1, hn), d_out[block, heads].reshape(-1, hn)  # [b * r, hn]
                    p = _probabilities(q[block, heads], k_t[:, :seen], future, ctx.scale)
                    dv_sum[:seen] += p.t() @ d
                    d_scores = torch._softmax_backward_data(d @ v_t[:, :seen], p, -1, p.dtype)  # [b * r, e]
                    dq[block, heads] = (d_scores @ key[:seen]).mul_(ctx.scale).view(q[block, heads].shape)
                    dk_sum[:seen] += d_scores.t() @ query
                dk[here, group], dv[here, group] = dk_sum.mul_(ctx.scale), dv_sum
        return dq, dk, dv, None, None


def _groups(q: torch.Tensor, k: torch.Tensor) -> Iterator[tuple[slice, int]]:
    """The query heads that share each key/value group."""
    r = q.shape[1] // k.shape[1]
    return ((slice(group * r, (group + 1) * r), group) for group in range(k.shape[1]))


def _blocks(first: int, last: int, keys: tuple[int, int], *, r: int) -> Iterator[tuple[slice, int]]:
    """Blocks of the queries first:last, and how many of the segment's keys the last query of each sees."""
    ahead = keys[1] - keys[0] - last  # a query at position i sees the first i + 1 + ahead keys
    while first < last:
        fitting = BLOCK_SCORES // (r * (first + ahead + BLOCK_QUERIES))
        stop = min(last, first + min(BLOCK_QUERIES, max(32, fitting)))
        yield slice(first, stop), stop + ahead
        first = stop


def _future(device: torch.device) -> torch.Tensor:
    """[b, b] bool: keys that lie behind the query."""
    return torch.ones(BLOCK_QUERIES, BLOCK_QUERIES, dtype=torch.bool, device=device).triu_(1)


def _probabilities(q: torch.Tensor, k_t: torch.Tensor, future: torch.Tensor, scale: float) -> torch.Tensor:
    """q [b, r, hn], the last queries of k_t [hn, e] -> [b * r, e] in q's dtype."""
    b, r, hn = q.shape
    scores = q.to(k_t.dtype, copy=True).mul_(scale).view(b * r, hn) @ k_t  # [b * r, e]
    scores.view(b, r, -1)[:, :, -b:].masked_fill_(future[:b, None, :b], -torch.inf)
    return torch.softmax(scores, dim=-1).to(q.dtype)
