"""Documents in, kept and dropped documents out: every one of an input task is in exactly one place, with its reason.

<out>/<task>-<folder>.jsonl.zst            kept, unchanged, in input order
<out>/dropped/<task>-<folder>.jsonl.zst    dropped, unchanged, with reason, value and limit
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_mixers.errors import DataError
from tools.columns import aligned
from tools.data.documents import Document, DocumentWriter, TaskDocuments, output_name, source_of_file
from tools.data.quarantine import BadLine, bad_lines
from tools.data.readers import DROPPED, BadRecord, InputTask

EXAMPLES_PER_REASON = 3
EXCERPT_CHARACTERS = 200
VERDICT_KEYS = ("reason", "value", "limit", "matched")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Its keys go onto the document and into the report."""

    reason: str
    value: Any
    """What was measured."""
    limit: float | None
    """What would have been kept."""
    matched: Any = None
    """The document or the text it agrees with."""


@dataclass(frozen=True, kw_only=True)
class SelectionTask:
    """One input task with the place of its output."""

    task: InputTask
    index: int
    text_key: str | tuple[str, ...]
    """As in readers.read_task."""
    source_key: str | None
    """Key of the document's source; None: the folder of its file."""
    out: Path | None
    """None: nothing is written, everything is counted."""

    @classmethod
    def each(
        cls, tasks: Sequence[InputTask], *, text_key: str | tuple[str, ...], source_key: str | None, out: Path | None
    ) -> "list[SelectionTask]":
        return [
            cls(task=task, index=index, text_key=text_key, source_key=source_key, out=out)
            for index, task in enumerate(tasks)
        ]

    @property
    def source(self) -> str:
        """Of the input file: the name of its folder, as published data sets lay them out."""
        return source_of_file(self.task.path)

    def source_of(self, document: Document) -> str:
        value = None if self.source_key is None else document.fields.get(self.source_key)
        return self.source if value is None else str(value)


def select(
    item: SelectionTask,
    judge: Callable[[int, Document], Verdict | None],
    report: Callable[[int], None],
    *,
    prepare: Callable[[Document], Document | BadRecord] | None = None,
) -> dict[str, Any]:
    """Judge every document of the task (by its number and content) and write it where it belongs.

    prepare: as in TaskDocuments.
    Returns counts per source and reason, examples and bad lines, as JSON: see `SelectionReport`.
    """
    counts: Counter[tuple[str, str]] = Counter()
    text_bytes: Counter[str] = Counter()
    examples: dict[str, list[dict[str, Any]]] = {}
    found = TaskDocuments(item.task, text_key=item.text_key, on_bytes=report, prepare=prepare)
    num_documents = 0
    with ExitStack() as stack:
        writers: list[DocumentWriter] = []
        if item.out is not None:
            (item.out / DROPPED).mkdir(parents=True, exist_ok=True)
            paths = [folder / output_name(item.task, item.index) for folder in (item.out, item.out / DROPPED)]
            writers = [stack.enter_context(DocumentWriter(path)) for path in paths]
        for number, document in enumerate(found):
            num_documents += 1
            source, verdict = item.source_of(document), judge(number, document)
            counts[source, verdict.reason if verdict else ""] += 1
            if verdict is None:
                text_bytes[source] += len(document.text.encode())
            elif len(of_reason := examples.setdefault(verdict.reason, [])) < EXAMPLES_PER_REASON:
                excerpt = {"text": document.text[:EXCERPT_CHARACTERS]}
                of_reason.append({"id": document.id, "source": source} | asdict(verdict) | excerpt)
            if writers:
                writers[verdict is not None].write(document.fields if verdict is None else dropped(document, verdict))
    return {
        "num_documents": num_documents,
        "counts": [[source, reason, count] for (source, reason), count in sorted(counts.items())],
        "text_bytes": dict(sorted(text_bytes.items())),
        "examples": examples,
        "bad": found.bad,
        "num_lines": found.num_lines,
    }


def dropped(document: Document, verdict: Verdict) -> dict[str, Any]:
    """The document with the verdict's keys; what it held under these names itself moves into `own`."""
    own = {key: document.fields[key] for key in (*VERDICT_KEYS, "own") if key in document.fields}
    return document.fields | asdict(verdict) | ({"own": own} if own else {})


@dataclass(frozen=True, kw_only=True)
class SelectionReport:
    num_read: int
    """Lines that are not blank."""
    kept: dict[str, int]
    """Documents per source, likewise below."""
    dropped: dict[str, dict[str, int]]
    """source -> reason -> documents."""
    quarantined: dict[str, int]
    kept_text_bytes: dict[str, int]
    examples: dict[str, list[dict[str, Any]]]
    """reason -> the first ones in input order."""
    quarantine: list[BadLine]
    """Every line that is no document; empty in a report that was read back."""

    @property
    def num_kept(self) -> int:
        return sum(self.kept.values())

    @property
    def num_dropped(self) -> int:
        return sum(sum(reasons.values()) for reasons in self.dropped.values())

    @property
    def num_quarantined(self) -> int:
        return sum(self.quarantined.values())

    def as_json(self) -> dict[str, Any]:
        documents = {
            "read": self.num_read,
            "kept": self.num_kept,
            "dropped": self.num_dropped,
            "quarantined": self.num_quarantined,
        }
        sources = {
            source: {
                "kept": self.kept.get(source, 0),
                "kept_text_bytes": self.kept_text_bytes.get(source, 0),
                "dropped": self.dropped.get(source, {}),
                "quarantined": self.quarantined.get(source, 0),
            }
            for source in sorted({*self.kept, *self.dropped, *self.quarantined})
        }
        return {"documents": documents, "sources": sources, "examples": self.examples}


def gather(items: list[SelectionTask], results: list[dict[str, Any]]) -> SelectionReport:
    """The report over all tasks. Errors: DataError if a document was lost or counted twice."""
    kept: Counter[str] = Counter()
    lost: dict[str, Counter[str]] = {}
    quarantined: Counter[str] = Counter()
    text_bytes: Counter[str] = Counter()
    examples: dict[str, list[dict[str, Any]]] = {}
    for item, result in zip(items, results, strict=True):
        for source, reason, count in result["counts"]:
            if reason:
                lost.setdefault(source, Counter())[reason] += count
            else:
                kept[source] += count
        text_bytes.update(result["text_bytes"])
        quarantined[item.source] += len(result["bad"])
        for reason, found in result["examples"].items():
            examples[reason] = (examples.get(reason, []) + found)[:EXAMPLES_PER_REASON]
    report = SelectionReport(
        num_read=sum(result["num_documents"] + len(result["bad"]) for result in results),
        kept=dict(kept),
        dropped={source: dict(sorted(reasons.items())) for source, reasons in lost.items()},
        quarantined={source: count for source, count in quarantined.items() if count},
        kept_text_bytes=dict(text_bytes),
        examples=dict(sorted(examples.items())),
        quarantine=bad_lines(
            [item.task for item in items], [(result["num_lines"], result["bad"]) for result in results]
        ),
    )
    if report.num_read != report.num_kept + report.num_dropped + report.num_quarantined:
        raise DataError(f"{report.num_read} documents were read, but {report.as_json()['documents']} are accounted for")
    return report


def report_from_json(content: dict[str, Any]) -> SelectionReport:
    sources = content["sources"]
    return SelectionReport(
        num_read=content["documents"]["read"],
        kept={name: found["kept"] for name, found in sources.items() if found["kept"]},
        dropped={name: found["dropped"] for name, found in sources.items() if found["dropped"]},
        quarantined={name: found["quarantined"] for name, found in sources.items() if found["quarantined"]},
        kept_text_bytes={name: found["kept_text_bytes"] for name, found in sources.items()},
        examples=content["examples"],
        quarantine=[],
    )


def table(report: SelectionReport) -> str:
    reasons = sorted({reason for found in report.dropped.values() for reason in found})
    sources = sorted({*report.kept, *report.dropped, *report.quarantined})
    rows = [["source", *sources]] if len(sources) == 1 else [["source", *sources, "all"]]

    def row(title: str, values: list[int]) -> None:
        rows.append([title, *(f"{value:,}" for value in values), *([f"{sum(values):,}"] if len(sources) > 1 else [])])

    row("kept", [report.kept.get(source, 0) for source in sources])
    for reason in reasons:
        row(reason, [report.dropped.get(source, {}).get(reason, 0) for source in sources])
    row("quarantined", [report.quarantined.get(source, 0) for source in sources])
    return aligned(rows, num_left=1)
