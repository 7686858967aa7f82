"""Seconds, bytes and peak memory of one conversion."""

import re
import resource
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Cost:
    size_bytes: int
    """Of the weights written."""
    seconds: float
    memory_before_bytes: int
    """Resident memory of this process when it began: Python and torch themselves."""
    peak_memory_bytes: int

    @property
    def gigabytes_per_second(self) -> float:
        return self.size_bytes / 1e9 / self.seconds

    def summary(self) -> str:
        return (
            f"{self.size_bytes / 1e9:.2f} GB in {self.seconds:.1f} s ({self.gigabytes_per_second:.2f} GB/s), "
            f"peak memory {self.peak_memory_bytes / 1e9:.2f} GB "
            f"({(self.peak_memory_bytes - self.memory_before_bytes) / 1e9:.2f} GB above the start)"
        )


class Meter:
    """Begins when made; `cost` ends it."""

    def __init__(self) -> None:
        # Linux: the peak counts from here. Where this file is not there, or not this process's to write (a sandbox, an
        # interpreter with capabilities of its own), from the start of the process.
        with suppress(OSError):
            _CLEAR.write_text("5")
        self._memory_before_bytes = _resident("VmRSS")
        self._started = time.perf_counter()

    def cost(self, *, size_bytes: int) -> Cost:
        return Cost(
            size_bytes=size_bytes,
            seconds=time.perf_counter() - self._started,
            memory_before_bytes=self._memory_before_bytes,
            peak_memory_bytes=_resident("VmHWM"),
        )


def _resident(field: str) -> int:
    found = re.findall(rf"{field}:\s+(\d+) kB", _STATUS.read_text()) if _STATUS.exists() else []
    return 1024 * (int(found[0]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
