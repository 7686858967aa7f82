"""What `syne eval` and `syne compare` print: a suite, a model's results, a comparison."""

from dataclasses import asdict
from typing import Any

from tools.columns import aligned
from tools.evaluation import harness
from tools.evaluation.compare import Comparison
from tools.evaluation.evaluate import plan
from tools.evaluation.options import EvalOptions
from tools.evaluation.results import BenchmarkResult, Results
from tools.evaluation.statistics import Interval
from tools.evaluation.suite import read_suite, suite_path


def list_suite(options: EvalOptions) -> str:
    """Every benchmark: tasks, shots, how it is scored, and where its data lies or is expected."""
    harness.prepare(offline=options.is_offline)
    suite = read_suite(suite_path(options.suite))
    rows: list[tuple[str, ...]] = [("benchmark", "tasks", "shots", "metric", "average", "data")]
    for line in plan(suite, options):
        if not line.is_asked:
            continue
        found = sorted({place.where if place else "made here" for _, place in line.tasks})
        count = len(line.tasks) or len(harness.plan_tasks(line.benchmark))
        where = ", ".join(found) if line.status == "open" else f"{line.status}: {line.reason}"
        benchmark = line.benchmark
        rows.append((benchmark.name, str(count), str(benchmark.shots), benchmark.metric, benchmark.average, where))
    return f"{suite.name}: {suite.what}\n{aligned(rows, num_left=1, ends_in_text=True)}"


def results_table(results: Results) -> str:
    """One model's scores with intervals."""
    rows: list[tuple[str, ...]] = [("benchmark", "score", "95 % interval", "items", "shots", "chance")]
    rows += [_result_row(line) for line in (*results.benchmarks, *results.sums)]
    state = "" if results.complete else " (not complete)"
    title = f"{results.label} on {results.suite['name']}{state}, in per cent: {results.folder / 'results.json'}"
    cautions = [f"caution: {text}" for text in results.cautions]
    return "\n".join([title, aligned(rows, num_left=1, ends_in_text=True), *cautions])


def comparison_table(comparison: Comparison) -> str:
    """The base's score, then each model's with its difference; `~` marks a difference that is inside noise."""
    header = ["benchmark", "items", comparison.base]
    for model in comparison.models:
        header += [model, "difference", "95 % interval", "p", "p (Holm)", ""]
    shown = comparison.published or {}
    header += [f"published: {model}" for model in shown]
    rows = [tuple(header)]
    for row in comparison.rows:
        cells = [row.name, str(row.num_items), _percent(row.base_score)]
        for change in row.changes:
            cells += [
                _percent(change.score),
                f"{100 * change.difference:+.2f}",
                _interval(change.difference_interval, sign=True),
                f"{change.p_value:.3f}",
                "" if row.is_sum else f"{change.holm_p_value:.3f}",
                "~" if change.is_noise else "",
            ]
        cells += [_percent(scores.get(row.published or "")) for scores in shown.values()]
        rows.append(tuple(cells))
    lines = [f"against {comparison.base}, in per cent", aligned(rows, num_left=1, ends_in_text=True)]
    if comparison.models:
        lines.append(_legend(comparison))
    lines += [f"left out: {text}" for text in comparison.left_out]
    lines += [f"caution: {text}" for text in comparison.cautions]
    return "\n".join(lines)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The same with `is_noise` written out, for other programs. Unit of scores: share."""
    content = {"schema_version": 1, "kind": "comparison", **asdict(comparison)}
    for row, written in zip(comparison.rows, content["rows"], strict=True):
        for change, entry in zip(row.changes, written["changes"], strict=True):
            entry["is_noise"] = change.is_noise
    return content


def _legend(comparison: Comparison) -> str:
    tests = len([row for row in comparison.rows if not row.is_sum])
    noisy = sum(change.is_noise for row in comparison.rows for change in row.changes if not row.is_sum)
    how = (
        "paired bootstrap over items, McNemar's exact test"
        if comparison.kind == "paired"
        else "Newcombe's interval and z-test of two shares, since items are not published"
    )
    return (
        f"~ inside noise: the interval holds 0, or p is 0.05 or more ({noisy} of {tests * len(comparison.models)}). "
        f"{how}. Of {tests} tests one in twenty is below p 0.05 by chance: read p (Holm). Averages are not counted "
        "among the tests."
    )


def _result_row(line: BenchmarkResult) -> tuple[str, ...]:
    if line.score is None or line.interval is None:
        return (line.name, line.status, line.reason, "", str(line.shots), "")
    shots = "" if line.of else str(line.shots)
    chance = "" if line.of else _percent(line.chance)
    return (line.name, _percent(line.score), _interval(line.interval), str(line.num_items), shots, chance)


def _interval(interval: Interval, *, sign: bool = False) -> str:
    low, high = (f"{100 * value:{'+' if sign else ''}.2f}" for value in interval)
    return f"{low} .. {high}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
