"""Which implementation each part of a layer gets: Transformer Engine where it can be used, else native modules."""

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

from data_mixers.errors import ConfigError
from megatron_synE.model.native_layers import NativeAttention, RMSNorm, RotaryCoreAttention
from megatron_synE.runtime.device import Device
from megatron_synE.runtime.mcore import (
    MLP,
    AttnMaskType,
    ColumnParallelLinear,
    IdentityOp,
    MLPSubmodules,
    ModuleSpec,
    RowParallelLinear,
    SelfAttention,
    SelfAttentionSubmodules,
    TransformerBlockSubmodules,
    TransformerConfig,
    TransformerLayer,
    TransformerLayerSubmodules,
    get_bias_dropout_add,
    get_num_layers_to_build,
)


@dataclass(frozen=True)
class Implementation:
    """The choice and its reason, for the log and `syne doctor`."""

    name: Literal["native", "transformer_engine"]
    reason: str


def choose(asked: Literal["auto", "native", "transformer_engine"], device: Device) -> Implementation:
    """Errors: ConfigError if Transformer Engine is asked for and cannot be used."""
    has_engine = importlib.util.find_spec("transformer_engine") is not None
    if asked == "transformer_engine" and not (has_engine and device.is_cuda):
        missing = "no CUDA device" if has_engine else "transformer_engine is not installed"
        raise ConfigError(f"model.attention=transformer_engine, but {missing}; use model.attention=auto or native")
    if asked == "native":
        return Implementation("native", "model.attention=native")
    if has_engine and device.is_cuda:
        return Implementation("transformer_engine", "installed, and the device is CUDA")
    return Implementation(
        "native", "Transformer Engine needs CUDA" if has_engine else "Transformer Engine is not installed"
    )


def block_spec(
    config: TransformerConfig, implementation: Implementation, *, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """All layers of this pipeline stage and the final norm, which is not part of a layer and needs its own entry."""
    if implementation.name == "transformer_engine":
        layer, norm = _transformer_engine_layer()
    else:
        layer, norm = _native_layer(), RMSNorm
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=norm)


def _with_rotary(core_attention: type) -> ModuleSpec:
    return ModuleSpec(module=RotaryCoreAttention, params={"core_attention": core_attention})


def _native_layer() -> ModuleSpec:
    attention = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,
        core_attention=_with_rotary(NativeAttention),
        linear_proj=RowParallelLinear,
        q_layernorm=IdentityOp,
        k_layernorm=IdentityOp,
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention, params={"attn_mask_type": AttnMaskType.padding_causal}, submodules=attention
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=ModuleSpec(
                module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def _transformer_engine_layer() -> tuple[ModuleSpec, Any]:
    from megatron.core.extensions.transformer_engine import TEDotProductAttention, TENorm
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    layer = get_gpt_layer_with_transformer_engine_spec()
    attention = layer.submodules.self_attention
    attention.params = {"attn_mask_type": AttnMaskType.padding_causal}
    attention.submodules.core_attention = _with_rotary(TEDotProductAttention)
    return layer, TENorm
