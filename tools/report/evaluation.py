"""Benchmarks of the checkpoints, with intervals: what `syne eval` left in <run>/eval and in files named besides."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_mixers.errors import DataError
from tools.evaluation.compare import ALIKE
from tools.evaluation.results import RESULTS, BenchmarkResult, read_results
from tools.report.content import Block, Missing, Section, Table, Text
from tools.report.figures import Interval, colour_of, intervals, lines_of_runs
from tools.report.metrics_file import is_number, number
from tools.report.numbers import fixed
from tools.report.run_record import RunRecord
from tools.report.thinning import Curve


@dataclass(frozen=True, kw_only=True)
class Result:
    """One results.json."""

    file: Path
    owner: str
    """The run it is of; "" for a file named besides."""
    suite: str
    label: str
    """Of the checkpoint or model."""
    name: str
    """The run's and the label."""
    iteration: float | None
    tokens: float | None
    is_complete: bool
    comparable: str
    """Suite file, harness and settings: two results with others are not compared."""
    benchmarks: tuple[BenchmarkResult, ...]
    sums: tuple[BenchmarkResult, ...]
    """Averages of some of them."""

    @property
    def is_scored(self) -> bool:
        return any(benchmark.score is not None for benchmark in self.benchmarks)


def evaluation(runs: Sequence[RunRecord], files: Sequence[Path]) -> Section:
    """Per suite: the newest result of each run and of each file, side by side; then over time, where there are several.

    files: results.json, or folders with some below, that lie in no run: the base model's, for one.
    """
    results, faults = _found(runs, files)
    blocks: list[Block] = [Missing(fault) for fault in faults]
    if not results:
        return Section("Evaluation", [*blocks, Text("No results of `syne eval` were found.")])
    for suite in dict.fromkeys(result.suite for result in results):
        of_suite = [result for result in results if result.suite == suite]
        newest = _told_apart(_newest(of_suite))
        blocks += [Missing(f"{r.name}: {suite} is not complete yet") for r in newest if not r.is_complete]
        if len({result.comparable for result in newest if result.is_scored}) > 1:
            differ = "suite file, harness or settings differ between these results"
            blocks.append(Missing(f"{suite}: {differ}; do not compare them"))
        if names := _in_other_versions(of_suite):
            differ = "the versions of its task files differ between these results, or are not known of all"
            blocks += [Missing(f"{suite}: {', '.join(names)}: {differ}; an answer may be scored in two ways")]
        levels = sorted({f"{100 * b.confidence:g} %" for r in newest for b in r.benchmarks if b.interval is not None})
        x_label = f"score, % (bar: {' or '.join(levels) or 'its'} interval)"
        blocks += intervals(f"Scores: {suite}", _intervals(newest), x_label=x_label)
        blocks += _over_time(suite, of_suite)
        blocks.append(_table(suite, newest))
    return Section("Evaluation", blocks)


def read_result(file: Path, owner: str) -> Result:
    """Errors: DataError naming the file for anything that is no evaluation of this schema."""
    found = read_results(file)
    scores = [
        score for b in (*found.benchmarks, *found.sums) for score in (b.score, *(b.interval or ())) if score is not None
    ]
    if not all(map(is_number, scores)):
        raise DataError(f"{file} holds scores that are no numbers; evaluate again")
    label = str(found.model.get("label"))
    # What `syne compare` refuses to see different; another host or torch is a caution there.
    told = ((found.suite, ("sha256",)), (found.harness, ALIKE), (found.settings, ("limit", "seed")))
    return Result(
        file=file,
        owner=owner,
        suite=str(found.suite.get("name")),
        label=label,
        name=f"{owner}, {label}" if owner else label,
        iteration=number(found.model, "iteration"),
        tokens=number(found.model, "consumed_tokens"),
        is_complete=found.complete,
        comparable=repr([[part.get(key) for key in keys] for part, keys in told]),
        benchmarks=found.benchmarks,
        sums=found.sums,
    )


def _found(runs: Sequence[RunRecord], files: Sequence[Path]) -> tuple[list[Result], list[str]]:
    places = {
        file.resolve(): (file, run.name) for run in runs for file in sorted(run.folder.glob(f"eval/*/*/{RESULTS}"))
    }
    faults = []
    for path in files:
        below = sorted(path.rglob(RESULTS)) if path.is_dir() else [path]
        faults += [] if below else [f"{path} holds no {RESULTS}"]
        for file in below:
            places.setdefault(file.resolve(), (file, ""))  # one that lies in a run is that run's
    results = []
    for file, owner in places.values():
        try:
            results.append(read_result(file, owner))
        except DataError as error:
            faults.append(str(error))
    return results, faults


def _newest(results: Sequence[Result]) -> list[Result]:
    """Of each run the result of its latest checkpoint; every other one, as the base's in a run's folder."""
    kept: dict[str, Result] = {}
    for result in results:
        key = result.owner if result.owner and result.iteration is not None else str(result.file)
        if key not in kept or (result.iteration or 0.0) >= (kept[key].iteration or 0.0):
            kept[key] = result
    return list(kept.values())


def _in_other_versions(results: Sequence[Result]) -> list[str]:
    """Benchmarks with a task that these results did not all measure with one version, as `syne compare` asks."""
    versions: dict[tuple[str, str], set[object]] = {}
    for b in (b for result in results for b in result.benchmarks):
        for task in b.tasks:
            versions.setdefault((b.name, str(task["task"])), set()).add(task.get("version"))
    return list(dict.fromkeys(name for (name, _), found in versions.items() if len(found) > 1))


def _told_apart(results: Sequence[Result]) -> list[Result]:
    """Equal names get the folders of their results: those of the models may be equal too, measured in two ways."""
    names = [result.name for result in results]
    return [replace(r, name=f"{r.name} ({r.file.parent})") if names.count(r.name) > 1 else r for r in results]


def _intervals(results: Sequence[Result]) -> list[Interval]:
    found = []
    for index, result in enumerate(results):
        for b in result.benchmarks:
            if b.score is not None:
                value, low, high = (100 * share for share in (b.score, *(b.interval or (b.score, b.score))))
                found.append(
                    Interval(row=b.name, label=result.name, value=value, low=low, high=high, colour=colour_of(index))
                )
    return found


def _over_time(suite: str, results: Sequence[Result]) -> list[Block]:
    """Scores of each run at its checkpoints, where two or more were measured as the newest; the others are named."""
    curves, left_out = {}, []
    for owner in dict.fromkeys(result.owner for result in results if result.owner):
        # One that is only begun has no scores, and does not know yet what all it is measured with.
        mine = [r for r in results if r.owner == owner and r.tokens is not None and r.is_scored]
        mine.sort(key=lambda result: result.tokens or 0.0)
        curves[owner] = _curves([result for result in mine if result.comparable == mine[-1].comparable])
        if others := [result.label for result in mine if result.comparable != mine[-1].comparable]:
            why = f"suite file, harness or settings differ from those of {mine[-1].label}"
            left_out.append(Missing(f"{owner}: {suite} over time is without {', '.join(others)}: {why}"))
    names = dict.fromkeys(b.name for result in results for b in result.benchmarks)
    labels = {name: name for name in names if any(name in found for found in curves.values())}
    band = "score, % (band: interval)"
    return [*lines_of_runs(f"Scores over time: {suite}", labels, curves, y_label=band, may_be_log=False), *left_out]


def _curves(results: Sequence[Result]) -> dict[str, Curve]:
    """By benchmark, where it has scores at two or more checkpoints of one run, which are in order."""
    points: dict[str, list[list[float]]] = {}
    for result in results:
        for b in result.benchmarks:
            if result.tokens is not None and b.score is not None:
                scores = (b.score, *(b.interval or (b.score, b.score)))
                points.setdefault(b.name, []).append([result.tokens, *(100 * score for score in scores)])
    return {name: Curve(*np.array(rows).T) for name, rows in points.items() if len(rows) > 1}


def _table(suite: str, results: Sequence[Result]) -> Table:
    """A row for each benchmark, then for each average."""
    rows = []
    lines = [{line.name: line for line in (*result.benchmarks, *result.sums)} for result in results]
    names = [b.name for result in results for b in result.benchmarks] + [s.name for r in results for s in r.sums]
    for name in dict.fromkeys(names):
        of_name = [of_result.get(name) for of_result in lines]
        known = next(b for b in of_name if b is not None)
        items = max(b.num_items for b in of_name if b is not None)
        how, chance = f"{known.metric}, {known.shots} shots", fixed(100 * known.chance, 1)
        if known.of:
            how, chance = f"{known.average} average of {', '.join(known.of)}", "–"
        rows.append([name, how, *map(_score, of_name), chance, fixed(items, 0)])
    header = [suite, "metric", *(f"{result.name}, %" for result in results), "chance, %", "items"]
    return Table(header=header, rows=rows, num_text_columns=2)


def _score(benchmark: BenchmarkResult | None) -> str:
    if benchmark is None:
        return "–"
    if benchmark.score is None:
        return f"{benchmark.status}{': ' if benchmark.reason else ''}{benchmark.reason}"
    ends = ", ".join(fixed(100 * end, 1) for end in benchmark.interval or ())
    return fixed(100 * benchmark.score, 1) + (f" [{ends}]" if ends else "")
