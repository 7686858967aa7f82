"""Stochastic rounding is unbiased, and Adam on bf16 alone follows Adam in float64."""

import pytest
import torch

from megatron_synE.optim import bf16_adam
from megatron_synE.optim.bf16_adam import Bf16Adam, round_stochastically

DRAWS = 4096


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


def test_the_mean_of_many_roundings_is_the_number() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat((values(1.0039, -1.0001, 3.14159, 1e-30, -7e30, 0.0), torch.randn(58, generator=generator)))
    rounded = round_stochastically(x.repeat(DRAWS, 1), generator)
    assert rounded.dtype == torch.bfloat16
    exact, mean = x.double(), rounded.double().mean(0)
    gap = 2.0 ** (torch.frexp(x)[1].double() - 8)  # between neighbours in bf16
    # One of two neighbours a gap apart: the deviation of a mean of n is at most gap / (2 sqrt(n)); five of them.
    assert ((mean - exact).abs() <= 5 * gap / (2 * DRAWS**0.5)).all()
    assert ((rounded.double() - exact).abs() < gap).all()
    # Rounding to the nearest is not: all of 1.0001 goes to 1.
    assert (mean[1] - exact[1]).abs() < (x[1].bfloat16().double() - exact[1]).abs()


def test_what_bf16_holds_is_not_moved() -> None:
    x = torch.randn(1000).bfloat16()
    assert torch.equal(round_stochastically(x.float()), x)
    special = values(float("inf"), -float("inf"), float("nan"))
    torch.testing.assert_close(round_stochastically(special).float(), special, equal_nan=True)


def float64_adam(start: torch.Tensor, gradients: list[torch.Tensor], lr: float, decay: float) -> torch.Tensor:
    """AdamW after arXiv 1711.05101, algorithm 2."""
    w, m, v = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    for step, g in enumerate(gradients, start=1):
        m = 0.9 * m + 0.1 * g.double()
        v = 0.95 * v + 0.05 * g.double() ** 2
        w = w * (1 - lr * decay) - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    return w


@pytest.mark.parametrize("shape", [(4, 1024), (4096,)])
def test_updates_too_small_for_bf16_arrive_on_average(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of 1 and steps of 1e-5, a four-hundredth of their gap: rounded to the nearest, none would move."""
    monkeypatch.setattr(bf16_adam, "ELEMENTS_AT_ONCE", 1000)  # does not divide the tensor
    generator = torch.Generator().manual_seed(1)
    parameter = torch.nn.Parameter(torch.ones(shape, dtype=torch.bfloat16))
    gradients = [(1 + 0.1 * torch.randn(shape, generator=generator)).bfloat16() for _ in range(30)]
    optimizer = Bf16Adam([parameter], lr=1e-5, weight_decay=0.1)
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    expected = float64_adam(torch.ones(shape), gradients, 1e-5, 0.1 if len(shape) > 1 else 0.0)
    moved, should = float(1 - parameter.detach().double().mean()), float(1 - expected.mean())
    assert should == pytest.approx(30e-5, rel=0.15)
    # 4096 weights that fall by a gap of 2^-8 with probability 0.077: deviation of the mean 2^-8 * 0.27 / 64 = 1.6e-5.
    assert moved == pytest.approx(should, abs=5e-5)
    assert [optimizer.state[parameter][name].dtype for name in ("exp_avg", "exp_avg_sq")] == [torch.bfloat16] * 2


def test_large_steps_follow_float64_within_the_precision_of_bf16() -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(64, 64, generator=generator).bfloat16()
    gradients = [torch.randn(64, 64, generator=generator).bfloat16() for _ in range(10)]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = Bf16Adam([parameter], lr=1e-2)
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    expected = float64_adam(start, gradients, 1e-2, 0.1)
    difference = (parameter.double() - expected).abs()
    assert (expected - start.double()).abs().max() > 0.05
    assert difference.mean() < 0.01  # ten roundings of weights near 1, each within 2^-8


def test_other_weights_are_refused() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    with pytest.raises(AssertionError, match="bf16 alone"):
        Bf16Adam([parameter], lr=1e-3).step()
