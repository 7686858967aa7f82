"""What `syne synth check` shows a person: counts per discipline and rule, with examples to look at."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import orjson

from tools.data.documents import Document
from tools.data.selection import SelectionReport, Verdict

EXAMPLES_PER_CELL = 2  # of each discipline and reason
EXCERPT_CHARACTERS = 300


Examples = dict[str, dict[str, list[dict[str, Any]]]]
"""discipline -> reason ("kept" for those that stay) -> the first pairs in input order."""


def add_example(examples: Examples, pair: Document, verdict: Verdict | None) -> None:
    """If there are few of its kind."""
    reasons = examples.setdefault(str(pair.fields["discipline"]), {})
    kept = reasons.setdefault(verdict.reason if verdict is not None else "kept", [])
    if len(kept) < EXAMPLES_PER_CELL:
        question, answer = pair.fields.get("question", pair.text), pair.fields.get("answer", "")
        marks = {} if verdict is None else {key: value for key, value in asdict(verdict).items() if key != "reason"}
        texts = {"question": _excerpt(str(question)), "answer": _excerpt(str(answer))}
        kept.append({"id": pair.id} | marks | texts | {"language": pair.fields["language"]})


def joined(parts: Sequence[Examples]) -> Examples:
    """Of several tasks in input order; sorted by discipline and reason."""
    whole: Examples = {}
    for part in parts:
        for discipline, reasons in part.items():
            for reason, examples in reasons.items():
                kept = whole.setdefault(discipline, {}).setdefault(reason, [])
                kept += examples[: EXAMPLES_PER_CELL - len(kept)]
    return {name: dict(sorted(reasons.items())) for name, reasons in sorted(whole.items())}


def write_markdown(report: SelectionReport, examples: Examples, notes: Sequence[str]) -> str:
    disciplines = sorted({*report.kept, *report.dropped})
    reasons = sorted({reason for found in report.dropped.values() for reason in found})
    lines = [
        "# What `syne synth check` kept and dropped",
        "",
        f"{report.num_read:,} read = {report.num_kept:,} kept + {report.num_dropped:,} dropped + "
        f"{report.num_quarantined:,} that are no pairs (quarantine.jsonl)",
        *[f"Not looked at: {note}." for note in notes],
        "",
        f"| | {' | '.join(disciplines)} |",
        f"|---|{'---:|' * len(disciplines)}",
        _row("kept", [report.kept.get(name, 0) for name in disciplines]),
        *(_row(reason, [report.dropped.get(name, {}).get(reason, 0) for name in disciplines]) for reason in reasons),
    ]
    for discipline, by_reason in examples.items():
        lines += ["", f"## {discipline}"]
        for reason, found in by_reason.items():
            lines += ["", f"### {discipline}: {reason}"]
            for example in found:
                lines += ["", f"`{example['id']}`{_measured(example)}", "", *_quoted(example)]
    return "\n".join(lines) + "\n"


def _row(title: str, counts: Sequence[int]) -> str:
    return f"| {title} | {' | '.join(f'{count:,}' for count in counts)} |"


def _measured(example: dict[str, Any]) -> str:
    shown = {key: example[key] for key in ("value", "limit", "matched") if example.get(key) is not None}
    return "".join(f", {key} {orjson.dumps(value).decode()}" for key, value in shown.items())


def _quoted(example: dict[str, Any]) -> list[str]:
    text = f"{example['question']}\n—\n{example['answer']}" if example["answer"] else example["question"]
    fence = "~" * max(4, max((len(line) for line in text.split() if set(line) == {"~"}), default=0) + 1)
    return [fence, *text.splitlines(), fence]


def _excerpt(text: str) -> str:
    return text if len(text) <= EXCERPT_CHARACTERS else f"{text[:EXCERPT_CHARACTERS]} […]"
