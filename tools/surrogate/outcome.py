"""What a finished arm measured: held-out loss of every set at every validation, beside the tokens read until then."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from data_mixers.errors import DataError
from data_mixers.sampling import Sampler
from data_mixers.schedule import read_schedule
from tools.surrogate.study import Outcome


@dataclass(frozen=True, kw_only=True)
class Point:
    """One validation."""

    consumed_tokens: int
    read: Mapping[str, int]
    """language/source/topic -> tokens read of it."""
    nll: Mapping[str, float]
    """Held-out set -> nats per token."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A finished job."""

    arm: str
    seed: int
    curve: tuple[Point, ...]
    seconds: float
    """Of its steps, stops and restarts left out."""

    @property
    def final(self) -> Mapping[str, float]:
        return self.curve[-1].nll


def read_run(run: Path, *, arm: str, seed: int, global_batch_size: int) -> Measured:
    """From metrics.jsonl and schedule.json of a run that has ended. Errors: DataError naming what is missing."""
    metrics = run / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{metrics} cannot be read: {error}") from error
    losses: dict[int, dict[str, float]] = {}
    tokens: dict[int, int] = {}
    for row in rows:
        if row["kind"] == "validation":
            losses.setdefault(row["iteration"], {})[row["set"]] = row["nll"]
            tokens[row["iteration"]] = row["consumed_tokens"]
    if not losses:
        raise DataError(f"{metrics}: holds no validation; a study needs validation.manifests")
    sampler = Sampler(read_schedule(run))
    curve = tuple(
        Point(consumed_tokens=tokens[number], read=_read(sampler, number * global_batch_size), nll=losses[number])
        for number in sorted(losses)
    )
    seconds = next((row["productive_seconds"] for row in reversed(rows) if row["kind"] == "train"), 0.0)
    return Measured(arm=arm, seed=seed, curve=curve, seconds=seconds)


def _read(sampler: Sampler, consumed_samples: int) -> dict[str, int]:
    schedule = sampler.schedule
    counts = sampler.read(consumed_samples)
    read: dict[str, int] = {}
    for source, count in zip(schedule.sources, counts, strict=True):
        topic = topic_of(source.name)
        read[topic] = read.get(topic, 0) + int(count) * schedule.seq_length
    return read


def topic_of(name: str) -> str:
    """language/source/topic of a source or held-out set, its bucket and suffix left away."""
    return "/".join(name.partition("@")[0].split("/")[:3])


def members(outcome: Outcome, group: str, sets: Sequence[str]) -> list[str]:
    """The held-out sets of a group."""
    return [name for name in sets if any(fnmatchcase(name, glob) for glob in outcome.groups[group])]


def group_loss(outcome: Outcome, group: str, nll: Mapping[str, float]) -> float:
    """Mean of a group's sets, each counted alike, nats per token."""
    return statistics.fmean(nll[name] for name in members(outcome, group, list(nll)))
