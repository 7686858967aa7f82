"""FP8 products against float64, and against a slow quantisation that knows FP8 from its table of numbers alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_synE.kernels import float8
from megatron_synE.kernels.float8 import E4M3, E5M2, Format, Recipe


def numbers_of(dtype: torch.dtype) -> np.ndarray:
    """Every finite number of an FP8 type, ascending, decoded by hand from its bits."""
    mantissa_bits, bias = (3, 7) if dtype == E4M3 else (2, 15)
    found = []
    for bits in range(128):
        exponent, mantissa = bits >> mantissa_bits, bits & ((1 << mantissa_bits) - 1)
        is_nan = bits == 127 if dtype == E4M3 else exponent == 31  # e4m3fn has no infinity and one NaN
        if is_nan:
            continue
        if exponent == 0:
            value = mantissa / (1 << mantissa_bits) * 2.0 ** (1 - bias)
        else:
            value = (1 + mantissa / (1 << mantissa_bits)) * 2.0 ** (exponent - bias)
        found += [value, -value]
    return np.unique(np.array(found))


def slowly_quantised(x: np.ndarray, dtype: torch.dtype, *, by_row: bool) -> tuple[np.ndarray, np.ndarray]:
    """(nearest FP8 number of x / scale, ties to even bits; scale)."""
    numbers = numbers_of(dtype)
    largest = np.abs(x).max(axis=1, keepdims=True) if by_row else np.abs(x).max()
    scale = np.asarray(np.float32(largest) / np.float32(numbers[-1]), dtype=np.float32)
    scale = np.where(scale == 0, np.float32(1), scale)
    scaled = (x.astype(np.float32) / scale).astype(np.float64)
    right = np.clip(np.searchsorted(numbers, scaled), 1, len(numbers) - 1)
    below, above = numbers[right - 1], numbers[right]
    middle = (below + above) / 2
    is_even = np.arange(len(numbers)) % 2 == (np.searchsorted(numbers, 0.0) % 2)
    take_above = (scaled > middle) | ((scaled == middle) & is_even[right])
    return np.where(take_above, above, below), scale


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize("by_row", [False, True])
def test_quantisation_is_the_nearest_number_of_the_table(dtype: torch.dtype, by_row: bool) -> None:
    x = random(13, 37) * torch.logspace(-4, 3, 37)  # into the subnormal numbers
    found, scale = float8.quantise(x, dtype, dim=1 if by_row else None)
    expected, expected_scale = slowly_quantised(x.numpy(), dtype, by_row=by_row)
    np.testing.assert_array_equal(found.double().numpy(), expected)
    np.testing.assert_array_equal(scale.numpy().reshape(expected_scale.shape), expected_scale)
    assert found.float().abs().max() == torch.finfo(dtype).max


def dequantised(x: torch.Tensor, dtype: torch.dtype, by_row: bool) -> torch.Tensor:
    values, scale = slowly_quantised(x.double().numpy(), dtype, by_row=by_row)
    return torch.from_numpy(values * scale.astype(np.float64))


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
@pytest.mark.parametrize("form", ["hybrid", "e4m3"])
def test_a_layer_and_its_gradients_are_float64_products_of_quantised_operands(form: Format, recipe: Recipe) -> None:
    """Odd sizes. What is left is fp32 accumulation."""
    n, k, m, by_row = 7, 37, 19, recipe == "rowwise"
    x, weight, gradient = random(n, k), random(m, k, seed=1), random(n, m, seed=2)
    gradients = E5M2 if form == "hybrid" else E4M3
    ours_x, ours_w = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = float8.linear(ours_x.view(n, 1, k), ours_w, form=form, recipe=recipe)
    assert out.shape == (n, 1, m)
    out.backward(gradient.view(n, 1, m))
    x8, w8 = dequantised(x, E4M3, by_row), dequantised(weight, E4M3, by_row)
    g8 = dequantised(gradient, gradients, by_row)
    torch.testing.assert_close(out.view(n, m).double(), x8 @ w8.t(), rtol=1e-5, atol=1e-5)
    of_inputs = dequantised(weight.t().contiguous(), E4M3, by_row).t() if by_row else w8
    torch.testing.assert_close(ours_x.grad.double(), g8 @ of_inputs, rtol=1e-5, atol=1e-5)
    of_weights = gradient.double().t() @ x.double() if by_row else g8.t() @ x8
    torch.testing.assert_close(ours_w.grad.double(), of_weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("recipe", "bound"), [("tensorwise", 0.05), ("rowwise", 0.05)])
def test_the_error_of_random_operands_is_that_of_three_bits(recipe: Recipe, bound: float) -> None:
    """e4m3 rounds by up to 2^-4 of each factor, 2.6 % rms over a binade; two of them, independent, make 3.7 %."""
    x, weight = random(64, 256), random(48, 256, seed=1)
    exact = x.double() @ weight.double().t()
    error = float8.linear(x, weight, form="hybrid", recipe=recipe).double() - exact
    assert 0.02 < float(error.norm() / exact.norm()) < bound


def test_rowwise_keeps_an_outlier_to_its_row() -> None:
    x, weight = random(8, 64), random(16, 64, seed=1)
    x[3] *= 1e6
    others = [0, 1, 2, 4, 5, 6, 7]
    exact = (x.double() @ weight.double().t())[others]
    errors = {}
    for recipe in ("tensorwise", "rowwise"):
        found = float8.linear(x, weight, form="e4m3", recipe=recipe)[others].double()
        errors[recipe] = float((found - exact).norm() / exact.norm())
    assert errors["rowwise"] < 0.05
    assert errors["tensorwise"] > 0.9  # a row a millionth as large is rounded to nothing


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_rounded_away(recipe: Recipe, bad: float) -> None:
    x, weight = random(4, 32), random(8, 32, seed=1)
    x[2, 5] = bad
    found = float8.linear(x, weight, form="hybrid", recipe=recipe)
    assert not found[2].isfinite().any()
    if recipe == "rowwise":
        assert found[[0, 1, 3]].isfinite().all()


def test_zeros_stay_zeros_and_large_values_stay_finite() -> None:
    weight = random(8, 32, seed=1)
    assert float8.linear(torch.zeros(4, 32), weight, form="hybrid", recipe="tensorwise").eq(0).all()
    large = random(4, 32) * 1e30
    found = float8.linear(large, weight, form="hybrid", recipe="tensorwise")
    assert found.isfinite().all()
    torch.testing.assert_close(
        found, float8.linear(large / 2.0**64, weight, form="hybrid", recipe="tensorwise") * 2.0**64
    )


def test_bf16_in_bf16_out() -> None:
    x, weight = random(16, 32).bfloat16(), random(16, 32, seed=1).bfloat16()
    x.requires_grad_()
    weight.requires_grad_()
    for recipe in ("tensorwise", "rowwise"):
        out = float8.linear(x, weight, form="hybrid", recipe=recipe)
        out.sum().backward()
        assert out.dtype == x.grad.dtype == weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("can_compile", [False, True])
def test_quantisation_is_compiled_where_a_card_and_a_compiler_are(
    can_compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float8, "can_compile", lambda: can_compile)
    monkeypatch.setattr(float8, "_compiled", lambda function: "compiled")
    on_card, on_host = (SimpleNamespace(is_cuda=is_cuda) for is_cuda in (True, False))
    assert float8._fused(float8.cast, on_card) == ("compiled" if can_compile else float8.cast)  # type: ignore[arg-type]
    assert float8._fused(float8.cast, on_host) is float8.cast  # type: ignore[arg-type]
