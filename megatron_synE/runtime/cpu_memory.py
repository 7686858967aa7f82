"""On a CPU: keep freed memory in the process.

A step frees and asks again for the same tensors. glibc hands blocks above a limit back to the kernel at once, and each
comes back as zeroed pages of 4 KB, one fault each: 470,000 faults in a step of SmolLM2-135M (docs/performance.md).
"""

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""glibc, malloc.h."""
_LARGEST_KEPT = 1 << 25
"""The most that glibc takes for the mmap threshold (HEAP_MAX_SIZE / 2). Larger blocks could be kept as well, by
M_MMAP_MAX = 0, but among small ones that live long their holes are seldom filled: a process of 0.4 GB took 1.3."""
_FREE_AT_THE_END = (1 << 31) - 1
"""So many free bytes at the heap's end are kept."""
_TOP_PAD = 1 << 26


def keep_freed_memory() -> bool:
    """Tell glibc to keep blocks up to 32 MB; False where the C library is another one."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return all(
            mallopt(option, value) == 1
            for option, value in (
                (_M_MMAP_THRESHOLD, _LARGEST_KEPT), (_M_TRIM_THRESHOLD, _FREE_AT_THE_END), (_M_TOP_PAD, _TOP_PAD),
            )
        )  # fmt: skip
    return False
