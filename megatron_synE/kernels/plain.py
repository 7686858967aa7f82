"""What the fused kernels compute, in plain torch: the reference of their tests, and what runs where they cannot.

Legend: t tokens, h hidden, f MLP width on this TP rank, np heads, hn head dim.
"""

import torch
from torch.nn.functional import rms_norm as torch_rms_norm
from torch.nn.functional import silu


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., h] / rms(x) * weight [h]."""
    return torch_rms_norm(x, (x.shape[-1],), weight, eps)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """Gate and up [..., 2f] -> silu(gate) * up [..., f]."""
    gate, up = x.chunk(2, dim=-1)
    return silu(gate) * up


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [t, np, hn] turned by cos and sin [t, 1, hn]; the halves convention of HF checkpoints."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin
