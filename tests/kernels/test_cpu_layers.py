"""RMSNorm and SwiGLU by rows on a CPU against the plain functions in float64, in pieces of odd sizes."""

from collections.abc import Callable

import pytest
import torch

from megatron_synE.kernels import cpu_layers, plain

ROWS, HIDDEN = 23, 37
Function = Callable[..., torch.Tensor]


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return cpu_layers.rms_norm(x, weight, 1e-5)


def plain_rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return plain.rms_norm(x, weight, 1e-5)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


CASES: dict[str, tuple[Function, Function, tuple[torch.Tensor, ...]]] = {
    "rms_norm": (rms_norm, plain_rms_norm, (random(ROWS, 1, HIDDEN), 1 + 0.1 * random(HIDDEN, seed=1))),
    "rms_norm of a view": (
        lambda x, w: rms_norm(x[:, 1:], w), lambda x, w: plain_rms_norm(x[:, 1:], w),
        (random(ROWS, HIDDEN + 1), random(HIDDEN, seed=1)),
    ),
    "rms_norm of one number": (rms_norm, plain_rms_norm, (random(1, 1), random(1, seed=1))),
    "swiglu": (cpu_layers.swiglu, plain.swiglu, (random(ROWS, 1, 2 * HIDDEN),)),
    "swiglu of a view": (
        lambda x: cpu_layers.swiglu(x[:, 2:]), lambda x: plain.swiglu(x[:, 2:]), (random(ROWS, 2 * HIDDEN + 2),),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _pieces_of_five_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a last one of three."""
    monkeypatch.setattr(cpu_layers, "ROWS_BYTES", -(-5 * 4 * HIDDEN // torch.get_num_threads()))
    assert cpu_layers._rows_at_once(HIDDEN) == 5


def with_gradients(
    function: Function, inputs: tuple[torch.Tensor, ...], dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    """What comes out, and the gradients of all inputs under a random one, in float64."""
    leaves = [x.to(dtype).requires_grad_() for x in (x.detach().clone() for x in inputs)]
    out = function(*leaves)
    out.backward(random(*out.shape, seed=9).to(dtype))
    return [x.detach().double() for x in (out, *(leaf.grad for leaf in leaves if leaf.grad is not None))]


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_plain_ones(name: str) -> None:
    ours, theirs, inputs = CASES[name]
    found, expected = with_gradients(ours, inputs), with_gradients(theirs, inputs)
    assert len(found) == len(inputs) + 1
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_numerically_right(name: str) -> None:
    ours, _, inputs = CASES[name]
    assert torch.autograd.gradcheck(ours, tuple(x.clone().requires_grad_() for x in inputs))


@pytest.mark.parametrize("name", ["rms_norm", "rms_norm of a view", "swiglu"])
def test_bf16_is_as_near_to_float64_as_the_plain_function(name: str) -> None:
    ours, theirs, inputs = CASES[name]
    rounded = tuple(x.to(torch.bfloat16) for x in inputs)
    exact = with_gradients(theirs, tuple(x.double() for x in rounded))
    for mine, plain_one, true in zip(
        with_gradients(ours, rounded, torch.bfloat16), with_gradients(theirs, rounded, torch.bfloat16), exact,
        strict=True,
    ):  # fmt: skip
        # The sums round elsewhere; one result in bf16 may lie half a unit (2^-8 of it) further off than the other.
        allowed = (plain_one - true).abs().max() + 2**-8 * true.abs().max()
        assert (mine - true).abs().max() <= allowed


def test_rms_norm_rounds_once() -> None:
    x, weight = (value.to(torch.bfloat16) for value in CASES["rms_norm"][2])
    exact = plain_rms_norm(x.double(), weight.double())
    # Half a unit of bf16, and what fp32 before it may be off.
    assert ((rms_norm(x, weight).double() - exact).abs() <= (2**-8 * 1.001) * exact.abs() + 1e-30).all()


def test_the_weights_gradient_is_summed_in_fp32_over_all_pieces() -> None:
    x, weight = random(5000, 8).to(torch.bfloat16), random(8, seed=1).to(torch.bfloat16)
    ours = with_gradients(rms_norm, (x, weight), torch.bfloat16)[2]
    exact = with_gradients(plain_rms_norm, (x.double(), weight.double()))[2]
    # The gradient that comes in is rounded to bf16 in one of them: 5,000 errors of 2^-9 of one, of either sign.
    assert (ours - exact).abs().max() <= 2**-8 * exact.abs().max() + 5000**0.5 * 2**-9


def test_a_nan_stays_in_its_row() -> None:
    x = random(ROWS, 2 * HIDDEN)
    x[7, 3] = torch.nan
    for out in (rms_norm(x, random(2 * HIDDEN)), cpu_layers.swiglu(x)):
        assert out.isnan().any(dim=1).nonzero().flatten().tolist() == [7]


def test_no_rows_are_no_rows() -> None:
    x, weight = random(0, 2 * HIDDEN).requires_grad_(), random(2 * HIDDEN).requires_grad_()
    (rms_norm(x, weight).sum() + cpu_layers.swiglu(x).sum()).backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize("function", ["rms_norm", "swiglu"])
def test_of_large_arrays_the_input_alone_is_kept_and_no_copy_of_it(function: str) -> None:
    x, weight = random(ROWS, 2 * HIDDEN).requires_grad_(), random(2 * HIDDEN, seed=1)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rms_norm(x, weight) if function == "rms_norm" else cpu_layers.swiglu(x)
    large = [t for t in kept if t.numel() >= x.numel()]
    assert [t.untyped_storage().data_ptr() for t in large] == [x.untyped_storage().data_ptr()]
    assert sum(t.numel() for t in kept) == x.numel() + (ROWS + 2 * HIDDEN if function == "rms_norm" else 0)
