"""A linear layer's weight gradient, added to the fp32 main gradient by the product that computes it.

megatron-core has the place for it, `gradient_accumulation_fusion`: between the collectives of tensor parallelism its
linear layers hand the product to apex's extension and tell DDP's hook that nothing is left to add. Where apex is not
installed, the products here stand under its name, so the layers, their collectives and the hook stay megatron-core's.

Legend: t tokens, o outputs and i inputs of the layer on this TP rank.
"""

import importlib.util
from functools import cache

import torch

from megatron_synE.runtime.mcore import mcore_linear

EXTENSION = "fused_weight_gradient_mlp_cuda"


def add_product(main_grad: torch.Tensor, d_output: torch.Tensor, input: torch.Tensor) -> None:
    """main_grad [o, i] += d_output [t, o]ᵀ · input [t, i].

    In one product where torch has one: types alike, or bf16 into fp32 on CUDA, which is then not rounded to bf16
    before it is added. Else, as on a CPU in bf16, what DDP's hook would do: a product in bf16, then the sum.
    """
    if main_grad.dtype == input.dtype:
        main_grad.addmm_(d_output.t(), input)
    elif adds_into_fp32(main_grad.device):
        torch.ops.aten.addmm.dtype_out(main_grad, d_output.t(), input, main_grad.dtype, out=main_grad)
    else:
        main_grad.add_(d_output.t() @ input)


@cache
def adds_into_fp32(device: torch.device) -> bool:
    """Whether torch adds a bf16 product to an fp32 matrix there: asked by doing it once."""
    total = torch.ones(16, 16, device=device)
    one = total.bfloat16()
    try:
        torch.ops.aten.addmm.dtype_out(total, one, one, total.dtype, out=total)
    except RuntimeError:  # no kernel for this device, or a version that wants all three types alike
        return False
    return bool((total == 17).all())  # one that wrote over its sum would lose all micro-batches but the last


class Products:
    """Under the names of apex's extension."""

    @staticmethod
    def wgrad_gemm_accum_fp32(input: torch.Tensor, d_output: torch.Tensor, main_grad: torch.Tensor) -> None:
        add_product(main_grad, d_output, input)

    wgrad_gemm_accum_fp16 = wgrad_gemm_accum_fp32  # for main gradients in bf16 (training.grad_reduce_in_fp32: false)


def install_where_needed() -> str:
    """Make megatron-core's linear layers able to fuse; whose product they will use."""
    if importlib.util.find_spec(EXTENSION) is not None:
        return "apex"
    mcore_linear.fused_weight_gradient_mlp_cuda = Products
    mcore_linear._grad_accum_fusion_available = True
    return "torch"
