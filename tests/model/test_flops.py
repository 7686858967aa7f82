"""FLOPs per token against a count by hand."""

import pytest

from megatron_synE.model.flops import peak_tflops, training_flops_per_token
from megatron_synE.model.presets import ARCHITECTURES


def test_llama_3_8b_at_8192_is_51_5_gflop_per_token() -> None:
    """Sizes of the published config.json: 32 layers, 4096 wide, 32 heads and 8 groups of 128, 14336, 128256."""
    q_and_o = 2 * 4096 * 4096
    k_and_v = 2 * 4096 * 1024
    mlp = 3 * 4096 * 14336
    weights = 32 * (q_and_o + k_and_v + mlp) + 4096 * 128256
    assert weights == 7_504_658_432  # 8.03 B less one embedding (0.525 B) and the norms
    # A token attends to 4096 others on average; each costs 4096 products for its score and 4096 for its value.
    attention = 32 * (4096 * 4096 * 2) * 2
    by_hand = 3 * (2 * weights + attention)  # backward costs twice the forward pass
    found = training_flops_per_token(ARCHITECTURES["llama3_8b"], seq_length=8192)
    assert found == pytest.approx(by_hand, rel=1e-12)
    assert found == pytest.approx(51.5e9, rel=1e-3)


def test_attention_grows_with_the_length_and_nothing_else_does() -> None:
    architecture = ARCHITECTURES["llama3_8b"]
    at = {length: training_flops_per_token(architecture, seq_length=length) for length in (1024, 2048, 4096)}
    assert at[4096] - at[2048] == pytest.approx(2 * (at[2048] - at[1024]))


def test_cards_are_found_by_the_name_that_the_driver_gives() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3") == 989.4
    assert peak_tflops("NVIDIA H200") == 989.4
    assert peak_tflops("NVIDIA A100-SXM4-80GB") == 312.0
    assert peak_tflops("AMD EPYC") is None


def test_a_card_is_not_taken_for_another_whose_name_is_part_of_its_own() -> None:
    """NVIDIA's data sheets, BF16 with sparsity halved: H200 NVL 1,671; GB200 NVL72 360,000 for 72."""
    assert peak_tflops("NVIDIA H200 NVL") == 1671 / 2
    assert peak_tflops("NVIDIA GB200") == 360_000 / 72 / 2
    assert peak_tflops("NVIDIA RTX A1000") is None


def test_cards_for_china_are_in_the_table() -> None:
    """The H800 and A800 compute as H100 and A100; NVIDIA gives 148 TFLOP/s for the H20."""
    assert peak_tflops("NVIDIA H800") == peak_tflops("NVIDIA H100 80GB HBM3")
    assert peak_tflops("NVIDIA H800 PCIe") == peak_tflops("NVIDIA H100 PCIe")
    assert peak_tflops("NVIDIA A800-SXM4-80GB") == peak_tflops("NVIDIA A100-SXM4-80GB")
    assert peak_tflops("NVIDIA H20") == 148.0
