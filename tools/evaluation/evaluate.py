"""`syne eval`: every task of a suite on one model, kept item by item; what is done already is not done again.

plan (tasks, data, needs: all faults at once) -> model -> task after task -> tasks/<task>.json, results.json
"""

import datetime
import hashlib
import json
import logging
import shlex
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_mixers.errors import ConfigError, DataError
from tools.data.progress import LiveProgress
from tools.data.stage import only_one
from tools.evaluation import harness
from tools.evaluation.data_files import Found, catalogue, find
from tools.evaluation.harness import PlannedTask
from tools.evaluation.options import EvalOptions
from tools.evaluation.results import (
    RESULTS,
    BenchmarkResult,
    Results,
    Status,
    TaskResult,
    read_results,
    read_task,
    task_file,
    truncation,
    write_results,
    write_task,
)
from tools.evaluation.statistics import interval_of
from tools.evaluation.subjects import CONVERTED, Subject, as_hf, fingerprint, results_folder, subjects_of
from tools.evaluation.suite import Benchmark, Suite, Sum, read_suite, suite_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One benchmark of the plan, and why it will not be evaluated."""

    benchmark: Benchmark
    tasks: tuple[tuple[PlannedTask, Found | None], ...] = ()
    status: Status = "open"
    reason: str = ""
    is_asked: bool = True
    """No: --only names others."""


def evaluate(options: EvalOptions) -> list[Results]:
    """The results of every model that `options.model` means.

    Errors: ConfigError, CheckpointError; DataError with a line for every set that cannot be had.
    """
    if options.model is None:
        raise ConfigError("which model? give an HF folder, a run, or an iter_* folder (or --list)")
    path = suite_path(options.suite)
    suite = read_suite(path)
    subjects = subjects_of(options.model, options.checkpoints)
    folders = [results_folder(subject, options.out, suite.name) for subject in subjects]
    harness.prepare(offline=options.is_offline)
    lines = plan(suite, options)
    faults = [line.reason for line in lines if line.status == "missing"]
    if faults and not options.skip_missing:
        raise DataError("data is missing (--skip-missing goes on without these benchmarks):\n  " + "\n  ".join(faults))
    for line in lines:
        if line.is_asked and line.status != "open":
            logger.warning("caution: %s is left out: %s", line.benchmark.name, line.reason)
    suite_hash = hashlib.sha256(path.read_bytes()).hexdigest()
    return [
        _evaluate_one(subject, folder, suite, suite_hash, lines, options)
        for subject, folder in zip(subjects, folders, strict=True)
    ]


def plan(suite: Suite, options: EvalOptions) -> list[Line]:
    """A line for every benchmark, with its data found or the reason why not.

    Errors: ConfigError for a benchmark that the suite does not have, a task of two of them, a --data that is a file, or
    want of a sandbox.
    """
    known = [benchmark.name for benchmark in suite.benchmarks]
    if unknown := [name for name in options.only if name not in known]:
        raise ConfigError(f"--only {unknown[0]}: {suite.name} has {', '.join(known)}")
    owners: dict[str, str] = {}
    for name, task in ((entry.name, task.name) for entry in suite.benchmarks for task in harness.plan_tasks(entry)):
        if (other := owners.setdefault(task, name)) != name:
            raise ConfigError(
                f"{suite.name}: {task} is a task of {other} and of {name}, and its results are kept once; give one of "
                "them a suite of its own, or an average of benchmarks under sums"
            )
    if (folder := options.data) is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--data {folder}: is no folder")
    chosen = {benchmark.name for benchmark in suite.benchmarks if not options.only or benchmark.name in options.only}
    if options.run_code and any(benchmark.runs_code for benchmark in suite.benchmarks if benchmark.name in chosen):
        from tools.evaluation.code import sandbox

        sandbox()
    return [
        _line(benchmark, options)
        if benchmark.name in chosen
        else Line(benchmark=benchmark, is_asked=False, reason="left out by --only")
        for benchmark in suite.benchmarks
    ]


def _line(benchmark: Benchmark, options: EvalOptions) -> Line:
    if benchmark.runs_code and not options.run_code:
        return Line(
            benchmark=benchmark, status="skipped", reason="executes what the model writes; allow it by --run-code"
        )
    if absent := harness.absent_needs(benchmark):
        return Line(benchmark=benchmark, status="skipped", reason=f"needs {absent}")
    entries, tasks, faults = catalogue(), [], []
    for task in harness.plan_tasks(benchmark):
        try:
            tasks.append((task, None if task.wanted is None else find(task.wanted, options, entries)))
        except DataError as error:
            faults.append(str(error))
    if faults:
        more = f" (and {len(faults) - 1} more of its parts)" if len(faults) > 1 else ""
        return Line(benchmark=benchmark, status="missing", reason=f"{benchmark.name}: {faults[0]}{more}")
    return Line(benchmark=benchmark, tasks=tuple(tasks))


def _evaluate_one(
    subject: Subject, folder: Path, suite: Suite, suite_hash: str, lines: list[Line], options: EvalOptions
) -> Results:
    mark = fingerprint(subject)
    with only_one(folder):
        shutil.rmtree(folder / CONVERTED, ignore_errors=True)  # of a call that was killed before it removed it
        earlier = _earlier(folder, subject, suite_hash, mark, options)
        done: dict[str, TaskResult] = {}
        pending: list[tuple[PlannedTask, Found | None]] = []
        for task, found in (pair for line in lines for pair in line.tasks):
            kept = read_task(folder, task.name, fingerprint=_task_mark(mark, task, found, options))
            if kept is None:
                pending.append((task, found))
            else:
                done[task.name] = kept
        lines, taken_over = _taken_over(lines, earlier)
        done |= taken_over
        results = _written(_begin(subject, folder, suite, suite_hash, mark, options), suite, lines, done)
        tasks, missing = _loaded(pending, options)
        lines = [missing.get(line.benchmark.name, line) for line in lines]
        if missing:
            results = _written(results, suite, lines, done)
        if not tasks:
            return results
        with as_hf(subject, folder) as hf:
            model = harness.load_model(hf, options)
            _check_room(model, [(planned, task) for planned, _, task in tasks], lines)
            measured_with = {**_programs(options), **harness.describe(model, options)}
            num_requests = sum(harness.num_requests(task, _limit(planned, options)) for planned, _, task in tasks)
            title = f"eval {suite.name} {subject.label}"
            with LiveProgress(title, total=num_requests, unit="requests", scale=1) as progress:
                for planned, found, task in tasks:
                    progress.note(planned.name)
                    measured = harness.run_task(
                        model, task, planned, limit=_limit(planned, options), runs_code=options.run_code,
                        progress=progress.advance,
                    )  # fmt: skip
                    done[planned.name] = replace(measured, harness=measured_with)
                    if cut := measured.num_truncated:
                        told = truncation(planned.name, cut, of=len(measured.items), max_length=model.max_length)
                        logger.warning("caution: %s", told)
                    write_task(folder, done[planned.name], _task_mark(mark, planned, found, options))
                    results = _written(results, suite, lines, done)
    return results


def _loaded(
    pending: list[tuple[PlannedTask, Found | None]], options: EvalOptions
) -> tuple[list[tuple[PlannedTask, Found | None, Any]], dict[str, Line]]:
    """The tasks with their data; and by name, under --skip-missing, the benchmarks whose data the hub does not give.

    Errors: DataError for a set that cannot be read. A user's own file that is damaged is never skipped.
    """
    loaded, missing = [], {}
    for planned, found in pending:
        benchmark = planned.benchmark
        if benchmark.name in missing:
            continue
        try:
            loaded.append((planned, found, harness.load_task(planned, found)))
        except DataError as error:
            if found is None or found.where != "hub":
                raise
            if not options.skip_missing:
                raise DataError(f"{error} (--skip-missing goes on without {benchmark.name})") from error
            logger.warning("caution: %s is left out: %s", benchmark.name, error)
            missing[benchmark.name] = Line(benchmark=benchmark, status="missing", reason=f"{benchmark.name}: {error}")
    return [entry for entry in loaded if entry[0].benchmark.name not in missing], missing


def _check_room(model: Any, tasks: list[tuple[PlannedTask, Any]], lines: list[Line]) -> None:
    """Errors: ConfigError if a task's answer may fill the model's context: the harness fails when it comes there."""
    full: dict[str, str] = {}
    for planned, task in tasks:
        if (tokens := harness.answer_tokens(model, task)) >= model.max_length:
            full.setdefault(planned.benchmark.name, f"{planned.benchmark.name} ({planned.name}: {tokens} tokens)")
    if full:
        rest = [line.benchmark.name for line in lines if line.is_asked and line.status == "open"]
        only = " ".join(f"--only {shlex.quote(name)}" for name in rest if name not in full)
        raise ConfigError(
            f"the model's context of {model.max_length} tokens has no room for a prompt and an answer (max_gen_toks) "
            f"of {', '.join(full.values())}; " + (f"leave them out by {only}" if only else "choose other benchmarks")
        )


def _limit(planned: PlannedTask, options: EvalOptions) -> int | None:
    limits = [limit for limit in (planned.benchmark.limit, options.limit) if limit is not None]
    return min(limits, default=None)


def _task_mark(model: str, planned: PlannedTask, found: Found | None, options: EvalOptions) -> str:
    """Hash of all that decides a task's result."""
    decides = [
        model, planned.name, planned.config, planned.benchmark.shots, planned.benchmark.metric,
        planned.benchmark.filter, _limit(planned, options), found.identity() if found else None, options.backend,
        options.dtype, options.batch_size, str(options.device), version("lm_eval"), harness.SEED,
    ]  # fmt: skip
    # The harness names a function with its task file's folder, which lies elsewhere in another installation.
    folder = json.dumps(str(harness.task_folder(planned.benchmark)))[1:-1]
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).replace(folder, "").encode()).hexdigest()


def _begin(subject: Subject, folder: Path, suite: Suite, suite_hash: str, mark: str, options: EvalOptions) -> Results:
    return Results(
        folder=folder,
        suite={"name": suite.name, "sha256": suite_hash},
        model={**subject.described(), "fingerprint": mark},
        harness=_programs(options),
        settings={
            "limit": options.limit,
            "seed": harness.SEED,
            "runs_code": options.run_code,
            "offline": options.is_offline,
        },
        started=_now(),
        updated=_now(),
        seconds=0.0,
        complete=False,
        benchmarks=(),
        sums=(),
    )


def _programs(options: EvalOptions) -> dict[str, Any]:
    names = ("lm_eval", "transformers", "torch", "datasets")
    asked = {"backend": options.backend, "dtype": options.dtype, "batch_size": options.batch_size}
    return {name: version(name) for name in names} | asked


def _earlier(folder: Path, subject: Subject, suite_hash: str, mark: str, options: EvalOptions) -> Results | None:
    """What a call before this one left in the folder, if it measured the same weights by the same suite alike.

    Errors: ConfigError if the folder holds another model's results (of one name, and given one --out), or this one's
    over more items than --limit.
    """
    if not (folder / RESULTS).is_file():
        return None
    try:
        found = read_results(folder / RESULTS)
    except DataError:
        return None  # damaged, or of another version: written anew
    told = subject.described()
    is_same = found.model.get("fingerprint") == mark
    is_of_same_run = told["run"] is not None and all(found.model.get(key) == told[key] for key in ("run", "iteration"))
    if not is_same and not is_of_same_run and found.model.get("path") != told["path"]:
        raise ConfigError(
            f"--out: {folder} holds the results of {found.model.get('path')}, and {told['path']} has the same name; "
            "choose another --out, or remove them"
        )
    if is_same and (limit := options.limit) is not None:
        for file in sorted((folder / "tasks").glob("*.json")):  # results.json may be of a call that ended at its begin
            if (kept := read_task(folder, file.stem)) is not None and len(kept.items) > limit:
                raise ConfigError(
                    f"--limit {limit}: {folder} holds this model's results over {len(kept.items)} items of "
                    f"{kept.task}, which fewer would replace; choose another --out, or remove them"
                )
    alike = {"lm_eval": version("lm_eval"), "backend": options.backend, "batch_size": options.batch_size}
    if options.dtype != "auto":
        alike["dtype"] = options.dtype
    is_alike = (
        found.suite.get("sha256") == suite_hash
        and all(found.harness.get(key) == value for key, value in alike.items())
        and (found.settings.get("limit"), found.settings.get("seed")) == (options.limit, harness.SEED)
    )
    return found if is_same and is_alike else None


def _taken_over(lines: list[Line], earlier: Results | None) -> tuple[list[Line], dict[str, TaskResult]]:
    """The lines and their tasks' results, where this call leaves out what an earlier one measured (--only, --run-code).

    Of a line that is taken over only the names of its tasks count.
    """
    if earlier is None:
        return lines, {}
    measured = {entry.name: entry for entry in earlier.benchmarks if entry.status == "done"}
    kept: list[Line] = []
    results: dict[str, TaskResult] = {}
    for line in lines:
        entry = measured.get(line.benchmark.name)
        found = [] if entry is None else [read_task(earlier.folder, str(task["task"])) for task in entry.tasks]
        if (line.is_asked and line.status == "open") or not found or None in found:
            kept.append(line)
            continue
        tasks = tuple(result for result in found if result is not None)
        results |= {result.task: result for result in tasks}
        planned = tuple((PlannedTask(result.task, line.benchmark, {}), None) for result in tasks)
        kept.append(replace(line, tasks=planned, status="open", reason=""))
    return kept, results


def _harness_of(done: dict[str, TaskResult]) -> dict[str, Any]:
    """What the tasks were measured with; where calls differed (another machine), both values."""
    kinds = [result.harness for result in done.values() if result.harness]
    told: dict[str, Any] = {}
    for key in dict.fromkeys(key for kind in kinds for key in kind):
        values = list(dict.fromkeys(kind[key] for kind in kinds if key in kind))
        told[key] = values[0] if len(values) == 1 else " and ".join(map(str, values))
    return told


def _written(results: Results, suite: Suite, lines: list[Line], done: dict[str, TaskResult]) -> Results:
    benchmarks = tuple(_benchmark_result(line, done, results.folder) for line in lines)
    results = replace(
        results,
        harness=_harness_of(done) or results.harness,
        updated=_now(),
        seconds=round(sum(result.seconds for result in done.values()), 3),
        complete=all(benchmark.status != "open" for benchmark in benchmarks),
        benchmarks=benchmarks,
        sums=tuple(_sum_result(total, benchmarks, done) for total in suite.sums),
    )
    write_results(results)
    return results


def _benchmark_result(line: Line, done: dict[str, TaskResult], folder: Path) -> BenchmarkResult:
    benchmark = line.benchmark
    fields: dict[str, Any] = {
        name: getattr(benchmark, name)
        for name in ("name", "group", "language", "shots", "metric", "average", "chance", "published")
    }
    found = [done[task.name] for task, _ in line.tasks if task.name in done]
    tasks = tuple(
        {
            "task": result.task,
            "version": result.version,
            "score": result.score,
            "num_items": len(result.items),
            "num_truncated": result.num_truncated,
            "seconds": round(result.seconds, 3),
            "file": task_file(folder, result.task).relative_to(folder).as_posix(),
        }
        for result in found
    )
    if line.status != "open" or len(found) < len(line.tasks) or not found:
        reason = line.reason or f"{len(found)} of {len(line.tasks)} tasks are done"
        return BenchmarkResult(**fields, status=line.status, reason=reason, tasks=tasks)
    return _scored(fields | {"tasks": tasks}, [[item.score for item in result.items] for result in found])


def _sum_result(total: Sum, benchmarks: tuple[BenchmarkResult, ...], done: dict[str, TaskResult]) -> BenchmarkResult:
    """A line over several benchmarks; open until all of them are done."""
    parts = [benchmark for benchmark in benchmarks if benchmark.name in total.of and benchmark.status == "done"]
    fields: dict[str, Any] = {
        "name": total.name, "group": "average", "language": "", "shots": 0, "metric": "", "average": total.average,
        "chance": 0.0, "published": total.published, "of": tuple(total.of),
    }  # fmt: skip
    if len(parts) < len(total.of):
        return BenchmarkResult(**fields, status="open", reason=f"{len(parts)} of {len(total.of)} benchmarks are done")
    return _scored(fields, [[item.score for task in part.tasks for item in done[task["task"]].items] for part in parts])


def _scored(fields: dict[str, Any], groups: list[list[float]]) -> BenchmarkResult:
    score, interval, method = interval_of(groups, fields["average"])
    num_items = sum(map(len, groups))
    return BenchmarkResult(
        **fields, status="done", reason="", score=score, num_items=num_items, interval=interval, method=method
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
