"""`syne compare`: models measured in one harness, item against item; the paper's table beside them, never mixed in.

base ─┬─ adapted 1   paired over the same items: bootstrap interval, McNemar, Holm over the benchmarks
      └─ adapted 2
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass as checked

from data_mixers.errors import ConfigError, DataError
from tools.data.yaml_file import STRICT, read_yaml
from tools.evaluation.results import BenchmarkResult, Results, TaskResult, read_results, read_task
from tools.evaluation.statistics import (
    CONFIDENCE,
    Interval,
    holm,
    is_noise,
    mean_of_independent,
    paired,
    two_proportions,
    wilson,
)

PAPER_TABLE = Path(__file__).with_name("paper_table.yaml")
NOT_COMPARABLE = (
    "published scores were measured elsewhere, with prompts that are not published: no difference between a measured "
    "and a published score is computed. Measure the base with `syne eval` in the same harness and compare with that"
)
ALIKE = ("lm_eval", "backend", "dtype", "batch_size", "begins_with_bos", "max_length")
"""Entries of `harness` that may change a score; the others are reported as a caution."""


@checked(frozen=True, kw_only=True, config=STRICT)
class PublishedBenchmark:
    num_items: int
    known_by: Literal["implied", "public"]
    average: Literal["micro", "macro"] | None = None
    of: list[str] = field(default_factory=list)


@checked(frozen=True, kw_only=True, config=STRICT)
class PaperTable:
    """Scores in per cent, as printed."""

    source: str
    base: str
    adapted: str
    benchmarks: dict[str, PublishedBenchmark]
    models: dict[str, dict[str, float]]


def paper_table() -> PaperTable:
    return read_yaml(PAPER_TABLE, PaperTable)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One model against the base on one benchmark. Unit of scores: share."""

    model: str
    score: float
    interval: Interval
    difference: float
    difference_interval: Interval
    p_value: float
    holm_p_value: float = 1.0
    """Adjusted for the benchmarks of this model that were compared."""
    only_base: int | None = None
    only_model: int | None = None

    @property
    def is_noise(self) -> bool:
        return is_noise(self.difference_interval, self.p_value)


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    num_items: int
    base_score: float
    base_interval: Interval
    changes: tuple[Change, ...]
    published: str | None
    is_sum: bool = False
    """An average of other rows: not a test of its own, so outside Holm's count."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    base: str
    models: tuple[str, ...]
    kind: str
    """paired: the same items; unpaired: published shares."""
    rows: tuple[Row, ...]
    cautions: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    published: dict[str, dict[str, float]] | None = None
    """The paper's scores by model and benchmark, in shares; None: not asked for."""
    confidence: float = CONFIDENCE


def compare_results(folders: Sequence[Path], *, shows_published: bool = False) -> Comparison:
    """The first is the base.

    Errors: ConfigError if they were not measured alike, or there is no base to compare with; DataError for files.
    """
    found = [read_results(folder) for folder in folders]
    if len(found) < 2 and not shows_published:
        raise ConfigError("one result is no comparison: give the base's results first, then the others'")
    base, others = found[0], found[1:]
    cautions = [caution for other in others for caution in _measured_alike(base, other)]
    labels = _labels(found)
    cautions += [f"{label}: {text}" for label, result in zip(labels, found, strict=True) for text in result.cautions]
    rows, left_out = [], []
    for line in (*base.benchmarks, *base.sums):
        lines = [line, *(_line(other, line) for other in others)]
        open_in = [label for label, entry in zip(labels, lines, strict=True) if entry is None or entry.score is None]
        if not open_in:
            rows.append(_row(line, base, others, labels[1:]))
        elif not line.of:
            left_out.append(f"{line.name}: not measured in {', '.join(open_in)}")
    cautions += _unknown_versions(found, labels)
    rows = _with_holm(rows, len(others))
    if not rows:
        raise DataError(f"no benchmark is measured in all of {', '.join(labels)}")
    table = None
    if shows_published:
        paper = paper_table()
        table = {model: {name: score / 100 for name, score in scores.items()} for model, scores in paper.models.items()}
        cautions.append(NOT_COMPARABLE)
        if not others:
            cautions.append(f"only {labels[0]} is measured: without a measured base nothing can be said of its gains")
    return Comparison(
        base=labels[0], models=tuple(labels[1:]), kind="paired", rows=tuple(rows), cautions=tuple(cautions),
        left_out=tuple(left_out), published=table,
    )  # fmt: skip


def compare_published() -> Comparison:
    """The paper's table by itself: its adapted model against its base, with what their set sizes can tell.

    The items' scores are not published, so nothing is paired and the intervals are wider than they had to be.
    """
    table = paper_table()
    base, adapted = table.models[table.base], table.models[table.adapted]
    rows: list[Row] = []
    for name, entry in table.benchmarks.items():
        share_a, share_b, number = base[name] / 100, adapted[name] / 100, entry.num_items
        interval, p_value = two_proportions(share_a, share_b, num_a=number, num_b=number)
        if entry.average == "macro":  # of rows that stand before it
            parts = [row.changes[0] for row in rows if row.name in entry.of]
            interval, p_value = mean_of_independent([(part.difference, part.difference_interval) for part in parts])
        change = Change(
            model=table.adapted, score=share_b, interval=wilson(round(share_b * number), number),
            difference=share_b - share_a, difference_interval=interval, p_value=p_value,
        )  # fmt: skip
        base_interval = wilson(round(share_a * number), number)
        row = Row(name=name, num_items=number, base_score=share_a, base_interval=base_interval, changes=(change,),
                  published=name, is_sum=bool(entry.of))  # fmt: skip
        rows.append(row)
    uncertain = [name for name, entry in table.benchmarks.items() if entry.known_by == "public"]
    caution = f"set sizes of {', '.join(uncertain)} are those of the public sets; the paper does not give them"
    return Comparison(
        base=table.base, models=(table.adapted,), kind="unpaired", rows=tuple(_with_holm(rows, 1)), cautions=(caution,)
    )


def _measured_alike(base: Results, other: Results) -> list[str]:
    """Cautions. Errors: ConfigError for a difference that makes scores incomparable."""
    where = f"{other.folder} and {base.folder}"
    if other.suite["sha256"] != base.suite["sha256"]:
        raise ConfigError(f"{where}: evaluated with different suite files; evaluate both with one")
    for key in ("limit", "seed"):
        if other.settings.get(key) != base.settings.get(key):
            raise ConfigError(
                f"{where}: {key} {other.settings.get(key)} and {base.settings.get(key)}; evaluate both with one"
            )
    cautions = []
    for key in sorted(base.harness.keys() | other.harness.keys()):
        if (mine := base.harness.get(key)) == (theirs := other.harness.get(key)):
            continue
        if key in ALIKE:
            raise ConfigError(f"{where}: measured with {key} {theirs} and {mine}; evaluate both with one")
        cautions.append(f"measured with {key} {mine} and {theirs}")
    return cautions


def _unknown_versions(found: Sequence[Results], labels: Sequence[str]) -> list[str]:
    """Cautions: beside a version nothing shows that what was measured before it was kept was scored otherwise."""
    told = [{str(task["task"]): task.get("version") for line in r.benchmarks for task in line.tasks} for r in found]
    known = {name for versions in told for name, version in versions.items() if version is not None}
    return [
        f"{label}: {', '.join(sorted(lost))}: measured before the version of the task file was kept; it may have been "
        "scored otherwise, as ASDiv was"
        for label, versions in zip(labels, told, strict=True)
        if (lost := {name for name, version in versions.items() if version is None and name in known})
    ]


def _row(line: BenchmarkResult, base: Results, others: Sequence[Results], labels: Sequence[str]) -> Row:
    """A benchmark, or an average of some: over their items (micro), or their scores (macro)."""
    mine = _groups(base, line)
    changes = []
    for label, other in zip(labels, others, strict=True):
        partner = _line(other, line)
        assert partner is not None and partner.score is not None and partner.interval is not None
        theirs = _groups(other, partner)
        _check_same_items(chain.from_iterable(mine), chain.from_iterable(theirs), base, other)
        test = paired(_item_scores(mine), _item_scores(theirs), average=line.average)
        changes.append(
            Change(
                model=label, score=partner.score, interval=partner.interval, difference=test.difference,
                difference_interval=test.interval, p_value=test.p_value, only_base=test.only_a, only_model=test.only_b,
            )
        )  # fmt: skip
    assert line.score is not None and line.interval is not None
    return Row(
        name=line.name, num_items=line.num_items, base_score=line.score, base_interval=line.interval,
        changes=tuple(changes), published=line.published, is_sum=bool(line.of),
    )  # fmt: skip


def _groups(results: Results, line: BenchmarkResult) -> list[list[TaskResult]]:
    """Whose scores an average takes alike: each task of a benchmark, the tasks of each benchmark of a sum."""
    if line.of:
        return [_tasks(results, part) for part in results.benchmarks if part.name in line.of]
    return [[task] for task in _tasks(results, line)]


def _item_scores(groups: Sequence[Sequence[TaskResult]]) -> list[list[float]]:
    return [[item.score for task in group for item in task.items] for group in groups]


def _with_holm(rows: Sequence[Row], num_models: int) -> list[Row]:
    """Adjusted p-values: over the benchmarks, for each model by itself."""
    tested = [row for row in rows if not row.is_sum]
    adjusted = {
        (row.name, model): p_value
        for model in range(num_models)
        for row, p_value in zip(tested, holm([row.changes[model].p_value for row in tested]), strict=True)
    }
    return [
        replace(row, changes=tuple(
            replace(change, holm_p_value=adjusted.get((row.name, model), change.holm_p_value))
            for model, change in enumerate(row.changes)
        ))
        for row in rows
    ]  # fmt: skip


def _check_same_items(mine: Iterable[TaskResult], theirs: Iterable[TaskResult], base: Results, other: Results) -> None:
    """Errors: ConfigError if an item or its prompt is not the same in both, or they were scored in two ways."""
    for a, b in zip_longest(mine, theirs):
        same = a is not None and b is not None and a.task == b.task and len(a.items) == len(b.items)
        pairs = zip(a.items, b.items, strict=True) if same else ()
        asked = a or b
        assert asked is not None
        if a and b and None not in (a.version, b.version) and a.version != b.version:
            raise ConfigError(
                f"{asked.task}: {base.folder} was measured with version {a.version} of the task and {other.folder} "
                f"with {b.version}, which may score otherwise; evaluate both again with one version of this package"
            )
        if not same or any((x.id, x.doc_hash, x.prompt_hash) != (y.id, y.doc_hash, y.prompt_hash) for x, y in pairs):
            raise ConfigError(
                f"{asked.task}: {base.folder} and {other.folder} did not ask the same questions in the same words; "
                "evaluate both with the same suite, data and package version"
            )


def _tasks(results: Results, line: BenchmarkResult) -> list[TaskResult]:
    found = []
    for entry in line.tasks:
        task = read_task(results.folder, str(entry["task"]))
        if task is None:
            raise DataError(f"{results.folder / str(entry['file'])}: is missing or of another version; evaluate again")
        found.append(task)
    return found


def _line(results: Results, like: BenchmarkResult) -> BenchmarkResult | None:
    lines = results.sums if like.of else results.benchmarks
    return next((line for line in lines if line.name == like.name), None)


def _labels(found: Sequence[Results]) -> list[str]:
    """Labels, with as much of the path before them as tells them apart."""
    labels = [results.label for results in found]
    if len(set(labels)) == len(labels):
        return labels
    return [str(results.model["path"]) for results in found]
