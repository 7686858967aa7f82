"""A CPU's attention by blocks against attention written out in float64."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from megatron_synE.kernels import cpu_attention
from megatron_synE.kernels.cpu_attention import attend

SEGMENTS = {
    "one": ([0, 300], [0, 300]),
    "borders at and beside a block's": ([0, 1, 128, 257, 386], [0, 1, 128, 257, 386]),
    "short ones, joined in blocks of at most 64": (
        [0, 3, 20, 60, 63, 64, 65, 129, 300, 310, 330],
        [0, 3, 20, 60, 63, 64, 65, 129, 300, 310, 330],
    ),
    "short ones behind keys of a chunk before": ([0, 9, 12, 30, 31], [0, 40, 43, 61, 62]),
    "more keys than queries, as in a chunk of a row": ([0, 140, 200], [0, 331, 391]),
}


def written_out(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: list[int], key_bounds: list[int], scale: float
) -> torch.Tensor:
    """Query by query, head by head."""
    rows = []
    for (first, last), (low, high) in zip(pairwise(bounds), pairwise(key_bounds), strict=True):
        for query in range(first, last):
            seen = slice(low, high - (last - 1 - query))
            heads = []
            for head in range(q.shape[1]):
                group = head // (q.shape[1] // k.shape[1])
                p = torch.softmax(k[seen, group] @ q[query, head] * scale, dim=0)
                heads.append(p @ v[seen, group])
            rows.append(torch.stack(heads))
    return torch.stack(rows)


def drawn(
    bounds: list[int], key_bounds: list[int], *, heads: int, groups: int, hn: int, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Queries, keys, values and the gradient of what comes out."""
    generator = torch.Generator().manual_seed(7)
    shapes = [(bounds[-1], heads), (key_bounds[-1], groups), (key_bounds[-1], groups), (bounds[-1], heads)]
    return [torch.randn(*shape, hn, generator=generator).to(dtype) for shape in shapes]


def with_gradients(
    function: Callable[..., torch.Tensor], inputs: list[torch.Tensor], *rest: object
) -> list[torch.Tensor]:
    """What comes out, and the gradients of queries, keys and values."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs[:3]]
    out = function(*leaves, *rest)
    out.backward(inputs[3])
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize(("heads", "groups"), [(3, 1), (2, 2)])
def test_output_and_gradients_are_those_of_attention_written_out(name: str, heads: int, groups: int) -> None:
    bounds, key_bounds = SEGMENTS[name]
    inputs = drawn(bounds, key_bounds, heads=heads, groups=groups, hn=8, dtype=torch.float64)
    expected = with_gradients(written_out, inputs, bounds, key_bounds, 0.3)
    for ours, theirs in zip(with_gradients(attend, inputs, bounds, key_bounds, 0.3), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_short_segments_are_one_block_while_they_fit() -> None:
    bounds = [0, 9, 40, 64, 65, 66, 200, 201]
    joined = cpu_attention._short_ones_joined(bounds, bounds, torch.empty(201, 2, 3, 8))
    assert [segment.queries for segment in joined] == [(0, 64), (64, 66), (66, 200), (200, 201)]
    hidden = joined[0].hidden
    assert [int((~row).sum()) for row in hidden] == [*range(1, 10), *range(1, 32), *range(1, 25)]


def test_many_heads_to_a_group_join_no_more_than_one_block_holds() -> None:
    bounds = [0, 20, 60, 61, 90]
    inputs = drawn(bounds, bounds, heads=71, groups=1, hn=8, dtype=torch.float64)  # Falcon-7B's
    expected = with_gradients(written_out, inputs, bounds, bounds, 0.3)
    for ours, theirs in zip(with_gradients(attend, inputs, bounds, bounds, 0.3), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_smaller_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = [0, 500, 777, 800, 825, 840]
    inputs = drawn(bounds, bounds, heads=4, groups=2, hn=16, dtype=torch.float64)
    expected = with_gradients(attend, inputs, bounds, bounds, 0.25)
    monkeypatch.setattr(cpu_attention, "BLOCK_SCORES", 2 * 40 * 400)
    sizes = {block.stop - block.start for block, _ in cpu_attention._blocks(slice(0, 500), slice(0, 500), r=2)}
    assert 32 in sizes and len(sizes) > 2, "or nothing is tried here"
    for ours, theirs in zip(with_gradients(attend, inputs, bounds, bounds, 0.25), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_bf16_is_as_near_to_float64_as_torchs_own_kernel() -> None:
    bounds = [0, 333, 512]
    inputs = drawn(bounds, bounds, heads=6, groups=2, hn=64, dtype=torch.bfloat16)
    exact = with_gradients(written_out, [x.double() for x in inputs], bounds, bounds, 0.125)

    def by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [
                torch.nn.functional.scaled_dot_product_attention(
                    *(x[first:last].transpose(0, 1).unsqueeze(0) for x in (q, k, v)), is_causal=True, enable_gqa=True
                )[0].transpose(0, 1)
                for first, last in pairwise(bounds)
            ]
        )

    def distances(found: list[torch.Tensor]) -> list[float]:
        return [float((x.double() - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True)]

    ours = distances(with_gradients(attend, inputs, bounds, bounds, 0.125))
    torchs = distances(with_gradients(by_torch, inputs))
    # Probabilities are rounded to bf16 (2^-9 at most, 2^-10 on average) before each product, as flash kernels do.
    assert max(ours) < 2**-8
    for mine, theirs in zip(ours, torchs, strict=True):
        assert mine < 1.5 * theirs


def test_large_scores_stay_exact_and_nothing_leaks_from_the_future() -> None:
    bounds = [0, 200]
    q, k, v, _ = drawn(bounds, bounds, heads=2, groups=1, hn=16, dtype=torch.bfloat16)
    q, k = q * 30, k * 30  # scores of thousands
    out = attend(q, k, v, bounds, bounds, 0.25)
    exact = written_out(q.double(), k.double(), v.double(), bounds, bounds, 0.25)
    torch.testing.assert_close(out.double(), exact, rtol=2**-7, atol=2**-7)
    k[150:], v[150:] = 1e6, -1e6
    torch.testing.assert_close(attend(q, k, v, bounds, bounds, 0.25)[:150], out[:150], rtol=0, atol=0)


def test_a_nan_is_handed_on_in_its_own_segment_alone() -> None:
    bounds = [0, 60, 130]
    inputs = drawn(bounds, bounds, heads=2, groups=1, hn=16, dtype=torch.bfloat16)
    inputs[1][5] = math.nan
    out, dq, dk, dv = with_gradients(attend, inputs, bounds, bounds, 0.25)
    assert out[5:60].isnan().all() and dq[5:60].isnan().all()
    assert all(bool(x[60:].isfinite().all()) for x in (out, dq, dk, dv))


@pytest.mark.parametrize(
    ("bounds", "key_bounds"), [([0, 20], [0, 30]), ([0, 30], [0, 20]), ([5, 30], [0, 30]), ([0, 30], [5, 30])]
)
def test_segments_that_leave_out_a_part_of_the_row_are_refused(bounds: list[int], key_bounds: list[int]) -> None:
    q, k, v, _ = drawn([0, 30], [0, 30], heads=2, groups=1, hn=8, dtype=torch.bfloat16)
    with pytest.raises(AssertionError, match="do not cover the row"):
        attend(q, k, v, bounds, key_bounds, 0.25)
