"""The head in chunks gives the loss and the gradients of float64, and its memory does not hold the logits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from megatron_synE.model import head
from megatron_synE.model.head import linear_cross_entropy, vocabulary_part
from megatron_synE.model.head_sizes import CHUNK_ELEMENTS, PIECE_ELEMENTS, chunk_tokens
from megatron_synE.trainer import _loss
from tests import tiny

RANK = Path(__file__).with_name("head_rank.py")
VOCABULARY, ROWS, HIDDEN = 1003, 1024, 48
"""21 rows are padding."""
# bf16: logits are rounded to 2^-9 of themselves (here up to 2.6, so 0.005), gradients to 2^-9 of their largest parts.
TOLERANCE = {
    torch.float32: {"atol": 2e-6, "rtol": 2e-6},
    torch.bfloat16: {"atol": 2e-2, "rtol": 2e-2},
}


@pytest.fixture(autouse=True)
def _odd_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chunks of at most 11 tokens in pieces of 3; memory that nobody has written to holds NaN, not by luck zeros."""
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 11 * ROWS + 5)
    monkeypatch.setitem(PIECE_ELEMENTS, "cpu", 3 * VOCABULARY + 5)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def drawn(num_tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden, weight, labels, mask."""
    torch.manual_seed(num_tokens)
    hidden = (0.3 * torch.randn(num_tokens, HIDDEN)).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(ROWS, HIDDEN)).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, VOCABULARY, (num_tokens,)), (torch.rand(num_tokens) > 0.2).float()


def by_float64(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, factors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """NLL, and the gradients of sum(factors * NLL)."""
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    nll = cross_entropy(h @ w[:VOCABULARY].t(), labels, reduction="none")
    gradients = torch.autograd.grad((nll * factors.double()).sum(), (h, w))
    return nll.detach(), *gradients


def fused(*arguments: Any, **named: Any) -> torch.Tensor:
    return linear_cross_entropy(*arguments, vocabulary_part(ROWS, vocab_size=VOCABULARY), **named)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 10, 11, 12, 37])
def test_loss_and_gradients_are_those_of_float64(num_tokens: int, dtype: torch.dtype) -> None:
    hidden, weight, labels, mask = drawn(num_tokens, dtype)
    nll, d_hidden, d_weight = by_float64(hidden, weight, labels, 0.25 * mask)
    found = fused(hidden, weight, labels, token_weights=mask)
    (0.25 * found.sum()).backward()
    assert found.dtype == torch.float32 and hidden.grad is not None and weight.grad is not None
    torch.testing.assert_close(found.double(), nll * mask, **TOLERANCE[dtype])
    torch.testing.assert_close(hidden.grad.double(), d_hidden, **TOLERANCE[dtype])
    torch.testing.assert_close(weight.grad.double(), d_weight, **TOLERANCE[dtype])
    assert not weight.grad[VOCABULARY:].any()
    with torch.no_grad():
        torch.testing.assert_close(fused(hidden, weight, labels).double(), nll, **TOLERANCE[dtype])


def test_any_gradient_per_token_comes_through() -> None:
    hidden, weight, labels, mask = drawn(37, torch.float32)
    factors = torch.linspace(-1, 2, 37)
    _, d_hidden, d_weight = by_float64(hidden, weight, labels, mask * factors)
    loss = (factors * fused(hidden, weight, labels, token_weights=mask)).sum()
    loss.backward(retain_graph=True)
    assert hidden.grad is not None and weight.grad is not None
    torch.testing.assert_close(hidden.grad.double(), d_hidden, **TOLERANCE[torch.float32])
    torch.testing.assert_close(weight.grad.double(), d_weight, **TOLERANCE[torch.float32])
    loss.backward()  # once more into the same gradients
    torch.testing.assert_close(hidden.grad.double(), 2 * d_hidden, atol=4e-6, rtol=4e-6)


def test_a_second_backward_pass_gives_the_same_again() -> None:
    hidden, weight, labels, _ = drawn(12, torch.float32)
    loss = 0.5 * fused(hidden, weight, labels).sum()
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(loss, (hidden, weight))
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    hidden, weight, labels, _ = drawn(12, torch.float32)
    _, d_hidden, d_weight = by_float64(hidden, weight, labels, torch.ones(12))
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    fused(hidden, weight, labels).sum().backward()
    left, expected = (weight, d_weight) if frozen == "hidden" else (hidden, d_hidden)
    assert (hidden if frozen == "hidden" else weight).grad is None and left.grad is not None
    torch.testing.assert_close(left.grad.double(), expected, **TOLERANCE[torch.float32])


def test_training_computes_the_head_once_a_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, shipped = [], head._computed
    monkeypatch.setattr(head, "_computed", lambda *given: calls.append(1) or shipped(*given))
    hidden, weight, labels, mask = drawn(12, torch.float32)
    batch: Any = type("Batch", (), {"loss_mask": mask.unsqueeze(0)})
    total, tokens, _ = _loss(batch, fused(hidden, weight, labels, token_weights=mask).unsqueeze(0))
    total.backward()
    assert len(calls) == 1 and int(tokens) == int(mask.sum())


def test_large_logits_stay_finite_and_exact() -> None:
    hidden, weight, labels, _ = drawn(12, torch.float32)
    with torch.no_grad():
        hidden.mul_(1e5)  # logits of some 3e5: exp of them is infinite
    nll, _, d_weight = by_float64(hidden, weight, labels, torch.ones(12))
    found = fused(hidden, weight, labels)
    found.sum().backward()
    assert weight.grad is not None
    # The products themselves carry 1e-7 of 3e5; a gradient is that of a max, times 3e4.
    torch.testing.assert_close(found.double(), nll, atol=0.1, rtol=1e-5)
    torch.testing.assert_close(weight.grad.double(), d_weight, atol=3e2, rtol=1e-2)


def test_a_bf16_label_that_is_nearly_sure_keeps_its_gradient() -> None:
    # p = 1 - 1e-3: in bf16 it would be 1, and p - 1 nothing.
    logit = float(torch.tensor(1e-3).reciprocal().mul(VOCABULARY - 1).log())
    hidden, weight = torch.zeros(1, HIDDEN), torch.zeros(ROWS, HIDDEN)
    hidden[0, 0], weight[7, 0] = 1.0, logit
    h, w = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    _, _, expected = by_float64(h, w, torch.tensor([7]), torch.ones(1))
    fused(h, w, torch.tensor([7])).sum().backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad[7, 0].double(), expected[7, 0], rtol=1e-2, atol=0.0)


def test_a_long_tail_of_small_terms_is_summed_whole() -> None:
    """A running sum drops what is below half the last bit of its largest term: 1e-5 nats, and p - 1 with them."""
    vocabulary, tokens, peak = 49_152, 16, 20.0
    torch.manual_seed(0)
    labels = torch.randint(vocabulary, (tokens,))
    weight = torch.cat((2 * torch.randn(vocabulary, 1), torch.zeros(vocabulary, tokens)), dim=1)
    weight[labels, torch.arange(1, tokens + 1)] = peak  # each token's own column lifts its label
    hidden = torch.cat((torch.ones(tokens, 1), torch.eye(tokens)), dim=1).requires_grad_()
    nll = linear_cross_entropy(hidden, weight, labels, vocabulary_part(vocabulary, vocab_size=vocabulary))
    nll.sum().backward()
    exact = hidden.detach().double().requires_grad_()
    expected = cross_entropy(exact @ weight.double().t(), labels, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), exact)
    assert expected.min() > 1e-5 and expected.max() < 0.2
    assert abs((nll.double() - expected).mean().item()) < 1e-6
    assert hidden.grad is not None
    torch.testing.assert_close(
        hidden.grad.diagonal(1).double() / peak, gradient.diagonal(1) / peak, atol=5e-7, rtol=0.0
    )


def test_a_nan_shows_in_its_own_loss_and_in_the_weights_gradient() -> None:
    hidden, weight, labels, _ = drawn(12, torch.float32)
    with torch.no_grad():
        hidden[5, 3] = torch.nan
    nll = fused(hidden, weight, labels)
    nll.sum().backward()
    assert nll.isnan().nonzero().flatten().tolist() == [5]
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.isnan().any(dim=1).nonzero().flatten().tolist() == [5]
    assert weight.grad[:VOCABULARY].isnan().any(dim=1).all()


def test_a_label_outside_the_vocabulary_is_infinite_and_one_without_weight_is_nothing() -> None:
    """Padded rows have ids too: 1010 is inside the matrix. Training on such a label must not look like a loss."""
    hidden, weight, labels, _ = drawn(12, torch.float32)
    mask = torch.ones(12)
    ignored, outside = (0, 5, 11), (2, 7)
    labels[list(ignored)], mask[list(ignored)] = -100, 0.0
    kept = labels.clamp(min=0)
    nll, d_hidden, d_weight = by_float64(hidden, weight, kept, mask)
    found = fused(hidden, weight, labels, token_weights=mask)
    found.sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    torch.testing.assert_close(found.double(), nll * mask, **TOLERANCE[torch.float32])
    torch.testing.assert_close(hidden.grad.double(), d_hidden, **TOLERANCE[torch.float32])
    torch.testing.assert_close(weight.grad.double(), d_weight, **TOLERANCE[torch.float32])
    labels[outside[0]], labels[outside[1]] = 1010, -1
    assert fused(hidden, weight, labels, token_weights=mask).isinf().nonzero().flatten().tolist() == list(outside)


def peak_bytes(work: Any) -> int:
    """Most bytes alive at once, by the allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    alive = peak = 0
    for _, size in sorted(
        (e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"
    ):
        alive += size
        peak = max(peak, alive)
    return peak


def test_memory_is_a_fraction_of_whole_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    # As Llama-3's at 8192 tokens on a GPU: an eighth of the tokens at a time. benchmarks/memory.py has the real sizes.
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 128 * ROWS)
    monkeypatch.setitem(PIECE_ELEMENTS, "cpu", 32 * VOCABULARY)
    hidden, weight, labels, mask = drawn(1024, torch.bfloat16)
    naive = lambda: (cross_entropy((hidden @ weight.t()).float(), labels, reduction="none") * mask).sum().backward()  # noqa: E731
    chunked = lambda: fused(hidden, weight, labels, token_weights=mask).sum().backward()  # noqa: E731
    assert peak_bytes(chunked) <= 0.15 * peak_bytes(naive)


def test_chunks_are_even() -> None:
    assert chunk_tokens(12, rows=ROWS, kind="cpu") == 6  # not 11 and 1
    assert chunk_tokens(11, rows=ROWS, kind="cpu") == 11
    assert chunk_tokens(0, rows=ROWS, kind="cpu") == 0


@pytest.mark.parametrize("vocab_size", [41, 20])
def test_two_ranks_that_share_the_vocabulary_give_the_same(vocab_size: int) -> None:
    """41: 7 rows are padding. 20: the second rank has none of the vocabulary."""
    tiny.launched(2, RANK, vocab_size)
