"""How long this rank reads and computes in a step, before it waits for the others to reduce gradients with."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from megatron_synE.runtime.device import Device

MOST_STEPS = 1000
"""Of which times are kept: where nobody asks (one rank, no straggler_factor) they would pile up for the whole run."""


class StepTimer:
    """From the start of a step to its gradients being ready. Ranks of one pipeline wait for each other in between."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._began: Any = None
        self._spans: deque[tuple[Any, Any]] = deque(maxlen=MOST_STEPS)

    def start(self) -> None:
        self._began = self._now()

    def before(self, reduce: Callable[..., Any]) -> Callable[..., Any]:
        """`reduce`, with the gradients ready when it is called."""

        def timed(*arguments: Any, **named: Any) -> Any:
            if self._began is not None:
                self._spans.append((self._began, self._now()))
                self._began = None
            return reduce(*arguments, **named)

        return timed

    @property
    def num_steps(self) -> int:
        """Steps since the last `mean_seconds`, at most MOST_STEPS; the same on every rank."""
        return len(self._spans)

    def mean_seconds(self) -> float:
        """Of the steps since the last call, the newest MOST_STEPS. Call it when the device has finished them."""
        seconds = [self._seconds(*span) for span in self._spans]
        self._spans.clear()
        return sum(seconds) / max(len(seconds), 1)

    def _now(self) -> Any:
        if not self._device.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # on the stream: the host runs ahead of the device
        event.record()
        return event

    def _seconds(self, began: Any, ended: Any) -> float:
        return float(began.elapsed_time(ended) / 1000 if self._device.is_cuda else ended - began)
