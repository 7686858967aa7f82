"""`syne synth audit`: how wrong is what remains? A sample goes before a judge whose own errors are measured.

pairs ─ sample (the N of each discipline with the lowest hash) ─┐
calibration (known right, known wrong by `syne synth corrupt`) ─┴─ judge ─> verdicts.jsonl, a line a verdict, at once
verdicts ─ wrong_rate.py ─> audit.json, audit.md; sheet.csv for a person, who can be the judge (`verdict` filled in)
"""

import hashlib
import heapq
import json
import re
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
from pydantic.dataclasses import dataclass as checked

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from data_mixers.permutation import keyed_hash
from tools.data.chat import ATTEMPTS, RefusedError, host_of, open_client, post
from tools.data.download import sha256_of
from tools.data.progress import LiveProgress
from tools.data.readers import plan_tasks
from tools.data.stage import only_one
from tools.data.yaml_file import STRICT, read_json
from tools.synthesis.answers import Part
from tools.synthesis.corrupt import RECORD_KEY
from tools.synthesis.options import JUDGE_PROMPT, AuditOptions
from tools.synthesis.output import kept_inputs
from tools.synthesis.record import QaRecord, filled, read_records
from tools.synthesis.sheet import SHEET, Verdict, read_sheet, write_sheet
from tools.synthesis.wrong_rate import LEAST_INFORMATION, Calibration, Count, wrong_rates

SCHEMA_VERSION = 1  # of audit.json
VERDICTS, AUDIT, AUDIT_MD, CALL = "verdicts.jsonl", "audit.json", "audit.md", "call.json"
MOST_REFUSED = 0.1  # of all pairs, ours: more are refused for what they have in common
NO_VERDICT = "no verdict in"
EXAMPLES = 3  # of pairs called wrong, a discipline
_VERDICT = re.compile(r'"verdict"\s*:\s*"(right|wrong)"', re.IGNORECASE)


@checked(frozen=True, kw_only=True, config=STRICT)
class JudgePrompt:
    system: str
    user: str
    """With {question} and {answer}."""
    again: str
    """Asked where a reply holds no verdict."""


@dataclass(frozen=True)
class _Case:
    key: str
    """Of its verdict: "sample <id>", "wrong <id>", "right <id>"."""
    pair: QaRecord


def audit(options: AuditOptions) -> dict[str, Any]:
    """The report, also written to audit.json and audit.md; without a judge or a filled sheet only the sheet is made.

    A verdict is kept when it comes, so a call that was killed asks only for what is missing.
    Errors: ConfigError for options that do not go together or a folder of another audit; DataError for damaged input,
    a server that refuses, a sheet that is not filled, or a judge that cannot tell right from wrong.
    """
    _check_options(options)
    prompt: dict[str, JudgePrompt] = read_json(JUDGE_PROMPT, dict[str, JudgePrompt])
    with only_one(options.out):
        _take(options, prompt)
        sizes, sample = _sample(options)
        write_sheet(options.out / SHEET, [case.pair for case in sample])
        calibration: Calibration | None = None
        if options.filled is not None:
            by_id = read_sheet(options.filled, [case.pair for case in sample])
            verdicts = {case.key: by_id[case.pair.id] for case in sample}
        elif options.url is None:
            return {"sheet": str(options.out / SHEET), "sample": len(sample)}
        else:
            known = _known(options)
            verdicts = _ask_all(options, prompt, [*sample, *known])
            calibration = _calibration(known, verdicts)
        report = _report(options, sizes, sample, verdicts, calibration)
        content = {"schema_version": SCHEMA_VERSION, **report}
        write_atomic(options.out / AUDIT, json.dumps(content, ensure_ascii=False, indent=1).encode())
        write_atomic(options.out / AUDIT_MD, markdown(report).encode())
    return report


def _check_options(options: AuditOptions) -> None:
    if options.url is not None and options.filled is not None:
        raise ConfigError("--url and --filled are two judges; name one")
    if options.url is not None:
        host_of(options.url, option="--url")
    if options.url is not None and (options.model is None or not options.calibration):
        raise ConfigError(
            "a judge needs --model, and --calibration FILE with pairs known to be right and wrong: "
            "syne synth corrupt --share 0.5 makes one of pairs that are right"
        )


def _take(options: AuditOptions, prompt: dict[str, JudgePrompt]) -> None:
    """Errors: ConfigError if the folder holds the verdicts of another audit."""
    files, known = (sorted(map(sha256_of, kept_inputs(found))) if found else [] for found in
                    (options.inputs, options.calibration))  # fmt: skip
    texts = {language: asdict(found) for language, found in prompt.items()}
    deciding = [options.model, options.max_tokens, texts, files, known]  # a larger sample holds the smaller one
    mark = hashlib.sha256(json.dumps(deciding).encode()).hexdigest()
    path = options.out / CALL
    if path.exists() and path.read_text() != mark and (options.out / VERDICTS).exists():
        raise ConfigError(
            f"{options.out} holds verdicts of another audit (other pairs, judge, prompt or --max-tokens), or of "
            "another version; name another"
        )
    write_atomic(path, mark.encode())


def _lowest(pairs: Iterable[tuple[str, QaRecord]], n: int, seed: int) -> dict[str, tuple[int, list[QaRecord]]]:
    """Of each kind how many there are, and the n with the lowest hashes in order: the same whatever else there is."""
    sizes: Counter[str] = Counter()
    heaps: dict[str, list[tuple[int, str, QaRecord]]] = {}
    for kind, pair in pairs:
        sizes[kind] += 1
        heap = heaps.setdefault(kind, [])
        entry = (-keyed_hash("audit", seed, pair.id), pair.id, pair)
        if len(heap) < n:
            heapq.heappush(heap, entry)
        elif entry[:2] > heap[0][:2]:
            heapq.heapreplace(heap, entry)
    ordered = {kind: sorted(heap, key=lambda entry: entry[:2], reverse=True) for kind, heap in sorted(heaps.items())}
    return {kind: (sizes[kind], [pair for _, _, pair in entries]) for kind, entries in ordered.items()}


def _sample(options: AuditOptions) -> tuple[dict[str, int], list[_Case]]:
    pairs = read_records(plan_tasks(kept_inputs(options.inputs)))
    found = _lowest(((pair.discipline, pair) for pair in pairs), options.sample, options.seed)
    cases = [_Case(f"sample {pair.id}", pair) for _, lowest in found.values() for pair in lowest]
    if not cases:
        raise DataError(f"there is no pair in {', '.join(options.inputs)}")
    return {name: size for name, (size, _) in found.items()}, _once(cases)


def _once(cases: list[_Case]) -> list[_Case]:
    """The same. Errors: DataError if two have one key."""
    twice = [key for key, count in Counter(case.key for case in cases).items() if count > 1]
    if twice:
        raise DataError(f"the id of {twice[0]!r} occurs more than once; verdicts are kept by id")
    return cases


def _known(options: AuditOptions) -> list[_Case]:
    pairs = read_records(plan_tasks(kept_inputs(options.calibration)))
    kinds = (("wrong" if RECORD_KEY in pair.extra else "right", pair) for pair in pairs)
    found = _lowest(kinds, options.calibration_sample, options.seed)
    for kind in ("wrong", "right"):
        if kind not in found:
            raise DataError(
                f"--calibration has no pair known to be {kind} (key {RECORD_KEY}: wrong, without it: right)"
            )
    return _once([_Case(f"{kind} {pair.id}", pair) for kind, (_, lowest) in found.items() for pair in lowest])


def _ask_all(options: AuditOptions, prompt: dict[str, JudgePrompt], cases: list[_Case]) -> dict[str, Verdict]:
    path = options.out / VERDICTS
    verdicts = _kept(path)
    missing = [case for case in cases if case.key not in verdicts]
    with (
        LiveProgress("judging", total=len(cases), unit="pairs", scale=1.0) as progress,
        open_client(str(options.url), timeout_seconds=options.timeout_seconds) as client,
        Part(path) as kept,
        ThreadPoolExecutor(options.parallel) as pool,
    ):
        progress.skip(len(cases) - len(missing))
        ended, one = threading.Event(), threading.Lock()
        refused: dict[str, str] = {}

        def settle(case: _Case) -> None:
            """In a thread, so that what is answered after a Ctrl-C is kept too."""
            try:
                verdict, reason = _ask(client, options, prompt, case, ended)
            except RefusedError as error:
                refused[case.key] = str(error)
                return
            with one:
                kept.append({"key": case.key, "verdict": verdict, "reason": reason})
                verdicts[case.key] = (verdict, reason)
                progress.advance(1)

        futures = [pool.submit(settle, case) for case in missing]
        try:
            for future in as_completed(futures):
                future.result()
                if len(refused) > MOST_REFUSED * len(cases):
                    raise DataError(
                        f"the judge refuses {len(refused)} pairs (the last: {[*refused.values()][-1]}); they have no "
                        "verdict: take a judge, or a server, that reads them, then run the same again"
                    )
            for name, reason in refused.items():
                kept.append({"key": name, "verdict": "unclear", "reason": reason})
                verdicts[name] = ("unclear", reason)
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)
    return verdicts


def _kept(path: Path) -> dict[str, Verdict]:
    """Verdicts of an earlier call; a last line that was cut off is none."""
    if not path.exists():
        return {}
    try:
        rows = [orjson.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        return {row["key"]: (row["verdict"], row["reason"]) for row in rows}
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds a line that is no verdict ({error!r}); remove the line and run again") from error


def _ask(
    client: httpx.Client, options: AuditOptions, prompt: dict[str, JudgePrompt], case: _Case, ended: threading.Event
) -> Verdict:
    texts = prompt.get(case.pair.language, prompt["en"])
    asked = filled(texts.user, question=case.pair.question, answer=case.pair.answer)
    messages = [{"role": "system", "content": texts.system}, {"role": "user", "content": asked}]
    reply, fault, reached = None, "", False
    for attempt in range(ATTEMPTS):
        body = {
            "model": options.model, "messages": messages, "seed": attempt, "max_tokens": options.max_tokens,
            "temperature": 0.0 if attempt == 0 else 0.7,
        }  # fmt: skip
        reply, fault = post(client, body, attempt, ended)
        if reply is None:
            continue
        reached = True
        verdict = parse_verdict(reply)
        if verdict is not None:
            return verdict
        again = [{"role": "assistant", "content": reply}, {"role": "user", "content": texts.again}]
        messages = [*messages[:2], *again]
    if not reached:
        raise DataError(
            f"{case.key}: gave up after {ATTEMPTS} attempts ({fault}); verdicts so far are kept, run the same again"
        )
    return "unclear", f"{NO_VERDICT} {reply!r:.200}"


def parse_verdict(reply: str) -> Verdict | None:
    """What {"reason": …, "verdict": "right" | "wrong"} says; None for anything else."""
    start, stop = reply.find("{"), reply.rfind("}")
    try:
        found = orjson.loads(reply[start : stop + 1]) if 0 <= start < stop else None
    except orjson.JSONDecodeError:  # LaTeX in a reason or before it breaks JSON: the verdict is what counts
        verdicts = {word.casefold() for word in _VERDICT.findall(reply)}
        return (verdicts.pop(), reply[start : stop + 1]) if len(verdicts) == 1 else None
    if not isinstance(found, dict) or str(found.get("verdict")).casefold() not in ("right", "wrong"):
        return None
    return str(found["verdict"]).casefold(), str(found.get("reason", ""))


def _calibration(known: list[_Case], verdicts: dict[str, Verdict]) -> Calibration:
    counts = Counter((case.key.split(" ", 1)[0], verdicts[case.key][0] == "right") for case in known)
    found_wrong = Count(counts["wrong", False], counts["wrong", False] + counts["wrong", True])
    found_right = Count(counts["right", True], counts["right", False] + counts["right", True])
    return Calibration(found_wrong, found_right)


def _report(
    options: AuditOptions,
    sizes: dict[str, int],
    sample: list[_Case],
    verdicts: dict[str, Verdict],
    calibration: Calibration | None,
) -> dict[str, Any]:
    if calibration is not None and calibration.information < LEAST_INFORMATION:
        unclear = sum(reason.startswith(NO_VERDICT) for _, reason in verdicts.values())  # not those that are refused
        why = f" ({unclear} answers hold no verdict: raise --max-tokens, with another --out)" if unclear else ""
        raise DataError(
            f"the judge {options.model} calls {calibration.found_wrong.share:.0%} of the wrong pairs wrong and "
            f"{calibration.found_right.share:.0%} of the right ones right: it cannot tell them apart{why}; take another"
        )
    wrong = [case for case in sample if verdicts[case.key][0] != "right"]
    called = {name: [case for case in wrong if case.pair.discipline == name] for name in sizes}
    totals: Counter[str] = Counter(case.pair.discipline for case in sample)
    counts = {name: Count(len(called[name]), totals[name]) for name in sizes}
    rates, overall = wrong_rates(counts, sizes, calibration, seed=options.seed)
    return {
        # By which a later step knows the pairs that were audited.
        "inputs": sorted(map(sha256_of, kept_inputs(options.inputs))),
        "judge": options.model if calibration is not None else options.judged_by,
        "calibration": None if calibration is None else asdict(calibration),
        "wrong_rate": overall.as_json(),
        "disciplines": {
            name: {
                "pairs": sizes[name],
                "sample": totals[name],
                "called_wrong": counts[name].hits,
                "wrong_rate": rates[name].as_json(),
                "examples": [
                    {"id": case.pair.id, "verdict": verdicts[case.key][0], "reason": verdicts[case.key][1],
                     "question": case.pair.question[:300], "answer": case.pair.answer[:600]}
                    for case in called[name][:EXAMPLES]
                ],
            }
            for name in sizes
        },
    }  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    lines = ["# How wrong the pairs are", "", f"Judge: {report['judge']}."]
    if report["calibration"] is not None:
        wrong, right = (Count(**report["calibration"][key]) for key in ("found_wrong", "found_right"))
        lines.append(
            f"Of {wrong.total} pairs known to be wrong it called {wrong.share:.1%} wrong, of {right.total} known to be "
            f"right {right.share:.1%} right; the rates are corrected for that."
        )
    lines += ["", "| | pairs | sample | called wrong | wrong rate | 95 % interval |", "|---|---:|---:|---:|---:|---:|"]
    for name, row in report["disciplines"].items():
        rate = row["wrong_rate"]
        lines.append(
            f"| {name} | {row['pairs']:,} | {row['sample']} | {row['called_wrong']} | {rate['value']:.1%} | "
            f"{rate['low']:.1%} to {rate['high']:.1%} |"
        )
    whole = report["wrong_rate"]
    lines.append(f"| all, by size | | | | {whole['value']:.1%} | {whole['low']:.1%} to {whole['high']:.1%} |")
    for name, row in report["disciplines"].items():
        for example in row["examples"]:
            text = f"{example['question']}\n—\n{example['answer']}\n—\n{example['verdict']}: {example['reason']}"
            lines += ["", f"{name}, `{example['id']}`", "", *(f"    {line}" for line in text.splitlines())]
    return "\n".join(lines) + "\n"


def summary(report: dict[str, Any]) -> str:
    """One line a discipline, and the whole; or where the sheet lies."""
    if "sheet" in report:
        return f"{report['sheet']}: {report['sample']} pairs; fill in the column verdict and pass it with --filled"
    rows = {name: row["wrong_rate"] for name, row in report["disciplines"].items()} | {"all": report["wrong_rate"]}
    return "\n".join(
        f"{name}: {rate['value']:.1%} wrong (95 %: {rate['low']:.1%} to {rate['high']:.1%})"
        for name, rate in rows.items()
    )
