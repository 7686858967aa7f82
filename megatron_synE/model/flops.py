"""Floating-point operations per token, with the assumptions said; used for TFLOP/s and MFU."""

import re

from megatron_synE.model.llama import LlamaArchitecture

PEAK_TFLOPS = {
    # Dense BF16 without sparsity; NVIDIA data sheets. Words of the driver's name, a form factor's before the card's.
    "H100 80GB HBM3": 989.4,
    "H100 SXM": 989.4,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "GH200": 989.4,
    "A100": 312.0,
    # Cards for China: as H100 and A100 but for the links between them; the H20 has fewer cores.
    "H800 PCIe": 756.0,
    "H800": 989.4,
    "A800": 312.0,
    "H20": 148.0,
    "B200": 2250.0,
    "GB200": 2500.0,
}


def training_flops_per_token(architecture: LlamaArchitecture, *, seq_length: int) -> float:
    """Forward and backward, 6 per weight of every matrix product, attention as causal (half of the square).

    The embedding look-up is not counted, the output layer is; recomputation is never counted (it is not useful work).
    Llama-3-8B at 8192: 51.5 GFLOP, the figure behind MFU published in the causal convention.
    """
    a = architecture
    attention_weights = a.hidden_size * a.kv_channels * 2 * (a.num_attention_heads + a.num_query_groups)
    matrices = a.num_layers * (attention_weights + 3 * a.hidden_size * a.ffn_hidden_size) + a.hidden_size * a.vocab_size
    # Scores and values: 2 products of 2 * hn flops per pair and head, seq_length / 2 pairs per token, times 3.
    attention = a.num_layers * 3 * 2 * 2 * a.num_attention_heads * a.kv_channels * seq_length / 2
    return 6.0 * matrices + attention


def peak_tflops(device_name: str) -> float | None:
    """Dense BF16 peak of the card found, or None for one that is not in the table (and for CPUs)."""
    for name, peak in PEAK_TFLOPS.items():
        if re.search(rf"\b{name}\b", device_name):
            return peak
    return None
