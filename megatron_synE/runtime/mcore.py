"""The one gateway to megatron-core: everything we use of it is imported here, after the CPU view is in place.

Importing this module picks the device: a visible CUDA device is used, else megatron-core is made to run on the CPU.
`device: cpu` in a run hides CUDA before torch is imported (train.py), so this test decides alike on every rank.
"""

# ruff: noqa: E402  # what is imported from megatron-core must come after the CPU view

import importlib.metadata
import logging
import sys

import torch

from megatron_synE.runtime import cpu_compat

_VERSION = importlib.metadata.version("megatron-core")

cpu_compat.quiet()
if not torch.cuda.is_available():
    cpu_compat.install(_VERSION)
elif _VERSION not in cpu_compat.KNOWN_VERSIONS:
    logging.getLogger(__name__).warning(
        "megatron-core %s is new to us (known: %s)", _VERSION, cpu_compat.KNOWN_VERSIONS
    )

# Its inference engine, which we do not use, imports wandb where it is installed, at every start. What is None here
# cannot be imported, and is taken for missing.
_hides_wandb = sys.modules.setdefault("wandb", None) is None  # type: ignore[arg-type]

import megatron.core.distributed.param_and_grad_buffer as mcore_param_and_grad_buffer
import megatron.core.optimizer as mcore_optimizer
import megatron.core.optimizer.clip_grads as mcore_clip_grads
import megatron.core.optimizer.distrib_optimizer as mcore_distrib_optimizer
import megatron.core.tensor_parallel.layers as mcore_linear
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add  # isort: skip

if _hides_wandb:
    del sys.modules["wandb"]

__all__ = [
    "MLP",
    "AttnMaskType",
    "ColumnParallelLinear",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "Float16Module",
    "GPTModel",
    "IdentityOp",
    "MLPSubmodules",
    "MegatronModule",
    "ModuleSpec",
    "OptimizerConfig",
    "PackedSeqParams",
    "ProcessGroupCollection",
    "RowParallelLinear",
    "SelfAttention",
    "SelfAttentionSubmodules",
    "TransformerBlockSubmodules",
    "TransformerConfig",
    "TransformerLayer",
    "TransformerLayerSubmodules",
    "build_module",
    "finalize_model_grads",
    "get_bias_dropout_add",
    "get_forward_backward_func",
    "get_megatron_optimizer",
    "get_num_layers_to_build",
    "get_standard_config_overrides",
    "mcore_clip_grads",
    "mcore_distrib_optimizer",
    "mcore_linear",
    "mcore_optimizer",
    "mcore_param_and_grad_buffer",
    "parallel_state",
    "tensor_parallel",
]
