"""What the example writes: the labelled file is not touched when nothing changed, and a simulation is kept."""

import json
import os
from pathlib import Path

import pytest

from examples.topic_classifier import __main__ as example


def report(file: Path, confusion: list[list[int]]) -> Path:
    topics = ["a", "b", "others"]
    file.write_text(json.dumps({"results": {"ours": {"en": {"topics": topics, "confusion": confusion}}}}))
    return file


def test_without_errors_of_the_labels_nothing_changes_and_with_them_a_controller_moves_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "WORLDS", 2)
    said = example.simulated(report(tmp_path / "right.json", [[5, 0, 0], [0, 5, 0], [0, 0, 5]]), "en")
    rows = said.split("what the errors of the labels change")[1].splitlines()
    changes = [row.split("|")[2].strip() for row in rows if row.startswith("| ") and "controller" not in row]
    assert len(changes) == 7 and set(changes) == {"+0.0000 [+0.0000, +0.0000]"}
    said = example.simulated(report(tmp_path / "mixed.json", [[4, 3, 3], [3, 4, 3], [3, 3, 4]]), "en")
    (row,) = (row for row in said.split("what the errors")[1].splitlines() if row.startswith("| ado "))
    before, after = row.split("|")[3].strip().split(" to ")
    assert float(after) < float(before)


def test_labelled_text_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(assets: Path) -> object:
        return iter([("others", f"{assets.name} text"), ("others", "more text")])

    monkeypatch.setattr(example, "SOURCES", (example.Source("en", "en_x", read),))  # type: ignore[arg-type]
    file = tmp_path / "labelled.jsonl"
    example.write_labelled(tmp_path / "one", file)
    os.utime(file, (1, 1))
    example.write_labelled(tmp_path / "one", file)
    assert file.stat().st_mtime == 1
    example.write_labelled(tmp_path / "two", file)
    assert file.stat().st_mtime > 1 and "two text" in file.read_text()
