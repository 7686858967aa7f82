"""Seconds of a piece of work on a device, warmed up, the median of several: as waited for, or of the card alone."""

import time
from collections.abc import Callable
from statistics import median

import torch

from megatron_synE.runtime.device import Device

SLEEP_CYCLES = 10_000_000
"""About 5 ms of a card's clock: longer than the host takes to launch one kernel."""


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


def device_seconds_of(work: Callable[[], object], device: Device, *, repeats: int = 20, warm_up: int = 3) -> float:
    """Median seconds that the card works on one call, without the host's launches: of kernels of microseconds.

    The card sleeps first, so that all of `work` is queued when it comes to it. On a CPU as seconds_of.
    """
    if not device.is_cuda:
        return seconds_of(work, device)
    for _ in range(warm_up):
        work()
    spans = []
    for _ in range(repeats):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(SLEEP_CYCLES)
        began.record()
        work()
        ended.record()
        spans.append((began, ended))
    device.synchronize()
    return median(began.elapsed_time(ended) / 1000 for began, ended in spans)
