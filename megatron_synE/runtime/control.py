"""Signals and the per-step agreement of all ranks: stop now? did a background save end, or fail?

TERM, USR1 and USR2 all mean "save and leave". A rank that alone left a collective would hang the others, so every
decision is taken on values reduced over all ranks, on the host, and the reduction overlaps the step.
"""

import logging
import signal
from dataclasses import dataclass

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Whether this process has been asked to stop; the handler only sets a flag."""

    def __init__(self) -> None:
        self.received: str | None = None
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self.received = signal.Signals(number).name


@dataclass(frozen=True)
class Decision:
    """What all ranks agreed on."""

    stop: bool
    save_failed: bool
    save_ended: bool
    """Every rank's background save has ended."""


class Agreement:
    """One small all-reduce over all ranks on the gloo control group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._flags = torch.zeros(3, dtype=torch.int32)
        self._work: dist.Work | None = None

    def begin(self, *, stop: bool, save_failed: bool, save_running: bool) -> None:
        """Start reducing this rank's flags. Collective: every rank, once before each `result`."""
        self._flags = torch.tensor([stop, save_failed, save_running], dtype=torch.int32)
        self._work = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def result(self) -> Decision:
        """The agreed flags. Collective: every rank."""
        assert self._work is not None
        self._work.wait()
        self._work = None
        stop, failed, running = (bool(value) for value in self._flags.tolist())
        return Decision(stop, failed, not running)
