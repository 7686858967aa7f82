"""`syne data decontaminate`: which documents hold n-grams of benchmarks; a report first, removal on request."""

from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tools.data.benchmark_items import SUFFIXES
from tools.data.calls import Call, deciding
from tools.data.contamination import NgramIndex, open_index
from tools.data.documents import Document
from tools.data.download import sha256_of
from tools.data.options import DecontaminateOptions
from tools.data.readers import find_inputs
from tools.data.selection import SelectionReport, SelectionTask, Verdict, gather, report_from_json, select
from tools.data.stage import Report, only_one


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    name: str
    keys: tuple[str, ...]
    num_items: int
    num_too_short: int
    """Items under 8 units: they cannot be found."""
    num_items_hit: int
    """Items that some contaminated document shares an n-gram with."""
    documents: dict[str, int]
    """source -> contaminated documents that share an n-gram with it."""
    num_without_text: int = 0
    """Rows of the file beside the items."""


def decontaminate(options: DecontaminateOptions) -> tuple[SelectionReport, tuple[BenchmarkReport, ...]]:
    """Report which documents are contaminated and, with `remove`, write them apart from the others.

    Deterministic and resumable as `clean`. Errors: ConfigError for a benchmark without known keys, or a folder in use;
    DataError for damaged input. Memory: at most 28 bytes an n-gram of the benchmarks, per worker.
    """
    find_inputs(options.inputs, out=options.out)  # what is mistyped is told before benchmarks are read
    paths = tuple(find_inputs(options.benchmarks, option="--benchmarks", suffixes=SUFFIXES))
    index = open_index(paths, options.benchmark_keys, options.ngram)  # a fault in them is told before anything is read
    hashes = {str(path): sha256_of(path) for path in paths}
    call = Call.of("decontaminate", options, deciding(options, "remove", benchmarks=hashes))
    with only_one(options.out):
        if (done := call.take(writes=options.remove)) is not None:
            return report_from_json(done), tuple(BenchmarkReport(**entry) for entry in done["benchmarks"])
        out = options.out if options.remove else None
        items = SelectionTask.each(call.tasks, text_key=options.text_key, source_key=options.source_key, out=out)
        name, folder = ("decontaminate", "write") if options.remove else ("look for benchmarks", "count")
        results = call.run(name, partial(_task, items, paths, options), folder=folder)
        report = gather(items, results)
        call.check_bad_share(report.quarantine, report.num_read - report.num_quarantined, options)
        benchmarks = _benchmark_reports(index, results)
        result = report.as_json() | {"benchmarks": [asdict(benchmark) for benchmark in benchmarks]}
        call.finish(result, report.quarantine, writes=options.remove)
    return report, benchmarks


def benchmark_table(benchmarks: tuple[BenchmarkReport, ...]) -> str:
    lines = []
    for entry in benchmarks:
        found = ", ".join(f"{source}: {count:,}" for source, count in entry.documents.items()) or "none"
        short = f", {entry.num_too_short} too short to find" if entry.num_too_short else ""
        if entry.num_without_text:
            short += f", {entry.num_without_text} rows have no text under these keys (--benchmark-key)"
        lines.append(
            f"{entry.name} ({', '.join(entry.keys)}): {entry.num_items_hit} of {entry.num_items} items{short}; "
            f"documents {found}"
        )
    return "\n".join(lines)


def _task(
    items: list[SelectionTask], paths: tuple[Path, ...], options: DecontaminateOptions, number: int, report: Report
) -> dict[str, Any]:
    index = open_index(paths, options.benchmark_keys, options.ngram)
    item = items[number]
    documents: Counter[tuple[int, str]] = Counter()
    hit: set[int] = set()

    def judge(_: int, document: Document) -> Verdict | None:
        found = index.look_up(document.text)
        if found is None or 0 < options.max_share >= found.share:
            return None
        hit.update(found.items)
        documents.update(
            (benchmark, item.source_of(document)) for benchmark in {index.owners[number][0] for number in found.items}
        )
        benchmark, line = index.owners[found.items[0]]
        matched = {"benchmark": f"{paths[benchmark]}:{line}", "ngram": found.ngram}
        return Verdict(reason="contaminated", value=round(found.share, 6), limit=options.max_share, matched=matched)

    result = select(item, judge, report)
    return result | {"hit": sorted(hit), "hit_documents": [[*key, count] for key, count in sorted(documents.items())]}


def _benchmark_reports(index: NgramIndex, results: list[dict[str, Any]]) -> tuple[BenchmarkReport, ...]:
    hit = Counter(index.owners[item][0] for item in {item for result in results for item in result["hit"]})
    documents: dict[int, Counter[str]] = {}
    for number, source, count in (entry for result in results for entry in result["hit_documents"]):
        documents.setdefault(number, Counter())[source] += count
    return tuple(
        BenchmarkReport(
            name=str(benchmark.path),
            keys=benchmark.keys,
            num_items=len(benchmark.items),
            num_too_short=index.num_too_short[number],
            num_items_hit=hit[number],
            documents=dict(sorted(documents.get(number, Counter()).items())),
            num_without_text=benchmark.num_without_text,
        )
        for number, benchmark in enumerate(index.benchmarks)
    )
