"""How long before its wall time a job must be told to save."""

import json
from dataclasses import dataclass
from pathlib import Path

from megatron_synE.checkpoint import layout
from megatron_synE.exit_codes import CheckpointError

DEFAULT_SECONDS = 600
"""Ours, until the run has saved once: users report 40 s to 6 min for a save of 8B."""
SHORTEST_SECONDS = 30
RECENT_STEPS = 200
_TAIL_BYTES = 1 << 20


@dataclass(frozen=True)
class LeadTime:
    """Seconds between the signal and the wall time, and where the number comes from."""

    seconds: int
    reason: str


def lead_time(run_dir: Path) -> LeadTime:
    """Twice the last measured save, one step and one validation batch, rounded up to ten seconds.

    A validation batch is a forward pass of part of a global batch: the slowest recent step stands for it.
    """
    saved = _save_seconds(run_dir / layout.CHECKPOINTS)
    step = _slowest_step(run_dir / "metrics.jsonl")
    if saved is None or step is None:
        return LeadTime(DEFAULT_SECONDS, f"default; no save of {run_dir} has been measured yet")
    needed = 2 * saved + 2 * step
    seconds = max(SHORTEST_SECONDS, 10 * -(-int(needed + 1) // 10))
    return LeadTime(seconds, f"2 x {saved:.1f} s (measured save) + 2 x {step:.1f} s (a step, a validation batch)")


def _save_seconds(checkpoints: Path) -> float | None:
    """Of the newest complete checkpoint that says how long it took."""
    for folder in reversed(layout.complete_checkpoints(checkpoints)):
        try:
            seconds = layout.read_manifest(folder).get("save_seconds")
        except CheckpointError:
            continue
        if isinstance(seconds, int | float):
            return float(seconds)
    return None


def _slowest_step(metrics: Path) -> float | None:
    """Of the last steps on record; the first step of a job, which compiles and warms up, is among them at times."""
    try:
        with metrics.open("rb") as stream:
            stream.seek(max(0, metrics.stat().st_size - _TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return None
    seconds = []
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the cut line at either end
        if row.get("kind") == "train" and "step_seconds" in row:
            seconds.append(float(row["step_seconds"]))
            if len(seconds) == RECENT_STEPS:
                break
    return max(seconds, default=None)
