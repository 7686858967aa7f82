"""Throughput, MFU and memory, and where the run's time went."""

from collections.abc import Sequence
from dataclasses import dataclass

from tools.report.content import Block, Missing, Section, Table, Text
from tools.report.figures import bars
from tools.report.metrics_file import number
from tools.report.numbers import duration, percent, size
from tools.report.run_record import RunRecord
from tools.report.training import step_figure

GIB = 1 << 30
PARTS = (
    ("train", "#009E73"), ("validate", "#0072B2"), ("save", "#E69F00"), ("other", "#CC79A7"), ("wait", "#BBBBBB"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TimeBudget:
    """Seconds of a run since its first start."""

    train: float
    """Of the steps that the run still holds."""
    validate: float
    save: float
    """Training stood still for it."""
    other: float | None
    """Allocated besides: starting, loading, steps that were lost. None where attempts.json does not say."""
    wait: float | None
    """Between one start's end and the next one's beginning; not allocated."""

    @property
    def allocated(self) -> float | None:
        return None if self.other is None else self.train + self.validate + self.save + self.other


def speed(runs: Sequence[RunRecord]) -> Section:
    """Figures of all runs together, then their time budgets."""
    blocks: list[Block] = []
    for title, column, unit, scale in (
        ("Throughput", "tokens_per_second", "tokens per second", 1.0),
        ("Model FLOPs per device", "tflops_per_device", "TFLOP/s per device", 1.0),
        ("Model FLOPs utilisation (MFU)", "mfu", "% of the card's peak", 100.0),
        ("Peak memory of a device", "peak_memory_bytes", "GiB", 1 / GIB),
        ("Goodput", "goodput", "% of the allocated time", 100.0),
    ):
        blocks += step_figure(runs, title, column, y_label=unit, scale=scale, from_zero=True)
    if all(run.metrics.last("mfu") is None for run in runs):
        blocks.append(Text("No MFU: the peak of this device is not known."))
    return Section("Speed and time", [*blocks, *_budget_blocks(runs)])


def budget(run: RunRecord) -> TimeBudget | None:
    """None if no step was reported."""
    metrics = run.metrics
    if (train := metrics.last("productive_seconds")) is None:
        return None
    validate = sum(number(row, "seconds") or 0.0 for row in metrics.rows["validation_time"])
    save = sum(number(row, "blocking_seconds") or 0.0 for row in metrics.rows["checkpoint"])
    if not run.attempts:
        return TimeBudget(train=train, validate=validate, save=save, other=None, wait=None)
    allocated = sum(attempt.last_seen - attempt.began for attempt in run.attempts)
    elapsed = max(attempt.last_seen for attempt in run.attempts) - run.attempts[0].began
    other = max(0.0, allocated - train - validate - save)
    return TimeBudget(train=train, validate=validate, save=save, other=other, wait=max(0.0, elapsed - allocated))


def _budget_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    found = [(run, spent) for run in runs if (spent := budget(run)) is not None]
    if not found:
        return [Text("No time budget: no training step has been reported.")]
    blocks: list[Block] = [
        Missing(f"{run.name}: attempts.json does not say how long it was allocated, so only known parts are shown")
        for run, spent in found
        if spent.other is None
    ]
    longest = max(spent.train + spent.validate + spent.save + (spent.other or 0.0) for _, spent in found)
    units = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
    unit, scale = next((entry for entry in units if longest >= 2 * entry[1]), units[-1])
    parts = [(name, colour, [(getattr(spent, name) or 0.0) / scale for _, spent in found]) for name, colour in PARTS]
    blocks.append(bars("Time budget", [run.name for run, _ in found], parts, x_label=unit))
    rows = []
    for run, spent in found:
        of = spent.allocated
        spans = (spent.train, spent.validate, spent.save, spent.other)
        shown = [duration(span) + (f" ({percent(span / of)})" if of and span is not None else "") for span in spans]
        rows.append([run.name, *shown, duration(spent.wait), percent(run.metrics.last("goodput"))])
    spans_named = ["train", "validate", "save", "other: starting, loading, lost steps"]
    blocks.append(Table(header=["run", *spans_named, "wait between starts", "goodput"], rows=rows))
    blocks += _saves(runs)
    return blocks


def _saves(runs: Sequence[RunRecord]) -> list[Block]:
    told: list[Block] = []
    for run in runs:
        rows = run.metrics.rows["checkpoint"]
        if not rows:
            continue
        blocked = [number(row, "blocking_seconds") or 0.0 for row in rows]
        largest = max(number(row, "snapshot_bytes") or 0.0 for row in rows)
        background = sum(row.get("in_background") is True for row in rows)
        told.append(
            Text(
                f"{run.name}: {len(rows)} checkpoints, {background} in the background; training stood still for "
                f"{duration(max(blocked))} at most, with a snapshot of {size(largest)} on rank 0."
            )
        )
    return told
