"""What the model is asked about: pages of science, and problems whose answers are known exactly."""

import itertools
import json
import sqlite3
from importlib.util import find_spec
from pathlib import Path

from data_mixers.atomic import write_atomic
from data_mixers.errors import DataError
from tools.synthesis.verifiable.stream import items
from tools.synthesis.verifiable.topic import Kind

COMPUTING = ("debian_reference", "libreoffice_help", "python_reference")
PROBLEMS: dict[Kind, int] = {
    "arithmetic": 60,
    "number_theory": 20,
}  # their results are numbers, so a text can be judged


def computing_pages(quickstart: Path) -> list[Path]:
    """Files of the quickstart's English training text on computing; two of the three are Debian's."""
    files = [quickstart / "text" / "train" / "en" / name / "computing.jsonl" for name in COMPUTING]
    return [file for file in files if file.exists()]


def write_element_pages(out: Path) -> Path:
    """A page for each chemical element, of the prose in mendeleev's data file."""
    found = find_spec("mendeleev")
    if found is None or found.origin is None:
        raise DataError("the elements' pages are mendeleev's: make env, or pip install --no-deps mendeleev")
    with sqlite3.connect(f"file:{Path(found.origin).with_name('elements.db')}?mode=ro", uri=True) as database:
        rows = database.execute("select name, description, sources, uses from elements order by atomic_number")
        pages = [
            {"id": name, "text": " ".join(text.strip().rstrip(".") + "." for text in (f"{name} is an element", *texts)
                                          if text)}
            for name, *texts in rows
        ]  # fmt: skip
    return _write(out, pages)


def write_problem_seeds(out: Path) -> dict[str, str]:
    """Problems as seeds, to be solved as they stand; seed_hash -> the exact answer."""
    pairs = [pair for kind, number in PROBLEMS.items() for pair in itertools.islice(items(kind, "en", seed=0), number)]
    seeds = [
        {
            "text": pair.question,
            "seed_id": pair.id,
            "seed_hash": pair.id,
            "discipline": pair.discipline,
            "language": "en",
        }
        for pair in pairs
    ]
    _write(out, seeds)
    return {pair.id: pair.final_answer or "" for pair in pairs}


def _write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return path
