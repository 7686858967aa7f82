"""The judge of solved problems: their exact answers, known because the problems were made with them."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools.data.documents import DocumentWriter
from tools.data.readers import find_inputs, plan_tasks
from tools.synthesis.final_answers import agree, normalised
from tools.synthesis.record import QaRecord, read_records
from tools.synthesis.sections import stated_result

JUDGE = "the exact answers of syne synth verifiable"


def part_pairs(checked: str, answers: Mapping[str, str], *, known: Path, of_pages: Path) -> dict[str, int]:
    """Checked pairs in two files, solutions of problems with an exact answer and pairs of pages; how many of each."""
    with DocumentWriter(known) as solved, DocumentWriter(of_pages) as others:
        for pair in pairs_of(checked):
            (solved if pair.seed_hash in answers else others).write(pair.to_json())
    return {"solved problems": solved.num_documents, "pairs of pages": others.num_documents}


def fill_sheet(sheet: Path, filled: Path, pairs: str, answers: Mapping[str, str]) -> None:
    """The audit's sheet with a verdict on each pair: right if the stated result is the exact answer.

    answers: seed_hash -> exact answer. False sums on the way were dropped by `check`; other steps are not looked at.
    """
    hashes = {pair.id: pair.seed_hash or "" for pair in pairs_of(pairs)}
    with sheet.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with filled.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            exact = answers[hashes[row["id"].removeprefix("'")]]
            writer.writerow(row | {"verdict": verdict(row["answer"], exact), "reason": f"exactly: {exact}"})


def verdict(answer: str, exact: str) -> str:
    """right or wrong; an answer that states no result is wrong."""
    stated = stated_result(answer)
    return "right" if stated is not None and agree(normalised(stated), normalised(exact)) else "wrong"


def pairs_of(pattern: str) -> Iterator[QaRecord]:
    """The pairs of files that a step wrote."""
    return read_records(plan_tasks(find_inputs((pattern,))))
