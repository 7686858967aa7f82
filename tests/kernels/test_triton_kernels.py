"""Triton kernels against plain torch in float64: values, gradients, odd sizes, views, NaN and large values.

Without a GPU they run in Triton's interpreter, which executes their code on numpy arrays: their arithmetic and their
borders are tested, not what a compiler makes of them.
"""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

pytest.importorskip("triton", reason="pip install --no-deps triton==3.9.0, then these run in its interpreter")

from megatron_synE.kernels import plain, rms_norm, rope, swiglu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, HIDDEN = 7, 37
"""Neither a multiple of a block nor of the number of programs."""


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(DEVICE, dtype)


def angles(tokens: int, hn: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    half = random(tokens, 1, hn // 2, seed=5)
    whole = torch.cat((half, half), dim=-1)
    return whole.cos().to(dtype), whole.sin().to(dtype)


Function = Callable[..., torch.Tensor]
Case = tuple[Function, Function, tuple[torch.Tensor, ...]]


def cases() -> dict[str, Case]:
    cos, sin = angles(5, 6)
    product = random(5, 3, 10)  # queries are a view of a wider product: their rows are not contiguous
    return {
        "rms_norm": (
            lambda x, w: rms_norm.rms_norm(x, w, 1e-5),
            lambda x, w: plain.rms_norm(x, w, 1e-5),
            (random(ROWS, 1, HIDDEN), 1 + 0.1 * random(HIDDEN, seed=1)),
        ),
        "rms_norm of one row": (
            lambda x, w: rms_norm.rms_norm(x, w, 1e-5),
            lambda x, w: plain.rms_norm(x, w, 1e-5),
            (random(1, 1), random(1, seed=1)),
        ),
        "rms_norm of a view": (
            lambda x, w: rms_norm.rms_norm(x[:, 1:], w, 1e-5),
            lambda x, w: plain.rms_norm(x[:, 1:], w, 1e-5),
            (random(ROWS, HIDDEN + 1), random(HIDDEN, seed=1)),
        ),
        "swiglu": (swiglu.swiglu, plain.swiglu, (random(ROWS, 1, 2 * HIDDEN),)),
        "swiglu over two blocks": (swiglu.swiglu, plain.swiglu, (random(2, 2 * (swiglu.COLUMNS + 3)),)),
        "rotate": (
            lambda x: rope.rotate(x[..., :6], cos, sin), lambda x: plain.rotate(x[..., :6], cos, sin), (product,),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", cases())
def test_values_and_gradients_are_those_of_float64_torch(name: str) -> None:
    kernel, reference, inputs = cases()[name]
    ours = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.clone().requires_grad_() for x in inputs]
    found, expected = kernel(*ours), reference(*theirs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = random(*expected.shape, seed=9)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["rms_norm of one row", "rms_norm of a view", "rotate"])
def test_gradients_are_numerically_right(name: str) -> None:
    kernel, _, inputs = cases()[name]
    assert torch.autograd.gradcheck(kernel, tuple(x.clone().requires_grad_() for x in inputs))


def test_the_gradient_of_swiglu_is_numerically_right() -> None:
    assert torch.autograd.gradcheck(swiglu.swiglu, (random(2, 10).requires_grad_(),))


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    """Within half a unit in the last place of the exact result of the rounded inputs, and some fp32 sums.

    Triton's interpreter cuts off what a card rounds: there, within one unit.
    """
    kernel, reference, inputs = cases()[name]
    if name == "rotate":  # its angles are part of the closure, in float64
        cos, sin = angles(5, 6, dtype)
        kernel = lambda x: rope.rotate(x[..., :6], cos, sin)  # noqa: E731
        reference = lambda x: plain.rotate(x[..., :6], cos.double(), sin.double())  # noqa: E731
    rounded = [x.to(dtype) for x in inputs]
    found = kernel(*rounded)
    expected = reference(*(x.double() for x in rounded))
    assert found.dtype == dtype
    units = 0.51 if DEVICE == "cuda" else 1.01
    rtol = units * torch.finfo(dtype).eps + 1e-6
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=2e-6)


@pytest.mark.parametrize("module", [rms_norm, swiglu, rope], ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_nan_stays_in_its_row(module: ModuleType) -> None:
    x = random(4, 2, 8, dtype=torch.float32)
    x[1, 0, 3] = float("nan")
    cos, sin = angles(4, 8, torch.float32)
    run: dict[str, Callable[[], torch.Tensor]] = {
        "rms_norm": lambda: rms_norm.rms_norm(x, torch.ones(8, device=DEVICE), 1e-5),
        "swiglu": lambda: swiglu.swiglu(x),
        "rope": lambda: rope.rotate(x, cos, sin),
    }
    out = run[module.__name__.rpartition(".")[2]]()
    is_nan = out.isnan().flatten(2).any(-1)
    assert is_nan.tolist() == [[False, False], [True, False], [False, False], [False, False]]


def test_large_values_do_what_torch_does() -> None:
    """A gate of -1e4 gives 0, not NaN; the square of 1e18 fits fp32, that of 1e30 is infinite and gives 0 in both."""
    gates = torch.tensor([[-1e4, 1e4, -88.8, 60.0, 2.0, 2.0, 2.0, 2.0]], device=DEVICE, requires_grad=True)
    same = gates.detach().clone().requires_grad_()
    found, expected = swiglu.swiglu(gates), plain.swiglu(same)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(gates.grad, same.grad)
    for size in (1e18, 1e30):
        rows = torch.full((2, 5), size, device=DEVICE)
        weight = torch.ones(5, device=DEVICE)
        torch.testing.assert_close(rms_norm.rms_norm(rows, weight, 1e-5), plain.rms_norm(rows, weight, 1e-5))


def test_an_empty_row_is_no_row() -> None:
    cos, sin = angles(0, 8, torch.float32)
    assert rms_norm.rms_norm(random(0, 8), random(8), 1e-5).shape == (0, 8)
    assert swiglu.swiglu(random(0, 8)).shape == (0, 4)
    assert rope.rotate(random(0, 2, 8, dtype=torch.float32), cos, sin).shape == (0, 2, 8)
