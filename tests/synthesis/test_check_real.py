"""Real problem-solution triples through `check`: people's pairs stay, and go when their numbers are made wrong."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples.quickstart import assets
from tests.synthesis.labelled import read
from tools.cli import main
from tools.synthesis.check import CheckOptions, check
from tools.synthesis.equations import equations

PACKAGES = ("chalkbase", "champ-dataset")
COUNT = 2000  # of the Chinese ones


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("assets")
    for folder in ("python", "stamps"):
        (target / folder).mkdir()
    for requirement in assets.locked_requirements(assets.LOCK):
        if requirement.startswith(PACKAGES):
            assets._fetch_python_package(requirement, target)
    return target / "python"


def chinese(packages: Path) -> list[dict[str, Any]]:
    archetypes = json.loads((packages / "chalkbase/data/archetypes.json").read_text("utf-8"))
    triples = [example for archetype in archetypes for example in archetype["rewritten_examples"]]
    return [
        pair(f"zh {number}", "zh", triple["problem"], triple["solution"], triple["answer"])
        for number, triple in enumerate(triples[:COUNT])
    ]


def english(packages: Path) -> list[dict[str, Any]]:
    problems = json.loads((packages / "champ_dataset/dataset_files/v0.json").read_text("utf-8"))["problems"]
    return [
        pair(
            f"en {key}",
            "en",
            problem["_text"],
            "\n".join([*(step["_text"] for step in problem["solution"]["steps"]), f"Answer: {problem['_answer']}"]),
            problem["_answer"],
        )
        for key, problem in problems.items()
    ]


def pair(name: str, language: str, question: str, answer: str, final: object) -> dict[str, Any]:
    given = {"id": name, "discipline": "mathematics", "language": language, "generator": "people"}
    return given | {"question": question, "answer": answer, "final_answer": str(final)}


def dropped(rows: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    check(CheckOptions(inputs=(str(folder / "in.jsonl"),), out=folder / "out"))
    return {row["id"]: row["reason"] for row in read(folder / "out/dropped")}


@pytest.mark.slow
def test_pairs_that_people_wrote_stay(packages: Path, tmp_path: Path) -> None:
    rows = english(packages)
    found = dropped(rows, tmp_path / "en")
    assert len(found) <= 0.02 * len(rows), Counter(found.values())
    rows = chinese(packages)
    found = dropped(rows, tmp_path / "zh")
    # Many exercises are printed beside a picture or a table; what else goes is short, or twice there.
    without = {row["id"] for row in rows if not re.search("[图表]", row["question"])}
    lost = Counter(reason for name, reason in found.items() if name in without)
    right = ("near_duplicate", "same_question", "question_too_short", "answer_too_short")
    assert sum(count for reason, count in lost.items() if reason not in right) <= 0.02 * len(without), lost


@pytest.mark.slow
def test_pairs_whose_numbers_were_changed_go_where_a_sum_can_be_recomputed(packages: Path, tmp_path: Path) -> None:
    rows = [row for row in chinese(packages) if len(list(equations(row["answer"]))) >= 2]
    assert len(rows) >= 100
    source, wrong = tmp_path / "right.jsonl", tmp_path / "wrong.jsonl"
    source.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    command = ["synth", "corrupt", "--input", str(source), "--share", "1", "--no-nouns", "--no-adjectives"]
    assert main([*command, "--out", str(wrong)]) == 0
    found = dropped([json.loads(line) for line in wrong.read_text("utf-8").splitlines()], tmp_path / "checked")
    caught = sum(reason == "arithmetic" for reason in found.values())
    assert caught >= 0.8 * len(rows), (caught, len(rows))
