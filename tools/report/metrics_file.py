"""metrics.jsonl as a report needs it: columns of the steps, rows of everything else, and what could not be read.

A run may still be writing, may have been killed in the middle of a line, or be of another version: nothing here fails
for what a line holds. Memory: a few numbers a step.
"""

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

Row = dict[str, Any]
Numbers = npt.NDArray[np.float64]

TRAIN_COLUMNS = (
    "iteration", "consumed_samples", "consumed_tokens", "lm_loss", "grad_norm", "learning_rate", "step_seconds",
    "tokens_per_second", "tflops_per_device", "mfu", "peak_memory_bytes", "productive_seconds", "goodput",
)  # fmt: skip
KEPT_KINDS = (
    "validation", "validation_time", "checkpoint", "recovery", "hardware", "reweight", "topic_share", "guard",
)  # fmt: skip
_HEAVY_KEYS = ("losses", "answers")
"""Of a guard's row: a number per held-out document, of no use here."""
_UNREAD = '{"kind": "observation"'
"""The same per topic: so long that it is not even parsed."""
LARGEST = 1e100
"""Ours: nothing that is measured is larger, and a drawing's own arithmetic overflows not far beyond."""
MOST_READINGS = 480
"""Of the cumulative count of samples per source: twice as many are thinned to so many."""


@dataclass
class Slowness:
    """What the `ranks` rows say, added up: a row for every ten steps and a number for every rank would be too much."""

    num_comparisons: int = 0
    num_ranks: int = 0
    times_slow: Counter[int] = field(default_factory=Counter)
    worst_ratio: float = 0.0
    """Of a rank's own seconds in a step to the median rank's."""


@dataclass
class Readings:
    """Samples read of each source so far, at some of the steps. Dropping one changes no share between two others."""

    _kept: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    _last: tuple[float, dict[str, float]] | None = None
    """Where it is none of them: the last one always stays."""
    _every: int = 1
    _seen: int = 0

    def add(self, tokens: float, by_source: dict[str, float]) -> None:
        self._last = (tokens, by_source)
        if self._seen % self._every == 0:
            self._kept.append(self._last)
            self._last = None
        self._seen += 1
        if len(self._kept) > 2 * MOST_READINGS:
            self._every *= 2
            self._kept = self._kept[::2]

    def all(self) -> list[tuple[float, dict[str, float]]]:
        """(tokens, samples by source), ascending."""
        return self._kept if self._last is None else [*self._kept, self._last]


class MetricsFile:
    def __init__(self) -> None:
        self._columns = {name: array("d") for name in TRAIN_COLUMNS}
        self.rows: dict[str, list[Row]] = {kind: [] for kind in KEPT_KINDS}
        self.readings = Readings()
        self.slowness = Slowness()
        self.num_lines = 0
        self.num_bad = 0
        self.first_bad: int | None = None
        """Number of the first line that is no row."""
        self.unknown_kinds: Counter[str] = Counter()

    @property
    def num_steps(self) -> int:
        return len(self._columns["iteration"])

    def column(self, name: str) -> Numbers:
        """A number per logged step; NaN where the row has none."""
        return np.array(self._columns[name], dtype=np.float64)

    def last(self, name: str) -> float | None:
        """The last step's; None without one."""
        column = self._columns[name]
        return column[-1] if len(column) and math.isfinite(column[-1]) else None

    def feed(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.num_lines += 1
            if line.startswith(_UNREAD) or not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict) or not isinstance(row.get("kind"), str) or number(row, "iteration") is None:
                self.num_bad += 1
                self.first_bad = self.first_bad or self.num_lines
                continue
            self._take(row)

    def _take(self, row: Row) -> None:
        kind = row["kind"]
        if kind == "train":
            for name, column in self._columns.items():
                value = number(row, name)
                column.append(math.nan if value is None else value)
            by_source, tokens = row.get("samples_by_source"), number(row, "consumed_tokens")
            if isinstance(by_source, dict) and tokens is not None:
                counts = {name: count for name in by_source if (count := number(by_source, name)) is not None}
                self.readings.add(tokens, counts)
        elif kind == "ranks":
            self._compare(row)
        elif kind in self.rows:
            self.rows[kind].append({key: value for key, value in row.items() if key not in _HEAVY_KEYS})
        elif kind != "observation":
            self.unknown_kinds[kind] += 1

    def _compare(self, row: Row) -> None:
        seconds = row.get("compute_seconds")
        finite = [value for value in seconds if is_number(value)] if isinstance(seconds, list) else []
        if not finite:
            return
        self.slowness.num_comparisons += 1
        self.slowness.num_ranks = max(self.slowness.num_ranks, len(finite))
        if (median := float(np.median(finite))) > 0:
            self.slowness.worst_ratio = max(self.slowness.worst_ratio, max(finite) / median)
        slow = row.get("slow_ranks")
        self.slowness.times_slow.update(rank for rank in (slow if isinstance(slow, list) else ()) if is_index(rank))


def number(row: Row, key: str) -> float | None:
    """A finite number under this key; None for anything else."""
    value = row.get(key)
    return float(value) if is_number(value) else None


def column_of(rows: Sequence[Row], key: str) -> Numbers:
    """A number per row; NaN where the row has none."""
    return np.array([number(row, key) for row in rows], dtype=np.float64)


def is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, float):
        return abs(value) < LARGEST  # neither NaN nor infinity
    return is_index(value) and abs(value) < 1 << 63  # JSON's integers may be too large for a float


def is_index(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def words(row: Row, key: str) -> list[str]:
    """The strings of a list under this key."""
    value = row.get(key)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
