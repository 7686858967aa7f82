"""The weight's gradient added to the main gradient by its product: float64's sum, and runs like the hook's."""

from pathlib import Path

import pytest
import torch

from megatron_synE.model import weight_gradient
from megatron_synE.model.weight_gradient import add_product, adds_into_fp32
from tests import tiny
from tests.traps.test_traps import weights_of

SPRUNG = Path(__file__).parents[1] / "traps" / "sprung_run.py"
TOKENS, OUTPUTS, INPUTS = 37, 19, 23


def drawn(dtype: torch.dtype, main: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """main gradient, gradient of the output, input."""
    torch.manual_seed(0)
    start = torch.randn(OUTPUTS, INPUTS).to(main)
    return start, torch.randn(TOKENS, OUTPUTS).to(dtype), torch.randn(TOKENS, INPUTS).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "main", "tolerance"),
    [
        (torch.float32, torch.float32, 2e-5),
        # Two products of up to 32 and 16 are rounded by 2^-9 of themselves; what is forgotten is missed by 6 and more.
        (torch.bfloat16, torch.float32, 0.1),
        (torch.bfloat16, torch.bfloat16, 0.3),  # and two sums of up to 48
    ],
)
def test_two_micro_batches_sum_up_in_place(dtype: torch.dtype, main: torch.dtype, tolerance: float) -> None:
    main_grad, d_output, inputs = drawn(dtype, main)
    expected = main_grad.double() + (d_output.double().t() @ inputs.double()) * 1.5
    place = main_grad.data_ptr()
    add_product(main_grad, d_output, inputs)
    add_product(main_grad, d_output, inputs / 2)
    assert main_grad.data_ptr() == place and main_grad.dtype == main
    torch.testing.assert_close(main_grad.double(), expected, atol=tolerance, rtol=0)


def test_where_torch_adds_bf16_products_to_fp32_nothing_is_rounded_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU has no such product. One that computes in float64 stands in for CUDA's, under the name it has there."""
    assert not adds_into_fp32(torch.device("cpu"))
    calls = []

    def product(total, left, right, out_dtype, *, beta=1, alpha=1, out):
        assert (total.dtype, left.dtype, right.dtype, out_dtype) == (torch.float32, *2 * [torch.bfloat16], out.dtype)
        assert (beta, alpha) == (1, 1)
        calls.append(out.copy_(total.double() + left.double() @ right.double()))
        return out

    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("addmm.dtype_out", product, "CPU")
        adds_into_fp32.cache_clear()
        assert adds_into_fp32(torch.device("cpu"))
        main_grad, d_output, inputs = drawn(torch.bfloat16, torch.float32)
        expected = main_grad.double() + d_output.double().t() @ inputs.double()
        add_product(main_grad, d_output, inputs)
    finally:
        library._destroy()
        adds_into_fp32.cache_clear()
    assert len(calls) == 2  # the question, and the answer
    # fp32 alone: what went through bf16 would be off by up to 0.05.
    torch.testing.assert_close(main_grad.double(), expected, atol=2e-6, rtol=1e-6)


def test_a_product_that_writes_over_its_sum_is_not_taken() -> None:
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("addmm.dtype_out", lambda total, left, right, *_, out: out.copy_(left @ right), "CPU")
        adds_into_fp32.cache_clear()
        assert not adds_into_fp32(torch.device("cpu"))
    finally:
        library._destroy()
        adds_into_fp32.cache_clear()


def test_apex_s_own_product_is_left_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = object()
    monkeypatch.setattr(weight_gradient.mcore_linear, "fused_weight_gradient_mlp_cuda", theirs, raising=False)
    monkeypatch.setattr(weight_gradient.importlib.util, "find_spec", lambda name: theirs)
    assert weight_gradient.install_where_needed() == "apex"
    assert weight_gradient.mcore_linear.fused_weight_gradient_mlp_cuda is theirs


def test_five_steps_are_those_of_gradients_left_to_the_hook(tmp_path: Path) -> None:
    """Tied, over TP 2 with sequence parallelism, two micro-batches a step, gradients reduced in the background."""
    config = tiny.prepared(
        tmp_path,
        training={"micro_batch_size": 4},
        parallel={"tensor_model_parallel_size": 2, "sequence_parallel": True, "overlap_grad_reduce": True},
        validation={"manifests": []},
    )
    tiny.hf_folder(tmp_path / "hf", tie_word_embeddings=True)
    found = {}
    for trap in ("none", "gradients left to the hook"):
        run = tmp_path / trap
        tiny.launched(2, SPRUNG, trap, config, f"run.dir={run}")
        rows = tiny.rows(run, "train")
        found[trap] = [(row["lm_loss"], row["grad_norm"]) for row in rows], weights_of(run / "checkpoints/iter_0000005")
    (rows, weights), (hook_rows, hook_weights) = found.values()
    assert len(rows) == 5
    for ours, theirs in zip(rows, hook_rows, strict=True):
        # fp32: the second micro-batch is added term by term, not as a sum. A gradient lost or doubled is half of it.
        assert ours == pytest.approx(theirs, rel=1e-6)
    for name, expected in hook_weights.items():
        assert (weights[name] - expected).abs().max() <= 1e-4, name  # Adam near zero, as in test_training
