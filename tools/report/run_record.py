"""Everything a run folder says, read without trust: what is missing or damaged becomes a sentence."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import yaml

from data_mixers.errors import DataError, UserError
from data_mixers.schedule import SCHEDULE_NAME, Schedule, read_schedule
from megatron_synE.attempts import ATTEMPTS, Attempt
from megatron_synE.attempts import read as read_attempts
from megatron_synE.checkpoint import layout
from megatron_synE.config.load import load_config
from megatron_synE.config.schema import RunConfig
from megatron_synE.runtime.lease import Holder, read_holder
from megatron_synE.runtime.run_dir import RunDir, check_run_version
from tools.report.metrics_file import MetricsFile, is_number

T = TypeVar("T")
METRICS, CONFIG, MANIFEST = "metrics.jsonl", "run_config.yaml", "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder iter_*."""

    folder: Path
    iteration: int
    fault: str | None
    """Why it is not whole (sizes; contents are not hashed)."""
    manifest: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    folder: Path
    name: str
    """Unique in a report."""
    metrics: MetricsFile
    schedule: Schedule | None
    config: RunConfig | None
    manifest: Mapping[str, Any]
    """Of the run; empty if it cannot be read."""
    attempts: tuple[Attempt, ...]
    checkpoints: tuple[Checkpoint, ...]
    holder: Holder | None
    missing: tuple[str, ...] = field(default=())
    """What is not there or cannot be read, a sentence each."""

    @cached_property
    def tokens_before(self) -> float:
        """Read by what this run branched from, before its first sample."""
        if self.seq_length is None or not self.metrics.num_steps:
            return 0.0
        tokens, samples = self.metrics.column("consumed_tokens"), self.metrics.column("consumed_samples")
        before = float(tokens[0] - samples[0] * self.seq_length)
        return before if is_number(before) else 0.0

    @property
    def seq_length(self) -> int | None:
        if self.schedule is not None:
            return self.schedule.seq_length
        return None if self.config is None else self.config.training.seq_length

    @property
    def global_batch_size(self) -> int | None:
        return None if self.config is None else self.config.training.global_batch_size

    @property
    def num_iterations(self) -> int | None:
        """Of the whole run, as planned."""
        if self.schedule is None or self.global_batch_size is None:
            return None
        return self.schedule.num_samples // self.global_batch_size

    @property
    def iteration(self) -> int:
        """Of the last step reported."""
        return int(self.metrics.last("iteration") or 0)

    @property
    def is_finished(self) -> bool:
        return self.num_iterations is not None and self.iteration >= self.num_iterations

    def tokens_at_sample(self, sample: int) -> float | None:
        """Tokens read when this sample is next."""
        return None if self.seq_length is None else self.tokens_before + sample * self.seq_length

    def tokens_at(self, iteration: int) -> float | None:
        """Tokens read after this iteration."""
        return None if self.global_batch_size is None else self.tokens_at_sample(iteration * self.global_batch_size)

    @property
    def stage_begins(self) -> list[float]:
        """Tokens at which a stage of the plan begins, without the first."""
        phases = () if self.schedule is None else self.schedule.phases
        stages = [b for a, b in pairwise(phases) if stage_of(a.name) != stage_of(b.name)]
        return [tokens for phase in stages if (tokens := self.tokens_at_sample(phase.start_sample)) is not None]


def stage_of(phase_name: str) -> str:
    """The stage whose phase this is: a curriculum's are called "<stage>, step <n>"."""
    return phase_name.rpartition(", step ")[0] or phase_name


def read_run(folder: Path, *, is_watched: bool = False) -> RunRecord:
    """Errors: DataError if there is no such folder; for anything else the record says what is missing.

    is_watched: without metrics.jsonl, which is read as it grows, and without checkpoints: a look at each of their files
    every other second is no way to treat a shared disk.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the folder of a run (run.dir)")
    missing: list[str] = []
    metrics = MetricsFile() if is_watched else _metrics(folder / METRICS, missing)
    schedule = _or_said(lambda: read_schedule(folder), folder / SCHEDULE_NAME, missing, "what was planned")
    config = _or_said(lambda: load_config(folder / CONFIG).resolved, folder / CONFIG, missing, "its settings")
    manifest = _or_said(lambda: _manifest(folder / MANIFEST), folder / MANIFEST, missing, "what ran, on what")
    attempts = _or_said(lambda: read_attempts(RunDir(folder)), folder / ATTEMPTS, missing, "its starts")
    holder = _or_said(lambda: read_holder(folder), None, missing, "")
    folders = [] if is_watched else layout.iteration_folders(folder / layout.CHECKPOINTS)
    if not folders and not is_watched:
        missing.append(f"{folder / layout.CHECKPOINTS} holds no checkpoint: no lineage, no tokenizer")
    named = config.run.name if config is not None else (manifest or {}).get("run")
    return RunRecord(
        folder=folder,
        name=named if isinstance(named, str) and named else folder.resolve().name,
        metrics=metrics,
        schedule=schedule,
        config=config,
        manifest=manifest or {},
        attempts=attempts or (),
        checkpoints=tuple(map(_checkpoint, folders)),
        holder=holder,
        missing=tuple(missing),
    )


def with_names(runs: list[RunRecord]) -> list[RunRecord]:
    """The same with each name once: equal names get their folders, then numbers."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.name} ({run.folder.resolve().name})" if names.count(run.name) > 1 else run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, start=1)]
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def read_json(file: Path) -> dict[str, Any]:
    """Errors: DataError for anything but a JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no JSON object")
    return content


def _manifest(file: Path) -> dict[str, Any]:
    content = read_json(file)
    check_run_version(content, file)
    return content


def _metrics(file: Path, missing: list[str]) -> MetricsFile:
    metrics = MetricsFile()
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            metrics.feed(stream)
    except OSError as error:
        missing.append(f"{file}: {error.strerror}; no curve can be drawn without it")
        return metrics
    if metrics.num_bad:
        last = " (the last one, which may be in the middle of being written)"
        where = last if metrics.first_bad == metrics.num_lines else f", the first is line {metrics.first_bad}"
        missing.append(f"{file}: {metrics.num_bad} of {metrics.num_lines} lines are no rows{where}; they are left out")
    if metrics.unknown_kinds:
        kinds = ", ".join(sorted(metrics.unknown_kinds))
        missing.append(f"{file} holds rows of kinds that this version does not know: {kinds}; they are left out")
    if not metrics.num_steps:
        missing.append(f"{file} holds no training step yet")
    return metrics


def _or_said(read: Callable[[], T], file: Path | None, missing: list[str], what: str) -> T | None:
    """What `read` gives; a sentence in `missing` if it cannot. file: must be there, if given."""
    if file is not None and not file.is_file():
        missing.append(f"{file} is missing: {what} cannot be shown")
        return None
    try:
        return read()
    except UserError as error:
        missing.append(str(error))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError) as error:
        # What a file that no run of this version wrote can be wrong in.
        missing.append(f"{file} cannot be read ({type(error).__name__}: {error})")
    return None


def _checkpoint(folder: Path) -> Checkpoint:
    manifest: dict[str, Any] | None = None
    try:
        manifest = layout.read_manifest(folder)
        layout.check_complete(folder, verify_hashes=False)
        fault = None
    except UserError as error:
        fault = str(error)
    except (KeyError, TypeError, AttributeError) as error:
        fault = f"{folder / layout.MANIFEST} is not this version's ({type(error).__name__}: {error})"
    return Checkpoint(folder=folder, iteration=layout.iteration_of(folder), fault=fault, manifest=manifest)
