"""Causal attention over the segments of a packed row on a CPU, forward and backward, by products of matrices.

torch's own flash kernel for CPUs multiplies small tiles; here a block of queries of all heads that share a key is one
product with all the keys it may see, which takes half the time (docs/performance.md). Memory grows with a segment's
length, not with its square: only one block's probabilities exist at a time, and the backward pass computes them again.

Scores and their softmax are in fp32, as in the flash kernel (of float64 in float64): rounded to bf16, a score of 20
would be off by 0.06.

Legend: t queries, s keys, np query heads, ng key/value groups, hn head dim, r = np / ng, g groups at a time, b queries
of a block, e keys they see.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.autograd.function import once_differentiable

BLOCK_QUERIES, BLOCK_SCORES = 128, 1 << 19
"""A block has at most so many queries, and fewer, down to 32, where one group would have more scores: 2 MB in fp32.
Short segments take several groups at a time. Measured; ours."""
JOINED_QUERIES = 64
"""Neighbouring segments that have no more queries together are one block, of which each sees its own part: the products
of a short one cost less than its calls. Measured; ours."""


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: Sequence[int], key_bounds: Sequence[int], scale: float
) -> torch.Tensor:
    """q [t, np, hn], k and v [s, ng, hn] -> [t, np, hn]; a segment's queries are the last of its keys.

    Segment i has the queries bounds[i]:bounds[i + 1] and the keys key_bounds[i]:key_bounds[i + 1].
    """
    ends = (bounds[0], bounds[-1], key_bounds[0], key_bounds[-1])
    assert ends == (0, len(q), 0, len(k)), "segments do not cover the row"
    apply: Any = _Attention.apply
    grouped = q.reshape(len(q), k.shape[1], q.shape[1] // k.shape[1], q.shape[2])  # [t, ng, r, hn]
    out: torch.Tensor = apply(grouped, k, v, _short_ones_joined(bounds, key_bounds, grouped), scale)
    return out.flatten(1, 2)


@dataclass(frozen=True)
class _Segment:
    """Queries that see keys up to themselves; or several short segments side by side, as one block."""

    queries: tuple[int, int]
    keys: tuple[int, int]
    hidden: torch.Tensor
    """[b, b] bool: which of a block's last keys its queries do not see; at least as large as a block."""


def _short_ones_joined(bounds: Sequence[int], key_bounds: Sequence[int], q: torch.Tensor) -> list[_Segment]:
    """The segments in order; neighbours of as many keys as queries become one while they fit in one block.

    A NaN in a value reaches all rows of its block: 0 times NaN.
    """
    device, most = q.device, min(JOINED_QUERIES, _most_queries(q.shape[2], BLOCK_QUERIES))
    future = torch.ones(BLOCK_QUERIES, BLOCK_QUERIES, dtype=torch.bool, device=device).triu_(1)
    segments: list[_Segment] = []
    lengths: list[int] = []  # of those that are waiting to be joined; they end where the next one begins

    def join() -> None:
        if lengths:
            numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)  # [b]
            b = len(numbers)
            hidden = future if len(lengths) == 1 else (numbers[:, None] != numbers) | future[:b, :b]
            segments.append(_Segment((first - b, first), (low - b, low), hidden))
            lengths.clear()

    for (first, last), (low, high) in zip(pairwise(bounds), pairwise(key_bounds), strict=True):
        is_short = last - first == high - low <= most
        if not is_short or sum(lengths) + last - first > most:
            join()
        if is_short:
            lengths.append(last - first)
        else:
            segments.append(_Segment((first, last), (low, high), future))
    first, low = bounds[-1], key_bounds[-1]
    join()
    return segments


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Sequence[_Segment], scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.segments, ctx.scale = segments, scale
        out = q.new_empty(q.shape)
        for queries, keys, groups, hidden in _parts(q, segments):
            k_t = _wide(k[keys, groups]).permute(1, 2, 0)  # [g, hn, s]
            values = v[keys, groups].transpose(0, 1).contiguous()  # [g, s, hn]
            for block, seen in _blocks(queries, keys, r=q.shape[2]):
                query = q[block, groups]
                p = _probabilities(query, k_t[:, :, :seen], hidden, scale)
                out[block, groups] = _by_query(torch.bmm(p, values[:, :seen]), query)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: torch.Tensor) -> Any:
        q, k, v = ctx.saved_tensors
        dq, dk, dv = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
        for queries, keys, groups, hidden in _parts(q, ctx.segments):
            key, value = (x[keys, groups].transpose(0, 1).contiguous() for x in (k, v))  # [g, s, hn]
            k_t, v_t = _wide(key).transpose(1, 2), value.transpose(1, 2)
            dk_sum, dv_sum = torch.zeros(2, *key.shape, dtype=k_t.dtype, device=key.device)  # over blocks, in fp32
            for block, seen in _blocks(queries, keys, r=q.shape[2]):
                query, d = q[block, groups], _by_group(d_out[block, groups])  # [b, g, r, hn], [g, b * r, hn]
                p = _probabilities(query, k_t[:, :, :seen], hidden, ctx.scale)  # [g, b * r, e]
                dv_sum[:, :seen] += torch.bmm(p.transpose(1, 2), d)
                d_scores = torch._softmax_backward_data(torch.bmm(d, v_t[:, :, :seen]), p, -1, p.dtype)
                dq[block, groups] = _by_query(torch.bmm(d_scores, key[:, :seen]).mul_(ctx.scale), query)
                dk_sum[:, :seen] += torch.bmm(d_scores.transpose(1, 2), _by_group(query))
            dk[keys, groups], dv[keys, groups] = dk_sum.mul_(ctx.scale).transpose(0, 1), dv_sum.transpose(0, 1)
        return dq, dk, dv, None, None


def _parts(q: torch.Tensor, segments: Sequence[_Segment]) -> Iterator[tuple[slice, slice, slice, torch.Tensor]]:
    """Queries, keys, as many groups as have their scores in one block, and what is hidden."""
    _, num_groups, r, _ = q.shape
    for segment in segments:
        (first, last), (low, high) = segment.queries, segment.keys
        scores = r * min(last - first, BLOCK_QUERIES) * (high - low)
        step = max(1, BLOCK_SCORES // max(1, scores))
        for group in range(0, num_groups, step):
            yield slice(first, last), slice(low, high), slice(group, group + step), segment.hidden


def _blocks(queries: slice, keys: slice, *, r: int) -> Iterator[tuple[slice, int]]:
    """Blocks of a segment's queries, and how many of its keys the last query of each sees."""
    first, last = queries.start, queries.stop
    ahead = keys.stop - keys.start - last  # a query at position i sees the first i + 1 + ahead keys
    while first < last:
        stop = min(last, first + _most_queries(r, first + ahead + BLOCK_QUERIES))
        yield slice(first, stop), stop + ahead
        first = stop


def _most_queries(r: int, keys: int) -> int:
    """Of one block that sees so many keys."""
    return min(BLOCK_QUERIES, max(32, BLOCK_SCORES // (r * keys)))


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _by_group(x: torch.Tensor) -> torch.Tensor:
    """[b, g, r, hn] -> [g, b * r, hn]."""
    return x.transpose(0, 1).flatten(1, 2)


def _by_query(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[g, b * r, hn] -> [b, g, r, hn]."""
    b, g, r, hn = like.shape
    return x.view(g, b, r, hn).transpose(0, 1)


def _probabilities(q: torch.Tensor, k_t: torch.Tensor, hidden: torch.Tensor, scale: float) -> torch.Tensor:
    """q [b, g, r, hn], the last queries of k_t [g, hn, e] -> [g, b * r, e] in q's dtype."""
    b, g, r, _ = q.shape
    scores = torch.bmm(_by_group(q).to(k_t.dtype) * scale, k_t)  # [g, b * r, e]
    scores.view(g, b, r, -1)[..., -b:].masked_fill_(hidden[:b, None, :b], -torch.inf)
    return torch.softmax(scores, dim=-1).to(q.dtype)
