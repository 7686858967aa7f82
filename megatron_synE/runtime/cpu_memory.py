"""On a CPU: keep freed memory in the process.

A step frees and asks again for the same tensors. glibc hands blocks above a limit back to the kernel at once, and each
comes back as zeroed pages of 4 KB, one fault each: 470,000 faults in a step of SmolLM2-135M (docs/performance.md).
"""

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""glibc, malloc.h."""
_NEVER = (1 << 31) - 1
_TOP_PAD = 1 << 26


def keep_freed_memory() -> bool:
    """Tell glibc to keep blocks of any size; False where the C library is another one.

    By a size they could be told apart up to 32 MB alone, and the gradient of an embedding is larger: so none gets a
    mapping of its own.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        options = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _TOP_PAD))
        return all(mallopt(option, value) == 1 for option, value in options)
    return False
