"""`syne synth check`: which pairs are fit to train on; every dropped one is kept with its reason and what was measured.

examine (a task a piece of input) ─ rules of one pair, benchmarks, question hashes, final answers
    └─ questions (a task a range of hashes) ─ agreement of samples, one pair a question
sign (a task a piece of input) ─ MinHash bands of what is left ─ bands (a task a band) ─ clusters
write (a task a piece of input) ─> kept · dropped · quarantine.jsonl · report.json, report.md
"""

import hashlib
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from data_mixers.atomic import write_atomic
from data_mixers.errors import DataError
from tools.data.benchmark_items import SUFFIXES
from tools.data.calls import Call
from tools.data.contamination import NgramIndex, open_index
from tools.data.documents import Document, TaskDocuments
from tools.data.exact_duplicates import content_hash, num_ranges
from tools.data.minhash import node
from tools.data.near_duplicates import NearWork, find_near, forget_maps, near_verdicts, place_of, sign
from tools.data.quarantine import bad_lines
from tools.data.readers import InputTask, find_inputs, plan_tasks
from tools.data.selection import SelectionReport, SelectionTask, Verdict, gather, report_from_json, select
from tools.data.stage import Report, only_one
from tools.data.units import Hashes, hashes_of, units_of
from tools.synthesis.check_report import Examples, add_example, joined, write_markdown
from tools.synthesis.options import CheckOptions
from tools.synthesis.pair_rules import RAW_KEYS, PairRules, judge_pair, load_pair_rules, prepare
from tools.synthesis.question_groups import FINDING, Findings, settle, write_questions
from tools.synthesis.recompute import Recomputer
from tools.synthesis.sandbox import Sandbox, require_sandbox

REPORT_MD = "report.md"


def check(options: CheckOptions) -> SelectionReport:
    """Write kept and dropped pairs and the report into `options.out`; sources of the report are disciplines.

    Deterministic for any number of workers, and resumable, as `syne data clean`.
    Errors: ConfigError for rules that do not fit, a folder in use, or if code is to run and the sandbox cannot be set
    up; DataError for damaged input or too many lines that are no pairs.
    Memory: of a worker, its piece of input and 12 bytes an n-gram of the benchmarks.
    """
    rules = load_pair_rules(options.rules)
    tasks = plan_tasks(find_inputs(options.inputs, out=options.out))
    if not tasks:
        raise DataError(f"there is no pair in {', '.join(options.inputs)}")
    benchmarks = tuple(find_inputs(options.benchmarks, option="--benchmarks", suffixes=SUFFIXES))
    _index(options, rules, benchmarks)  # a fault in them is told first
    sandbox = require_sandbox() if options.run_code else None
    deciding = _deciding(options, rules, benchmarks)
    call = Call(out=options.out, command="synth check", options=deciding, tasks=tasks, workers=options.workers)
    with only_one(options.out):
        if (done := call.take(writes=True)) is not None:
            return report_from_json(done)
        items = SelectionTask.each(tasks, text_key=RAW_KEYS, source_key="discipline", out=options.out)
        work = _Work(call.work, tuple(tasks), rules, benchmarks, options, sandbox)
        examined = call.run("examine", partial(_examine, work))
        num_pairs = sum(result["num_pairs"] for result in examined)
        bad = bad_lines(tasks, [(result["num_lines"], result["bad"]) for result in examined])
        if not num_pairs:
            first = f"; the first line: {bad[0].reason}" if bad else ""
            raise DataError(f"there is no pair in {', '.join(options.inputs)}{first}")
        call.check_bad_share(bad, num_pairs, options)
        _settle_questions(call, work, num_pairs)
        if options.near_duplicates:
            call.run("sign", partial(_sign, work))
        find_near(call, work.near, rules.near_duplicates if options.near_duplicates else None)
        written = call.run("write", partial(_write, work, items=items))
        report = gather(items, written)
        examples = joined([result["by_discipline"] for result in written])
        notes = _notes(options)
        extra = {"notes": notes, "examples_by_discipline": examples}
        write_atomic(options.out / REPORT_MD, write_markdown(report, examples, notes).encode())
        forget_maps()  # NFS keeps a folder in which a file is open
        call.finish(report.as_json() | extra, report.quarantine, writes=True)
    return report


def _deciding(options: CheckOptions, rules: PairRules, benchmarks: tuple[Path, ...]) -> dict[str, Any]:
    """All that decides the result besides the input."""
    left_out = ("inputs", "out", "rules", "workers", "benchmarks")
    return {key: value for key, value in asdict(options).items() if key not in left_out} | {
        "rules": asdict(rules),
        "benchmarks": {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in benchmarks},
    }


def _notes(options: CheckOptions) -> list[str]:
    """What was not looked at."""
    steps = {
        "no benchmark was given: contamination was not looked for": bool(options.benchmarks),
        "code was not run (--run-code)": options.run_code,
        "near-duplicates were not looked for": options.near_duplicates,
    }
    return [note for note, is_done in steps.items() if not is_done]


@dataclass(frozen=True)
class _Work:
    """What every task needs, and where intermediate results lie."""

    folder: Path
    tasks: tuple[InputTask, ...]
    rules: PairRules
    benchmarks: tuple[Path, ...]
    options: CheckOptions
    sandbox: Sandbox | None

    @property
    def near(self) -> NearWork:
        return NearWork(self.folder)

    @property
    def findings(self) -> Path:
        return self.folder / "questions.findings"

    def pairs(self, task: int, report: Report) -> TaskDocuments:
        """The prepared pairs of a task."""
        ready = partial(prepare, rules=self.rules)
        return TaskDocuments(self.tasks[task], text_key=RAW_KEYS, on_bytes=report, prepare=ready)


def _examine(work: _Work, index: int, report: Report) -> dict[str, Any]:
    verdicts: list[list[Any]] = []
    questions: list[tuple[int, bytes]] = []
    answers: dict[int, str] = {}
    places: list[int] = []
    pairs = work.pairs(index, report)
    with Recomputer() as recomputer:
        for number, pair in enumerate(pairs):
            places.append(pair.place)
            verdict = judge_pair(pair, work.rules, recomputer, work.sandbox) or _contaminated(work, pair)
            if verdict is not None:
                verdicts.append([number, asdict(verdict)])
                continue
            questions.append((number, content_hash(pair.fields["question"])))
            if pair.fields.get("final_answer"):
                answers[number] = pair.fields["final_answer"]
    work.near.keep(index, "verdicts", json.dumps(verdicts, ensure_ascii=False).encode())
    work.near.keep_places(index, places)
    write_questions(questions, answers, work.near.of_task(index, "questions"))
    return {"num_pairs": len(places), "num_lines": pairs.num_lines, "bad": pairs.bad}


def _contaminated(work: _Work, pair: Document) -> Verdict | None:
    if not work.benchmarks:
        return None
    rule = work.rules.contamination
    index = _index(work.options, work.rules, work.benchmarks)
    question, answer = pair.fields["question"], pair.fields["answer"]
    # The question alone too: behind a verbatim one of 40 units an answer of 250 makes its share 8 %.
    for found in (index.look_up(f"{question}\n{answer}"), asked := index.look_up(question)):
        if found is None:
            continue
        value, limit = found.share, rule.max_share
        if found is asked and value <= limit:
            value, limit = found.short_share, rule.max_short_share
        if value > limit:
            benchmark, line = index.owners[found.items[0]]
            matched = {"benchmark": f"{work.benchmarks[benchmark]}:{line}", "ngram": found.ngram}
            return Verdict(reason="contaminated", value=round(value, 6), limit=limit, matched=matched)
    return None


def _index(options: CheckOptions, rules: PairRules, benchmarks: tuple[Path, ...]) -> NgramIndex:
    return open_index(benchmarks, options.benchmark_keys, rules.contamination.ngram, questions=True)


def _settle_questions(call: Call, work: _Work, num_pairs: int) -> None:
    count = num_ranges(num_pairs)
    folder, sizes = call.work / "questions", (max(1, num_pairs // count),) * count
    call.run("same questions", partial(_settle, work, folder, count), folder=folder.name, sizes=sizes, unit="M pairs")
    parts = [np.fromfile(path, dtype=FINDING) for path in sorted(folder.glob("*.part"))]
    write_atomic(work.findings, np.sort(np.concatenate(parts), order="pair").tobytes())


def _settle(work: _Work, folder: Path, count: int, index: int, report: Report) -> None:
    paths = [work.near.of_task(task, "questions") for task in range(len(work.tasks))]
    found = settle(paths, index, count, min_agreement=work.options.min_agreement)
    write_atomic(folder / f"{index:05d}.part", found.tobytes())


def _findings(work: _Work, task: int) -> Findings:
    if not work.findings.stat().st_size:
        return np.zeros(0, dtype=FINDING)
    found = np.memmap(work.findings, dtype=FINDING, mode="r")
    # Not searchsorted: it copies the column, and every task would read what all have found.
    start, stop = (bisect_left(found, node(end, 0), key=itemgetter("pair")) for end in (task, task + 1))
    return np.array(found[start:stop])


def _sign(work: _Work, index: int, report: Report) -> None:
    """MinHash of the pairs that are still kept: what is dropped anyway must not stand for its cluster."""
    lost = {number for number, _ in json.loads(work.near.of_task(index, "verdicts").read_bytes())}
    lost |= {int(pair) - node(index, 0) for pair in _findings(work, index)["pair"]}

    def documents() -> Iterator[Hashes | None]:
        for number, pair in enumerate(work.pairs(index, report)):
            text = None if number in lost else f"{pair.fields['question']}\n{pair.fields['answer']}"
            yield None if text is None else hashes_of(units_of(text))

    sign(work.near, documents(), index, work.rules.near_duplicates)


def _write(work: _Work, index: int, report: Report, *, items: list[SelectionTask]) -> dict[str, Any]:
    forget_maps()
    verdicts = _verdicts(work, items, index)
    examples: Examples = {}

    def judge(number: int, pair: Document) -> Verdict | None:
        verdict = verdicts.get(number)
        add_example(examples, pair, verdict)
        return verdict

    result = select(items[index], judge, report, prepare=partial(prepare, rules=work.rules))
    return result | {"by_discipline": examples}


def _verdicts(work: _Work, items: list[SelectionTask], index: int) -> dict[int, Verdict]:
    """By the pair's number; whatever is not in it is kept."""
    listed = json.loads(work.near.of_task(index, "verdicts").read_bytes())
    verdicts = {number: Verdict(**marks) for number, marks in listed}
    for found in _findings(work, index):
        matched = None if found["kept"] < 0 else place_of(work.near, items, int(found["kept"]))
        votes = {"votes": int(found["votes"]), "samples": int(found["samples"])}
        number = int(found["pair"]) - node(index, 0)
        reason, limit = ("disagreement", work.options.min_agreement) if found["disagrees"] else ("same_question", None)
        verdicts[number] = Verdict(reason=reason, value=votes, limit=limit, matched=matched)
    return verdicts | near_verdicts(work.near, items, index)


def summary(report: SelectionReport) -> str:
    """One line: how many of how many pairs are kept, and the most frequent reasons."""
    reasons = sum(map(Counter, report.dropped.values()), Counter[str]())
    most = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(5))
    return f"{report.num_kept:,} of {report.num_read:,} pairs are kept; dropped: {most or 'none'}"
