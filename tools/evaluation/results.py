"""What an evaluation measured: results.json and tasks/*.json, as docs/evaluation.md describes."""

import json
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from data_mixers.atomic import write_atomic
from data_mixers.errors import DataError
from data_mixers.file_version import check_version

SCHEMA_VERSION = 1
EVALUATE_AGAIN = "evaluate again with `syne eval` into another folder"
RESULTS = "results.json"
Status = Literal["done", "open", "missing", "skipped"]
KNOWN_FIELDS = ConfigDict(extra="forbid")


@checked(frozen=True, kw_only=True, config=KNOWN_FIELDS)
class Item:
    """One question, answered and scored."""

    id: int
    doc_hash: str
    prompt_hash: str
    target: str
    answer: str
    score: float
    metrics: dict[str, float]
    likelihoods: tuple[float, ...] | None = None
    """Of each choice, in nats; None where the answer was written."""


@checked(frozen=True, kw_only=True, config=KNOWN_FIELDS)
class TaskResult:
    task: str
    metric: str
    num_fewshot: int
    seconds: float
    items: tuple[Item, ...]
    harness: dict[str, Any] = field(default_factory=dict)
    """What it was measured with: a later call, which loads no model, tells it of the task as it was."""
    num_truncated: int | None = None
    """Items whose prompt was cut at its beginning, to fit the model's context; None: measured before it was counted."""
    version: float | str | None = None
    """Of the task file, which another wording or another way to score changes; None: measured before it was kept."""

    @property
    def score(self) -> float:
        return sum(item.score for item in self.items) / len(self.items)


@checked(frozen=True, kw_only=True, config=KNOWN_FIELDS)
class BenchmarkResult:
    """A line of the table. Unit of scores: share."""

    name: str
    group: str
    language: str
    status: Status
    reason: str
    shots: int
    metric: str
    average: str
    chance: float
    published: str | None = None
    score: float | None = None
    num_items: int = 0
    interval: tuple[float, float] | None = None
    confidence: float = 0.95
    method: str = ""
    of: tuple[str, ...] = ()
    """For a line that stands for several benchmarks: which."""
    tasks: tuple[dict[str, Any], ...] = ()


@checked(frozen=True, kw_only=True, config=KNOWN_FIELDS)
class Results:
    """A results.json. folder: where it lies, with its tasks/."""

    folder: Path
    suite: dict[str, Any]
    model: dict[str, Any]
    harness: dict[str, Any]
    settings: dict[str, Any]
    started: str
    updated: str
    seconds: float
    complete: bool
    benchmarks: tuple[BenchmarkResult, ...]
    sums: tuple[BenchmarkResult, ...] = ()

    @property
    def label(self) -> str:
        return str(self.model["label"])

    @property
    def cautions(self) -> list[str]:
        """A line for every benchmark of which prompts were cut."""
        told = []
        for line in self.benchmarks:
            if cut := sum(task.get("num_truncated") or 0 for task in line.tasks):
                of = sum(task["num_items"] for task in line.tasks)
                told.append(truncation(line.name, cut, of=of, max_length=self.harness.get("max_length")))
        return told


def truncation(name: str, num_truncated: int, *, of: int, max_length: object) -> str:
    """What is said of prompts that were cut."""
    return (
        f"{num_truncated} of {of} prompts of {name} do not fit with their answers in the model's context of "
        f"{max_length} tokens, and were cut at their beginning"
    )


def write_results(results: Results) -> None:
    """results.json, whole at any time."""
    content = {"schema_version": SCHEMA_VERSION, "kind": "evaluation", **asdict(results)}
    del content["folder"]
    write_atomic(results.folder / RESULTS, json.dumps(content, ensure_ascii=False, indent=1).encode())


def read_results(path: Path) -> Results:
    """Of a folder or its results.json. Errors: DataError if it is not there or of another schema."""
    file = path / RESULTS if path.is_dir() else path
    content = _read(file)
    if content.pop("kind", None) != "evaluation":
        raise DataError(f"{file}: is no result of `syne eval`")
    check_version(content, understood=SCHEMA_VERSION, file=file, cure=EVALUATE_AGAIN, fault=DataError)
    del content["schema_version"]
    try:
        return TypeAdapter(Results).validate_python({**content, "folder": file.parent})
    except ValidationError as error:
        raise DataError(f"{file}: incomplete or with unknown fields ({_said(error)}); evaluate again") from error


def write_task(folder: Path, result: TaskResult, fingerprint: str) -> None:
    """tasks/<task>.json."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    content = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, **asdict(result)}
    write_atomic(task_file(folder, result.task), json.dumps(content, ensure_ascii=False).encode())


def read_task(folder: Path, task: str, *, fingerprint: str | None = None) -> TaskResult | None:
    """The kept result; None if there is none, or it is of other weights, data or settings.

    Errors: DataError if the file is damaged.
    """
    file = task_file(folder, task)
    if not file.is_file():
        return None
    content = _read(file)
    if content.pop("schema_version", None) != SCHEMA_VERSION:
        return None
    kept = content.pop("fingerprint", None)
    if fingerprint is not None and kept != fingerprint:
        return None
    try:
        return TypeAdapter(TaskResult).validate_python(content)
    except ValidationError as error:
        raise DataError(f"{file}: incomplete ({_said(error)}); remove it and evaluate again") from error


def task_file(folder: Path, task: str) -> Path:
    return folder / "tasks" / f"{task}.json"


def _said(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file; `syne eval` writes it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error}); remove it and evaluate again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds no JSON object; remove it and evaluate again")
    return content
