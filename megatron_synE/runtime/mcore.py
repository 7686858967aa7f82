"""The one gateway to megatron-core: everything we use of it is imported here, after the CPU view is in place.

Importing this module picks the device: a visible CUDA device is used, else megatron-core is made to run on the CPU.
`device: cpu` in a run hides CUDA before torch is imported (train.py), so this test decides alike on every rank.
"""

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

import megatron.core.distributed.param_and_grad_buffer as mcore_param_and_grad_buffer  # noqa: E402
import megatron.core.optimizer as mcore_optimizer  # noqa: E402
import megatron.core.optimizer.clip_grads as mcore_clip_grads  # noqa: E402
import megatron.core.optimizer.distrib_optimizer as mcore_distrib_optimizer  # noqa: E402
import megatron.core.tensor_parallel.layers as mcore_linear  # noqa: E402
from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.num_microbatches_calculator import (  # noqa: E402
    destroy_num_microbatches_calculator,
    init_num_microbatches_calculator,
)
from megatron.core.optimizer import (  # noqa: E402
    OptimizerConfig,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.packed_seq_params import PackedSeqParams  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: E402
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear  # noqa: E402
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules  # noqa: E402
from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from megatron.core.transformer.identity_op import IdentityOp  # noqa: E402
from megatron.core.transformer.mlp import MLP, MLPSubmodules  # noqa: E402
from megatron.core.transformer.module import Float16Module, MegatronModule  # noqa: E402
from megatron.core.transformer.spec_utils import ModuleSpec, build_module  # noqa: E402
from megatron.core.transformer.transformer_block import (  # noqa: E402
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402
from megatron.core.transformer.transformer_layer import (  # noqa: E402
    TransformerLayer,
    TransformerLayerSubmodules,
)

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add  # noqa: E402  isort: skip

if _hides_wandb:
    del sys.modules["wandb"]

__all__ = [
    "MLP", "AttnMaskType", "ColumnParallelLinear", "DistributedDataParallel",
    "DistributedDataParallelConfig", "Float16Module", "GPTModel", "IdentityOp", "MLPSubmodules", "MegatronModule",
    "ModuleSpec", "OptimizerConfig", "PackedSeqParams", "ProcessGroupCollection", "RowParallelLinear",
    "SelfAttention", "SelfAttentionSubmodules", "TransformerBlockSubmodules", "TransformerConfig",
    "TransformerLayer", "TransformerLayerSubmodules", "build_module", "destroy_num_microbatches_calculator",
    "finalize_model_grads", "get_bias_dropout_add", "get_forward_backward_func", "get_megatron_optimizer",
    "get_num_layers_to_build", "get_standard_config_overrides", "init_num_microbatches_calculator",
    "mcore_clip_grads", "mcore_distrib_optimizer", "mcore_linear", "mcore_optimizer", "mcore_param_and_grad_buffer",
    "parallel_state", "tensor_parallel",
]  # fmt: skip
