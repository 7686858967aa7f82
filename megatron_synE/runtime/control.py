"""Signals and the per-step agreement of all ranks: stop now? did a background save end, or fail? is the lease ours?

TERM, USR1 and USR2 all mean "save and leave". A rank that alone left a collective would hang the others, so every
decision is taken on values reduced over all ranks, on the host, and the reduction overlaps the step.
"""

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_mixers.errors import ConfigError, UserError

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

T = TypeVar("T")


def agreed(group: dist.ProcessGroup | None, act: Callable[[], T]) -> T:
    """What `act`, which must not use collectives, returns on this rank, once it went well on all.

    Without this a rank whose slice of the weights is damaged leaves its peers in a collective, and its reason unsaid.
    Collective: every rank of `group` (None: all). Errors: the first rank's UserError, on every rank.
    """
    result: list[T] = []
    fault: UserError | None = None
    try:
        result.append(act())
    except UserError as error:
        fault = error
    faults: list[UserError | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(faults, fault, group=group)
    for found in faults:
        if found is not None:
            raise found
    return result[0]


def from_rank_zero(group: dist.ProcessGroup, act: Callable[[], T]) -> T:
    """Rank 0 acts, every rank gets its result, or its fault. Collective: every rank of `group`, which starts at 0."""
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            found = [act(), None]
        except UserError as error:
            found = [None, error]
    dist.broadcast_object_list(found, src=0, group=group)
    result, fault = found
    if fault is not None:
        raise fault
    return result  # type: ignore[no-any-return]


def require_same(group: dist.ProcessGroup, facts: Mapping[str, object]) -> None:
    """Every rank reads files by itself; nothing else would tell that one of them read an older one.

    Collective: every rank of `group`. Errors: ConfigError on every rank, naming the first that differs from rank 0.
    """
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, dict(facts), group=group)
    keys = dict.fromkeys(key for theirs in found for key in theirs)  # one rank may have a fact that others lack
    for rank, theirs in enumerate(found):
        if other := [key for key in keys if theirs.get(key) != found[0].get(key)]:
            raise ConfigError(
                f"rank {rank} does not have rank 0's {', '.join(other)}: a file was edited while the run started, its "
                "node sees an old copy or has another installation; start again when all nodes have the same"
            )


def ranks_where(group: dist.ProcessGroup, fact: bool) -> list[int]:
    """The ranks on which `fact` holds. Collective: every rank of `group`, which holds all ranks."""
    facts = [False] * dist.get_world_size(group)
    dist.all_gather_object(facts, fact, group=group)
    return [rank for rank, holds in enumerate(facts) if holds]


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
    lease_lost: bool
    """Another process has become the run's writer."""


class Agreement:
    """One small all-reduce over all ranks on the gloo control group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._flags = torch.zeros(3, dtype=torch.int32)
        self._work: dist.Work | None = None

    def begin(self, *, stop: bool, save_failed: bool, lease_lost: bool) -> None:
        """Start reducing this rank's flags. Collective: every rank, once before each `result`."""
        self._flags = torch.tensor([stop, save_failed, lease_lost], dtype=torch.int32)
        self._work = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def result(self) -> Decision:
        """The agreed flags. Collective: every rank."""
        assert self._work is not None
        self._work.wait()
        self._work = None
        stop, failed, lost = (bool(value) for value in self._flags.tolist())
        return Decision(stop, failed, lost)
