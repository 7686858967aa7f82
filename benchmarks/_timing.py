"""Seconds of a piece of work on a device: warmed up, synchronised, the median of several."""

import time
from collections.abc import Callable
from statistics import median

from megatron_synE.runtime.device import Device


def seconds_of(work: Callable[[], object], device: Device, *, repeats: int = 10, warm_up: int = 3) -> float:
    """Median seconds of one call. Each is waited for: what is launched ahead would hide the host's own time."""
    for _ in range(warm_up):
        work()
    found = []
    for _ in range(repeats):
        device.synchronize()
        started = time.perf_counter()
        work()
        device.synchronize()
        found.append(time.perf_counter() - started)
    return median(found)
