"""Rotary position embedding with positions given per token, so that they can restart at each document.

Legend: t tokens of one packed row, hn head dim.
"""

import math

import torch

from megatron_synE.model.llama import LlamaArchitecture, RopeScaling


def inverse_frequencies(architecture: LlamaArchitecture) -> torch.Tensor:
    """[hn / 2] in fp32: theta^(-2j/hn), stretched as rope_scaling says.

    Source of the llama3 rule: Llama 3.1's release; tested against transformers' at long positions.
    """
    dim = architecture.kv_channels
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    frequencies = 1.0 / (architecture.rotary_base**exponents)
    scaling = architecture.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    return _llama3(frequencies, scaling)


def _llama3(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    wavelengths = 2 * math.pi / frequencies
    longest_kept = scaling.original_max_position_embeddings / scaling.high_freq_factor
    shortest_stretched = scaling.original_max_position_embeddings / scaling.low_freq_factor
    ramp = (scaling.original_max_position_embeddings / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - ramp) * frequencies / scaling.factor + ramp * frequencies
    stretched = torch.where(wavelengths > shortest_stretched, frequencies / scaling.factor, blended)
    return torch.where(wavelengths < longest_kept, frequencies, stretched)


def cos_sin(inverse: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each [t, 1, hn], for int64 positions [t]; angles in fp32, cast last, as transformers does."""
    angles = torch.outer(positions.float(), inverse)  # [t, hn / 2]
    doubled = torch.cat((angles, angles), dim=-1).unsqueeze(1)  # [t, 1, hn]
    return doubled.cos().to(dtype), doubled.sin().to(dtype)
