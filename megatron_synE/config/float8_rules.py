"""The rules of FP8 that need more than one field; what the card can do is asked when the layers are chosen."""

from collections.abc import Iterator

from megatron_synE.config.derive import rows_of_rank
from megatron_synE.config.fault import Fault
from megatron_synE.config.schema import RunConfig
from megatron_synE.model.llama import LlamaArchitecture

NATIVE_RECIPES = ("tensorwise", "rowwise")
MULTIPLE = 16
"""Rows and columns of an FP8 product on CUDA."""


def float8_rules(config: RunConfig, architecture: LlamaArchitecture) -> Iterator[Fault]:
    """Precision, recipe and the widths of every product on one rank."""
    training, asked = config.training, config.model.attention
    if training.fp8 is None:
        if training.fp8_recipe != "tensorwise":
            yield Fault(
                "training.fp8_recipe", f"{training.fp8_recipe} has no meaning without training.fp8: the run is in"
                f" {training.precision}", "set training.fp8=hybrid, or remove the recipe",
            )  # fmt: skip
        return
    if training.precision == "fp32":
        yield Fault("training.fp8", f"{training.fp8} is for bf16 runs, but precision=fp32", "set precision=bf16")
    if asked == "native" and training.fp8_recipe not in NATIVE_RECIPES:
        yield Fault(
            "training.fp8_recipe", f"{training.fp8_recipe} needs Transformer Engine, but model.attention=native",
            f"use {' or '.join(NATIVE_RECIPES)}",
        )  # fmt: skip
    if asked == "transformer_engine" and training.fp8_recipe == "rowwise":
        yield Fault(
            "training.fp8_recipe", "rowwise is of native layers, but model.attention=transformer_engine",
            "use tensorwise, or model.attention=native",
        )  # fmt: skip
    a, tp = architecture, config.parallel.tensor_model_parallel_size
    heads = a.num_attention_heads + 2 * a.num_query_groups
    for name, width in {
        "hidden_size": a.hidden_size,
        "num_attention_heads * kv_channels": a.num_attention_heads * a.kv_channels // tp,
        "(num_attention_heads + 2 * num_query_groups) * kv_channels": heads * a.kv_channels // tp,
        "ffn_hidden_size": a.ffn_hidden_size // tp,
        "seq_length * micro_batch_size": rows_of_rank(config),
    }.items():
        if width % MULTIPLE:
            yield Fault(
                "training.fp8", f"{name} is {width} on one rank, not a multiple of {MULTIPLE}",
                "remove it, or use another layout or model",
            )  # fmt: skip
