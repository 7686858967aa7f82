"""What `syne synth check` says of the labelled pairs: precision and recall per rule, as numbers and as a table.

    python -m tests.synthesis.labelled     writes the table into docs/qa_checks.md

labelled_pairs.jsonl: `expect` is "good" or the rule that must drop the pair. The good ones are the
generators' or by hand, with what a careless rule would drop; the bad ones are by hand, some beyond what a rule can see.
"""

import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from data_mixers.errors import ConfigError
from tools.synthesis.check import CheckOptions, check
from tools.synthesis.sandbox import require_sandbox

HERE = Path(__file__).parent
PAIRS = HERE / "labelled_pairs.jsonl"
BENCHMARK = HERE / "labelled_benchmark.jsonl"
PAGE = HERE.parents[1] / "docs" / "qa_checks.md"
NEEDS_SANDBOX = ("code_fails", "no_examples")


@dataclass(frozen=True)
class Score:
    """Of one rule."""

    labelled: int
    """Pairs that this rule must drop."""
    dropped: int
    right: int

    @property
    def precision(self) -> float:
        return self.right / self.dropped if self.dropped else 1.0

    @property
    def recall(self) -> float:
        return self.right / self.labelled if self.labelled else 1.0


def can_run_code() -> bool:
    try:
        require_sandbox()
    except ConfigError:
        return False
    return True


def labelled(*, with_code: bool) -> list[dict[str, Any]]:
    """The pairs with their labels."""
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if with_code or row["expect"] not in NEEDS_SANDBOX]


def given_reasons(rows: list[dict[str, Any]], folder: Path, *, with_code: bool) -> dict[str, str]:
    """id -> the reason `check` gives, "good" if it keeps the pair."""
    source, out = folder / "pairs.jsonl", folder / "checked"
    unlabelled = [{key: value for key, value in row.items() if key != "expect"} for row in rows]
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in unlabelled), encoding="utf-8")
    check(CheckOptions(inputs=(str(source),), out=out, benchmarks=(str(BENCHMARK),), run_code=with_code))
    given = {row["id"]: "good" for row in read(out)}
    return given | {row["id"]: row["reason"] for row in read(out / "dropped")}


def read(folder: Path) -> list[dict[str, Any]]:
    """All pairs in the folder's own files."""
    rows = []
    for path in sorted(folder.glob("*.jsonl.zst")):
        with path.open("rb") as stream:
            text = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True).read().decode()
        rows += [json.loads(line) for line in text.splitlines()]
    return rows


def scores(rows: list[dict[str, Any]], given: dict[str, str]) -> dict[str, Score]:
    """By rule, and "good" for what is kept."""
    wanted = Counter(row["expect"] for row in rows)
    dropped = Counter(given.values())
    right = Counter(row["expect"] for row in rows if given[row["id"]] == row["expect"])
    return {name: Score(wanted[name], dropped[name], right[name]) for name in sorted({*wanted, *dropped})}


def table(found: dict[str, Score], errors: list[str]) -> str:
    """The page."""
    bad = sum(score.labelled for name, score in found.items() if name != "good")
    lines = [
        "# How well `syne synth check` sorts labelled pairs",
        "",
        "Written by `python -m tests.synthesis.labelled`; the pairs are `tests/synthesis/labelled_pairs.jsonl`: "
        f"{found['good'].labelled} good and {bad} bad ones, of the generators and by hand. A bad pair counts as found "
        "only under the rule it was written for. Who wrote the rules wrote the set too, and changed rules after "
        "looking at it: it shows what each rule is for and guards it; how often a model's errors are found it does "
        "not measure.",
        "",
        "| rule | labelled | dropped by it | precision | recall |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {score.labelled} | {score.dropped} | {score.precision:.2f} | {score.recall:.2f} |"
            for name, score in found.items()
            if name != "good"
        ),
        f"| *kept* | {found['good'].labelled} | {found['good'].dropped} | {found['good'].precision:.2f} | "
        f"{found['good'].recall:.2f} |",
        "",
        "Where label and verdict differ:",
        "",
        *(f"- {error}" for error in errors),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    rows = labelled(with_code=True)
    with tempfile.TemporaryDirectory() as folder:
        given = given_reasons(rows, Path(folder), with_code=True)
    errors = [f"`{row['id']}`: {given[row['id']]}" for row in rows if given[row["id"]] != row["expect"]]
    PAGE.write_text(table(scores(rows, given), errors), encoding="utf-8")


if __name__ == "__main__":
    main()
