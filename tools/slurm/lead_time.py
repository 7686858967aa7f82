"""How long before its wall time a job must be told to save."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_SECONDS = 600
"""Ours, until the run has saved once: users report 40 s to 6 min for a save of 8B."""
SHORTEST_SECONDS = 30
RECENT_STEPS = 200
_TAIL_BYTES = 4 << 20


@dataclass(frozen=True)
class LeadTime:
    """Seconds between the signal and the wall time, and where the number comes from."""

    seconds: int
    reason: str


def lead_time(metrics: Path) -> LeadTime:
    """Twice the slowest save on record, one step and one validation batch, rounded up to ten seconds.

    metrics: the run's metrics.jsonl. A validation batch is a forward pass of a part of a global batch, so the slowest
    recent step stands for it too; where not every step is logged, the slowest mean.
    """
    rows = _last_rows(metrics)
    saves = [float(row["seconds"]) for row in rows if row.get("kind") == "checkpoint" and "seconds" in row]
    steps = [float(row["step_seconds"]) for row in rows if row.get("kind") == "train" and "step_seconds" in row]
    if not saves or not steps:
        return LeadTime(DEFAULT_SECONDS, f"default, {metrics} tells of no save yet")
    save, step = max(saves), max(steps[-RECENT_STEPS:])
    seconds = max(SHORTEST_SECONDS, 10 * -(-int(2 * save + 2 * step + 1) // 10))
    return LeadTime(
        seconds, f"2 x {save:.1f} s (slowest save measured) + 2 x {step:.1f} s (a step, a validation batch)"
    )


def _last_rows(metrics: Path) -> list[dict[str, Any]]:
    try:
        with metrics.open("rb") as stream:
            stream.seek(max(0, metrics.stat().st_size - _TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut, at either end
        if isinstance(row, dict):
            rows.append(row)
    return rows
