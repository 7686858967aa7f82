"""What the model is asked about: pages of science, and problems whose answers are known exactly."""

import itertools
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from data_mixers.atomic import write_atomic
from tools.synthesis.record import QaRecord
from tools.synthesis.verifiable.elements import data_file
from tools.synthesis.verifiable.stream import items
from tools.synthesis.verifiable.topic import Kind

COMPUTING = ("debian_reference", "libreoffice_help", "python_reference")
PROBLEMS: dict[Kind, int] = {"arithmetic": 120, "number_theory": 40}
NO_NUMBER = "/factors"  # of these the result is a product, which can be written in many ways


def computing_pages(quickstart: Path) -> list[Path]:
    """Files of the quickstart's English training text on computing; two of the three are Debian's."""
    files = [quickstart / "text" / "train" / "en" / name / "computing.jsonl" for name in COMPUTING]
    return [file for file in files if file.exists()]


def write_element_pages(out: Path) -> Path:
    """A page for each chemical element, of the prose in mendeleev's data file."""
    with sqlite3.connect(f"file:{data_file()}?mode=ro", uri=True) as database:
        rows = database.execute("select name, description, sources, uses from elements order by atomic_number")
        pages = [
            {"id": name, "text": " ".join(text.strip().rstrip(".") + "." for text in (f"{name} is an element", *texts)
                                          if text)}
            for name, *texts in rows
        ]  # fmt: skip
    return _write(out, pages)


def problems(seed: int = 0) -> Iterator[QaRecord]:
    """Exact pairs whose results are numbers, so that a text can be compared with them."""
    for kind, number in PROBLEMS.items():
        numeric = (pair for pair in items(kind, "en", seed=seed) if not pair.generator.endswith(NO_NUMBER))
        yield from itertools.islice(numeric, number)


def write_problem_seeds(out: Path) -> dict[str, str]:
    """Problems as seeds, to be solved as they stand; seed_hash -> the exact answer."""
    seeds, answers = [], {}
    for pair in problems():
        given = {"text": pair.question, "seed_id": pair.id, "seed_hash": pair.id}
        seeds.append(given | {"discipline": pair.discipline, "language": "en"})
        answers[pair.id] = pair.final_answer or ""
    _write(out, seeds)
    return answers


def _write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return path
