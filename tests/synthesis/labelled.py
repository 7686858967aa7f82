"""What `syne synth check` says of the labelled pairs: precision and recall per rule, as numbers and as a table.

    python -m tests.synthesis.labelled     writes the table into docs/qa_checks.md

labelled_pairs.jsonl: `expect` is "good" or the rule that must drop the pair. The good ones are the
generators' or by hand, with what a careless rule would drop; the bad ones are by hand, some beyond what a rule can see.
Beside it problems that people wrote and solved, built anew from packages each time: half stay, of half the numbers are
made wrong by `syne synth corrupt`.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_mixers.errors import ConfigError
from data_mixers.permutation import keyed_hash
from tests.rows import read, write
from tests.synthesis.real_packages import chinese_triples, english_triples
from tools.synthesis.check import check
from tools.synthesis.corrupt import RECORD_KEY, corrupt_file
from tools.synthesis.equations import equations
from tools.synthesis.options import CheckOptions, CorruptOptions
from tools.synthesis.sandbox import require_sandbox

HERE = Path(__file__).parent
PAIRS = HERE / "labelled_pairs.jsonl"
BENCHMARK = HERE / "labelled_benchmark.jsonl"
PAGE = HERE.parents[1] / "docs" / "qa_checks.md"
NEEDS_SANDBOX = ("code_fails", "no_examples")
NUM_CHINESE = 160  # the English ones with an equation are few: all of them are taken


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
    return [row for row in read(PAIRS) if with_code or row["expect"] not in NEEDS_SANDBOX]


def real_pairs(folder: Path) -> list[dict[str, Any]]:
    """Pairs that people wrote, with an equation between numbers in the solution; the half made wrong must go by it."""
    # Many exercises stand beside a picture or a table; they are dropped for that, whatever their numbers say.
    chinese = [
        row
        for row in chinese_triples(most_alike=1)
        if not set("图表") & set(row["question"]) and len(list(equations(row["answer"]))) >= 2
    ]
    chinese.sort(key=lambda row: keyed_hash("labelled", 0, row["id"]))
    english = [row for row in english_triples() if any(True for _ in equations(row["answer"]))]
    rows = []
    for language, right in (("zh", chinese[:NUM_CHINESE]), ("en", english)):
        source, made = write(folder / f"{language}.jsonl", right), folder / f"{language}.half.jsonl"
        options = CorruptOptions(
            inputs=(str(source),), out=made, share=0.5, seed=0, kinds=("number",),
        )  # fmt: skip
        corrupt_file(options)
        for row in read(made):
            is_wrong = row.pop(RECORD_KEY, None) is not None
            rows.append(row | {"expect": "arithmetic" if is_wrong else "good"})
    return rows


def given_reasons(rows: list[dict[str, Any]], folder: Path, *, with_code: bool) -> dict[str, str]:
    """id -> the reason `check` gives, "good" if it keeps the pair."""
    unlabelled = [{key: value for key, value in row.items() if key != "expect"} for row in rows]
    source, out = write(folder / "pairs.jsonl", unlabelled), folder / "checked"
    check(CheckOptions(inputs=(str(source),), out=out, benchmarks=(str(BENCHMARK),), run_code=with_code))
    given = {row["id"]: "good" for row in read(out)}
    return given | {row["id"]: row["reason"] for row in read(out / "dropped")}


def scores(rows: list[dict[str, Any]], given: dict[str, str]) -> dict[str, Score]:
    """By rule, and "good" for what is kept."""
    wanted = Counter(row["expect"] for row in rows)
    dropped = Counter(given.values())
    right = Counter(row["expect"] for row in rows if given[row["id"]] == row["expect"])
    return {name: Score(wanted[name], dropped[name], right[name]) for name in sorted({*wanted, *dropped})}


def table(found: dict[str, Score], errors: list[str], real: dict[str, Score], real_errors: list[str]) -> str:
    """The page."""
    bad, real_bad = (
        sum(score.labelled for name, score in scores.items() if name != "good") for scores in (found, real)
    )
    lines = [
        "# How well `syne synth check` sorts labelled pairs",
        "",
        "Written by `python -m tests.synthesis.labelled`; the pairs are `tests/synthesis/labelled_pairs.jsonl`: "
        f"{found['good'].labelled} good and {bad} bad ones, of the generators and by hand. A bad pair counts as found "
        "only under the rule it was written for. Who wrote the rules wrote the set too, and changed rules after "
        "looking at it: it shows what each rule is for and guards it; how often a model's errors are found it does "
        "not measure.",
        "",
        *_rows(found),
        "",
        "Where label and verdict differ:",
        "",
        *(f"- {error}" for error in errors),
        "",
        "## Problems that people wrote and solved",
        "",
        f"{NUM_CHINESE} Chinese school problems (chalkbase, two equations between numbers or more in the solution, no "
        "picture) and all English competition problems with one (champ-dataset), built from the packages at each run: "
        f"{real['good'].labelled} as they are, of {real_bad} each number of the answer was changed with a chance of "
        "one half, the last always (`syne synth corrupt --share 0.5 --kind number`).",
        "",
        *_rows(real),
        "",
        "Where label and verdict differ:",
        "",
        *(f"- {error}" for error in real_errors),
    ]
    return "\n".join(lines) + "\n"


def _rows(found: dict[str, Score]) -> list[str]:
    kept = found["good"]
    return [
        "| rule | labelled | dropped by it | precision | recall |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {score.labelled} | {score.dropped} | {score.precision:.2f} | {score.recall:.2f} |"
            for name, score in found.items()
            if name != "good"
        ),
        f"| *kept* | {kept.labelled} | {kept.dropped} | {kept.precision:.2f} | {kept.recall:.2f} |",
    ]


def differences(rows: list[dict[str, Any]], given: dict[str, str]) -> list[str]:
    """Where the verdict is not the label."""
    return [f"`{row['id']}`: {given[row['id']]}" for row in rows if given[row["id"]] != row["expect"]]


def main() -> None:
    rows = labelled(with_code=True)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as second:
        given = given_reasons(rows, Path(folder), with_code=True)
        real = real_pairs(Path(second))
        given_real = given_reasons(real, Path(second), with_code=True)
    page = table(scores(rows, given), differences(rows, given), scores(real, given_real), differences(real, given_real))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
