"""What the launches of all kernels share: the type of their sums, block sizes, and how many programs fill a card."""

import torch
import triton.language as tl

PROGRAMS_OFF_GPU = 4
"""Under Triton's interpreter: a few, so that partial sums are tested."""


def accumulator(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """The type in which a kernel computes on `dtype`, in torch's and in Triton's words."""
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


def next_power_of_two(number: int) -> int:
    """The smallest one that is not below `number`; Triton's blocks are powers of two."""
    return 1 << max(0, number - 1).bit_length()


def warps_of(block: int) -> int:
    """16 elements a thread, so that a row and its gradient stay in registers. Ours, to be measured."""
    return min(16, max(1, block // 512))


def num_programs(device: torch.device, *, at_most: int) -> int:
    """One program a multiprocessor, for kernels that walk over rows; at least one."""
    fill = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else PROGRAMS_OFF_GPU
    return max(1, min(fill, at_most))
