"""Benchmarks of the checkpoints, with intervals: what `syne eval` left in <run>/eval and in files named besides."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_mixers.errors import DataError
from data_mixers.file_version import check_version
from tools.evaluation.compare import ALIKE
from tools.report.content import Block, Missing, Section, Table, Text
from tools.report.figures import Interval, Line, colour_of, dash_of, intervals, lines
from tools.report.metrics_file import is_number, number
from tools.report.numbers import fixed
from tools.report.run_record import RunRecord, read_json
from tools.report.thinning import Curve

SCHEMA_VERSION = 1
RESULTS = "results.json"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark's result. Shares in [0, 1]."""

    name: str
    status: str
    reason: str
    metric: str
    shots: str
    chance: float | None
    score: float | None
    low: float | None
    high: float | None
    confidence: float | None
    """Level of the interval."""
    num_items: float | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """One results.json."""

    file: Path
    owner: str
    """The run it is of; "" for a file named besides."""
    suite: str
    label: str
    """Of the checkpoint or model."""
    iteration: float | None
    tokens: float | None
    is_complete: bool
    comparable: str
    """Suite file, harness and settings: two results with others are not compared."""
    benchmarks: tuple[Benchmark, ...]

    @property
    def name(self) -> str:
        return f"{self.owner}, {self.label}" if self.owner else self.label


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
        newest = _newest(of_suite)
        blocks += [Missing(f"{r.name}: {suite} is not complete yet") for r in newest if not r.is_complete]
        if len({result.comparable for result in newest}) > 1:
            differ = "suite file, harness or settings differ between these results"
            blocks.append(Missing(f"{suite}: {differ}; do not compare them"))
        levels = sorted({f"{100 * b.confidence:g} %" for r in newest for b in r.benchmarks if b.confidence is not None})
        x_label = f"score, % (bar: {' or '.join(levels) or 'its'} interval)"
        figure = intervals(f"Scores: {suite}", _intervals(newest), x_label=x_label)
        blocks += [figure] if figure is not None else []
        over_time = lines(
            f"Scores over time: {suite}", _curves(of_suite), y_label="score, % (band: interval)", is_log=False
        )
        blocks += [over_time] if over_time is not None else []
        blocks.append(_table(suite, newest))
    return Section("Evaluation", blocks)


def read_result(file: Path, owner: str) -> Result:
    """Errors: DataError naming the file for anything that is no evaluation of this schema."""
    content = read_json(file)
    if content.get("kind") != "evaluation":
        raise DataError(f"{file} holds kind {content.get('kind')!r}, no evaluation; name a result of `syne eval`")
    cure = "evaluate again with `syne eval` into another folder"
    check_version(content, understood=SCHEMA_VERSION, file=file, cure=cure, fault=DataError)
    model, suite, benchmarks = content.get("model"), content.get("suite"), content.get("benchmarks")
    if not (isinstance(model, dict) and isinstance(suite, dict) and isinstance(benchmarks, list)):
        raise DataError(f"{file} lacks model, suite or benchmarks; evaluate again")
    return Result(
        file=file,
        owner=owner,
        suite=str(suite.get("name")),
        label=str(model.get("label")),
        iteration=number(model, "iteration"),
        tokens=number(model, "consumed_tokens"),
        is_complete=content.get("complete") is True,
        comparable=_comparable(suite, content.get("harness"), content.get("settings")),
        benchmarks=tuple(_benchmark(item) for item in benchmarks if isinstance(item, dict)),
    )


def _comparable(suite: dict[str, Any], harness: object, settings: object) -> str:
    """What `syne compare` refuses to see different; another host or torch is a caution there."""
    told = [(suite, ("sha256",)), (harness, ALIKE), (settings, ("limit", "seed"))]
    return repr([[part.get(key) for key in keys] for part, keys in told if isinstance(part, dict)])


def _benchmark(item: dict[str, Any]) -> Benchmark:
    interval = item.get("interval")
    ends = interval if isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval)) else None
    return Benchmark(
        name=str(item.get("name")),
        status=str(item.get("status")),
        reason=str(item.get("reason") or ""),
        metric=str(item.get("metric")),
        shots=str(item.get("shots")),
        chance=number(item, "chance"),
        score=number(item, "score") if item.get("status") == "done" else None,
        low=None if ends is None else float(ends[0]),
        high=None if ends is None else float(ends[1]),
        confidence=number(item, "confidence") if ends is not None else None,
        num_items=number(item, "num_items"),
    )


def _found(runs: Sequence[RunRecord], files: Sequence[Path]) -> tuple[list[Result], list[str]]:
    places = [(file, run.name) for run in runs for file in sorted(run.folder.glob(f"eval/*/*/{RESULTS}"))]
    faults = []
    for path in files:
        below = sorted(path.rglob(RESULTS)) if path.is_dir() else [path]
        faults += [] if below else [f"{path} holds no {RESULTS}"]
        places += [(file, "") for file in below]
    results = []
    for file, owner in dict(places).items():
        try:
            results.append(read_result(file, owner))
        except (DataError, OSError) as error:
            faults.append(str(error))
    return results, faults


def _newest(results: Sequence[Result]) -> list[Result]:
    """Of each run the result of its latest checkpoint; every result of no run."""
    kept: dict[str, Result] = {}
    for result in results:
        key = result.owner or str(result.file)
        if key not in kept or (result.iteration or 0.0) >= (kept[key].iteration or 0.0):
            kept[key] = result
    return list(kept.values())


def _intervals(results: Sequence[Result]) -> list[Interval]:
    return [
        Interval(
            row=benchmark.name, label=result.name, value=100 * benchmark.score, low=_percent(benchmark.low),
            high=_percent(benchmark.high), colour=colour_of(index),
        )
        for index, result in enumerate(results)
        for benchmark in result.benchmarks
        if benchmark.score is not None
    ]  # fmt: skip


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _curves(results: Sequence[Result]) -> list[Line]:
    """A line per run and benchmark that has results at two or more checkpoints."""
    found = []
    owners = list(dict.fromkeys(result.owner for result in results if result.owner))
    names = list(dict.fromkeys(b.name for result in results for b in result.benchmarks))
    for run_index, owner in enumerate(owners):
        mine = sorted((r for r in results if r.owner == owner and r.tokens is not None), key=lambda r: r.tokens or 0.0)
        for index, name in enumerate(names):
            points = [(r.tokens, b) for r in mine for b in r.benchmarks if b.name == name and b.score is not None]
            if len(points) < 2:
                continue
            columns = [[t, b.score, b.low if b.low is not None else b.score, b.high if b.high is not None else b.score]
                       for t, b in points]  # fmt: skip
            x, y, low, high = np.array(columns, dtype=np.float64).T
            label = f"{name}, {owner}" if len(owners) > 1 else name
            dash = dash_of(run_index if len(owners) > 1 else index // 8)
            found.append(Line(label=label, curve=Curve(x, 100 * y, 100 * low, 100 * high), colour=colour_of(index),
                              dash=dash, has_markers=True))  # fmt: skip
    return found


def _table(suite: str, results: Sequence[Result]) -> Table:
    names = list(dict.fromkeys(benchmark.name for result in results for benchmark in result.benchmarks))
    rows = []
    for name in names:
        of_name = [next((b for b in result.benchmarks if b.name == name), None) for result in results]
        known = next(b for b in of_name if b is not None)
        items = next((b.num_items for b in of_name if b is not None and b.num_items is not None), None)
        chance = fixed(_percent(known.chance), 1)
        rows.append([name, f"{known.metric}, {known.shots} shots", *map(_score, of_name), chance, fixed(items, 0)])
    header = [suite, "metric", *(f"{result.name}, %" for result in results), "chance, %", "items"]
    return Table(header=header, rows=rows, num_text_columns=2)


def _score(benchmark: Benchmark | None) -> str:
    if benchmark is None:
        return "–"
    if benchmark.score is None:
        return f"{benchmark.status}{': ' if benchmark.reason else ''}{benchmark.reason}"
    between = (
        f" [{fixed(_percent(benchmark.low), 1)}, {fixed(_percent(benchmark.high), 1)}]"
        if benchmark.low is not None and benchmark.high is not None
        else ""
    )
    return f"{fixed(_percent(benchmark.score), 1)}{between}"
