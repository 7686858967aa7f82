"""Which implementation each part of a layer gets: Transformer Engine where it can be used, else native modules."""

import importlib
import importlib.util
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal

from data_mixers.errors import ConfigError
from megatron_synE.config.float8_rules import NATIVE_RECIPES
from megatron_synE.kernels.choice import PLAIN, Asked, Kernels, choose_kernels
from megatron_synE.kernels.float8 import Format, cpu_scales_rows
from megatron_synE.model.float8_layers import Float8ColumnParallelLinear, Float8RowParallelLinear
from megatron_synE.model.native_layers import NativeAttention, RMSNorm, RotaryCoreAttention, SwiGLU
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
    kernels: Kernels = PLAIN
    """Of native layers."""
    fp8: Format | None = None
    fp8_recipe: str = "tensorwise"

    def __str__(self) -> str:
        kernels = f"; kernels: {self.kernels.names}" if self.name == "native" else ""
        return f"{self.name} ({self.reason}){kernels}" + (f"; FP8 {self.fp8}, {self.fp8_recipe}" if self.fp8 else "")


def choose(
    asked: Literal["auto", "native", "transformer_engine"],
    device: Device,
    *,
    dtype: Literal["bf16", "fp32"] = "bf16",
    kernels: Asked = "auto",
    fp8: Format | None = None,
    fp8_recipe: str = "tensorwise",
) -> Implementation:
    """Errors: ConfigError for what is asked for, or installed, and cannot be used."""
    name, reason = _whose(asked, device)
    if dtype == "bf16" and device.is_cuda and not device.has_bf16:
        raise ConfigError(
            f"bf16 needs an A100 or newer, this is {device.name}, for which attention has no kernel of it; set "
            "training.precision=fp32 (score-ppl: --precision fp32)"
        )
    if fp8 is not None and not device.has_fp8:
        raise ConfigError(f"training.fp8={fp8} needs an H100 or newer (or an L40S), this is {device.name}; remove it")
    if name == "transformer_engine":
        if fp8 is not None and fp8_recipe == "rowwise":
            raise ConfigError("training.fp8_recipe=rowwise is of native layers; set model.attention=native")
        if fp8 is not None and (fault := _recipe_fault(fp8_recipe)):
            raise ConfigError(f"training.fp8_recipe={fp8_recipe}: {fault}; this is {device.name}: use tensorwise")
        return Implementation(name, reason, PLAIN, fp8, fp8_recipe)
    if fp8 is not None and fp8_recipe not in NATIVE_RECIPES:
        raise ConfigError(
            f"training.fp8_recipe={fp8_recipe} needs Transformer Engine ({reason}); use {' or '.join(NATIVE_RECIPES)}"
        )
    if fp8 is not None and fp8_recipe == "rowwise" and not device.is_cuda and not cpu_scales_rows():
        raise ConfigError("training.fp8_recipe=rowwise: on a CPU this torch cannot; use tensorwise, or torch 2.13")
    if dtype == "bf16":  # fp32 has torch's own
        NativeAttention.source(device.is_cuda)  # what is broken is said before weights are read
    return Implementation(name, reason, choose_kernels(kernels, is_cuda=device.is_cuda), fp8, fp8_recipe)


def _whose(
    asked: Literal["auto", "native", "transformer_engine"], device: Device
) -> tuple[Literal["native", "transformer_engine"], str]:
    has_engine = importlib.util.find_spec("transformer_engine") is not None
    if asked == "transformer_engine" and not (has_engine and device.is_cuda):
        missing = "no CUDA device" if has_engine else "transformer_engine is not installed"
        raise ConfigError(f"model.attention=transformer_engine, but {missing}; use model.attention=auto or native")
    if asked == "native":
        return "native", "model.attention=native"
    if has_engine and device.is_cuda:
        if (fault := _engine_fault()) is not None:
            raise ConfigError(
                f"Transformer Engine is installed and megatron-core goes without it ({fault}); install it for this"
                " torch and CUDA, or set model.attention=native"
            )
        return "transformer_engine", "installed, and the device is CUDA"
    return "native", "Transformer Engine needs CUDA" if has_engine else "Transformer Engine is not installed"


def _engine_fault() -> str | None:
    """Why megatron-core takes the installed Transformer Engine for missing; None if it does not."""
    from megatron.core.extensions import transformer_engine as theirs

    if theirs.HAVE_TE:
        return None
    try:
        importlib.import_module("transformer_engine.pytorch.fp8")
    except ImportError as error:
        return str(error)
    return "of another version than it knows"


def _recipe_fault(recipe: str) -> str | None:
    """Why Transformer Engine cannot scale so here: the card or its CUDA, of which it would tell in the first step."""
    asks = {"blockwise": "is_fp8_block_scaling_available", "mxfp8": "is_mxfp8_available"}
    if recipe not in asks:
        return None
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

    is_available, reason = getattr(FP8GlobalStateManager, asks[recipe])()
    return None if is_available else str(reason)


def block_spec(
    config: TransformerConfig, implementation: Implementation, *, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """All layers of this pipeline stage and the final norm, which is not part of a layer and needs its own entry."""
    norm: Any
    if implementation.name == "transformer_engine":
        config.fp8, config.fp8_recipe = implementation.fp8, implementation.fp8_recipe  # mcore's block makes the context
        layer, norm = _transformer_engine_layer()
    else:
        # megatron-core's word for: the specification brings the whole activation, gate and all.
        config.use_te_activation_func = implementation.kernels.swiglu is not None
        layer, norm = _native_layer(implementation), _norm(implementation.kernels)
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=norm)


class EngineMask(Enum):
    """Transformer Engine knows masks by name; megatron-core's AttnMaskType lacks this one of them."""

    padding_causal_bottom_right = auto()


def _with_rotary(core_attention: type, chunk_mask_type: Enum, kernels: Kernels = PLAIN) -> ModuleSpec:
    params = {"core_attention": core_attention, "chunk_mask_type": chunk_mask_type, "kernels": kernels}
    return ModuleSpec(module=RotaryCoreAttention, params=params)


def _norm(kernels: Kernels) -> ModuleSpec:
    return ModuleSpec(module=RMSNorm, params={"kernels": kernels})


def _native_layer(implementation: Implementation) -> ModuleSpec:
    kernels = implementation.kernels
    column, row = _linears(implementation)
    attention = SelfAttentionSubmodules(
        linear_qkv=column,
        core_attention=_with_rotary(NativeAttention, AttnMaskType.padding_causal, kernels),
        linear_proj=row,
        q_layernorm=IdentityOp,
        k_layernorm=IdentityOp,
    )
    activation = ModuleSpec(module=SwiGLU, params={"kernels": kernels}) if kernels.swiglu is not None else None
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=_norm(kernels),
            self_attention=ModuleSpec(
                module=SelfAttention, params={"attn_mask_type": AttnMaskType.padding_causal}, submodules=attention
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=_norm(kernels),
            mlp=ModuleSpec(
                module=MLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row, activation_func=activation)
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def _linears(implementation: Implementation) -> tuple[Any, Any]:
    """Column- and row-parallel."""
    if implementation.fp8 is None:
        return ColumnParallelLinear, RowParallelLinear
    params = {"form": implementation.fp8, "recipe": implementation.fp8_recipe}
    return (
        ModuleSpec(module=Float8ColumnParallelLinear, params=params),
        ModuleSpec(module=Float8RowParallelLinear, params=params),
    )


def _transformer_engine_layer() -> tuple[ModuleSpec, Any]:
    from megatron.core.extensions.transformer_engine import TEDotProductAttention, TENorm
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    layer = get_gpt_layer_with_transformer_engine_spec()
    attention = layer.submodules.self_attention
    attention.params = {"attn_mask_type": AttnMaskType.padding_causal}
    attention.submodules.core_attention = _with_rotary(TEDotProductAttention, EngineMask.padding_causal_bottom_right)
    return layer, TENorm


def overlap_tensor_parallel(config: TransformerConfig, implementation: Implementation, *, rows: int) -> None:
    """Make Transformer Engine's layers send beside their products: its shared buffers, then megatron-core's switch.

    rows: tokens of a micro-batch on one context-parallel rank. Collective: every rank. Not run anywhere yet.
    Errors: ConfigError without Transformer Engine.
    """
    if implementation.name != "transformer_engine":
        raise ConfigError(
            f"parallel.tp_comm_overlap=true needs Transformer Engine ({implementation.reason}); set it to false"
        )
    from transformer_engine.pytorch.module import base

    shape = [rows, config.hidden_size]
    tp, is_fp8 = config.tensor_model_parallel_size, implementation.fp8 is not None
    modes = getattr(base, "UserBufferQuantizationMode", None)  # since 2.7; before, a flag
    if modes is not None:
        precision: dict[str, Any] = {"quantization_modes": [modes.FP8 if is_fp8 else modes.NONE]}
    else:
        precision = {"use_fp8": is_fp8}
    base.initialize_ub(shape=shape, tp_size=tp, bootstrap_backend="nccl", **precision)
    config.tp_comm_overlap = True
