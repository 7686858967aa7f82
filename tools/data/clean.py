"""`syne data clean`: rules, exact duplicates and near-duplicates; every dropped document is kept with its reason.

    examine (a task a piece of input) ─ verdicts of the rules, content hashes, MinHash bands
        ├─ exact (a task a range of hashes)
        ├─ bands (a task a band) ─ clusters
    write (a task a piece of input) ─> kept · dropped · quarantine.jsonl · report.json
Of duplicates the first in input order stays. Only documents that pass the rules are compared.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from data_mixers.atomic import write_atomic
from tools.data.calls import Call, deciding
from tools.data.documents import TaskDocuments
from tools.data.exact_duplicates import content_hash, duplicates_in_range, num_ranges, write_hashes
from tools.data.measures import Measured
from tools.data.near_duplicates import NearWork, find_near, forget_maps, near_verdicts, pairs_of_task, place_of, sign
from tools.data.options import CleanOptions
from tools.data.quarantine import bad_lines
from tools.data.readers import InputTask
from tools.data.rules import DEFAULT_RULES, Rules, check_languages, judge, judge_language, load_rules
from tools.data.selection import SelectionReport, SelectionTask, Verdict, gather, report_from_json, select
from tools.data.stage import Report, only_one
from tools.data.units import Hashes

EXACT = "exact.duplicates"


def clean(options: CleanOptions) -> SelectionReport:
    """Write the kept and the dropped documents and the report into `options.out`.

    The result depends neither on the number of workers nor on interruptions: a killed call goes on when run again.
    Errors: ConfigError for rules that do not fit, a language that is none, or a folder in use or with another call's
    result; DataError for damaged input or too many bad lines.
    Memory: of a worker, its piece of input (32 MB of plain text, or one whole .gz/.zst: 1 kB a document); of the whole,
    200 bytes a near-duplicate. Disk meanwhile: 0.7 kB a document.
    """
    rules = load_rules(options.rules or DEFAULT_RULES)
    check_languages(options.languages)
    call = Call.of("clean", options, deciding(options, "report_only", rules=asdict(rules)))
    tasks = call.tasks
    with only_one(options.out):
        if (done := call.take(writes=not options.report_only)) is not None:
            return report_from_json(done)
        out = None if options.report_only else options.out
        items = SelectionTask.each(tasks, text_key=options.text_key, source_key=options.source_key, out=out)
        work = NearWork(call.work)
        examined = call.run("examine", partial(_examine, work, tasks, options, rules))
        num_documents = sum(result["num_documents"] for result in examined)
        bad = bad_lines(tasks, [(result["num_lines"], result["bad"]) for result in examined])
        call.check_bad_share(bad, num_documents, options)
        count = num_ranges(num_documents)
        sizes = (max(1, num_documents // count),) * count
        exact = partial(_exact_range, work, len(tasks), num_documents, count)
        call.run("exact duplicates", exact, folder="exact", sizes=sizes, unit="M documents")
        pairs = np.concatenate([np.fromfile(part, dtype="<i8") for part in (call.work / "exact").glob("*.part")])
        pairs = pairs.reshape(-1, 2)
        write_atomic(work.folder / EXACT, pairs[np.argsort(pairs[:, 0])].tobytes())
        find_near(call, work, rules.near_duplicates if options.near_duplicates else None)
        report = gather(items, call.run("count" if options.report_only else "write", partial(_write, work, items)))
        forget_maps()  # NFS keeps a folder in which a file is open
        call.finish(report.as_json(), report.quarantine, writes=not options.report_only)
    return report


def _examine(
    work: NearWork, tasks: list[InputTask], options: CleanOptions, rules: Rules, index: int, report: Report
) -> dict[str, Any]:
    verdicts: list[list[Any]] = []
    hashes: list[tuple[int, bytes]] = []
    places: list[int] = []
    found = TaskDocuments(tasks[index], text_key=options.text_key, on_bytes=report)

    def documents() -> Iterator[Hashes | None]:
        for number, document in enumerate(found):
            places.append(document.place)
            measured = Measured(document.text)
            verdict = judge(measured, rules.rules)
            if verdict is None and options.languages:
                verdict = judge_language(document.text, options.languages, rules.language)
            if verdict is not None:
                verdicts.append([number, verdict.reason, verdict.value, verdict.limit])
                yield None
                continue
            hashes.append((number, content_hash(document.text)))
            yield measured.hashes

    if options.near_duplicates:
        sign(work, documents(), index, rules.near_duplicates)
    else:
        for _ in documents():
            pass
    work.keep(index, "verdicts", json.dumps(verdicts, ensure_ascii=False).encode())
    work.keep_places(index, places)
    write_hashes(hashes, work.of_task(index, "hashes"))
    return {"num_documents": len(places), "num_lines": found.num_lines, "bad": found.bad}


def _exact_range(work: NearWork, num_tasks: int, num_documents: int, count: int, index: int, report: Report) -> None:
    paths = [work.of_task(task, "hashes") for task in range(num_tasks)]
    found = duplicates_in_range(paths, index, count)
    write_atomic(work.folder / "exact" / f"{index:05d}.part", found.astype("<i8").tobytes())
    report(num_documents // count)


def _write(work: NearWork, items: list[SelectionTask], index: int, report: Report) -> dict[str, Any]:
    forget_maps()
    verdicts = _verdicts(work, items, index)
    return select(items[index], lambda number, document: verdicts.get(number), report)


def _verdicts(work: NearWork, items: list[SelectionTask], index: int) -> dict[int, Verdict]:
    """By document number; whatever is not in it is kept."""
    listed = json.loads(work.of_task(index, "verdicts").read_bytes())
    verdicts = {number: Verdict(reason=reason, value=value, limit=limit) for number, reason, value, limit in listed}
    near = pairs_of_task(work.duplicates, index)
    verdicts |= near_verdicts(work, items, index)
    for document, first in pairs_of_task(work.folder / EXACT, index).items():
        matched = place_of(work, items, near.get(document, first))  # the same text lies in the same cluster
        verdicts[document] = Verdict(reason="exact_duplicate", value=1.0, limit=None, matched=matched)
    return verdicts
