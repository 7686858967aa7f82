"""`syne synth check`: labelled pairs, real pairs, nothing lost, the same result however it is run."""

import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_mixers.errors import ConfigError
from tests import killed
from tests.rows import contents, read, write
from tests.synthesis.labelled import (
    BENCHMARK,
    PAGE,
    can_run_code,
    differences,
    given_reasons,
    labelled,
    real_pairs,
    scores,
    table,
)
from tools.cli import main
from tools.data.documents import Document
from tools.data.exact_duplicates import content_hash
from tools.data.readers import BadRecord
from tools.data.selection import SelectionReport
from tools.synthesis import final_answers, sandbox
from tools.synthesis.check import _findings, _Work, check
from tools.synthesis.final_answers import agree, majority, normalised
from tools.synthesis.latex import latex_fault
from tools.synthesis.options import PAIR_RULES, CheckOptions
from tools.synthesis.pair_rules import load_pair_rules, prepare
from tools.synthesis.question_groups import FINDING, settle, write_questions
from tools.synthesis.sections import Sections, split_sections

# What cannot be seen by recomputing: arithmetic in words, a value without an equation, a wrong last step of algebra.
FLOORS = {"arithmetic": (1.0, 0.85)}


def pair(**more: Any) -> dict[str, Any]:
    given = {"id": "1", "discipline": "mathematics", "language": "en", "generator": "m"}
    question = "How many apples are in seven boxes of twelve apples each?"
    return given | {"question": question, "answer": "There are 7 × 12 = 84 apples.\nThe answer is 84."} | more


def checked(folder: Path, *rows: dict[str, Any], **options: Any) -> dict[str, str]:
    """id -> reason, "good" if kept."""
    source = write(folder / "in.jsonl", rows)
    check(CheckOptions(inputs=(str(source),), out=folder / "out", **options))
    given = {row["id"]: "good" for row in read(folder / "out")}
    return given | {row["id"]: row["reason"] for row in read(folder / "out" / "dropped")}


def test_labelled_pairs_are_sorted_as_their_labels_say(tmp_path: Path) -> None:
    with_code = can_run_code()
    rows = labelled(with_code=with_code)
    assert sum(row["expect"] != "good" for row in rows) >= 100
    assert len(rows) >= 150
    given = given_reasons(rows, tmp_path, with_code=with_code)
    found = scores(rows, given)
    for name, score in found.items():
        if name != "good":
            precision, recall = FLOORS.get(name, (1.0, 1.0))
            assert score.precision >= precision, (name, score)
            assert score.recall >= recall, (name, score)
    assert found["good"].recall == 1.0  # no good pair is lost
    (tmp_path / "real").mkdir()
    real = real_pairs(tmp_path / "real")
    assert len(real) >= 180
    given_real = given_reasons(real, tmp_path / "real", with_code=False)
    found_real = scores(real, given_real)
    # Of people's problems none is called wrong; a changed number that no equation holds cannot be seen.
    assert found_real["arithmetic"].precision == 1.0
    assert found_real["arithmetic"].recall >= 0.8
    assert found_real["good"].recall >= 0.97
    if with_code:
        page = table(found, differences(rows, given), found_real, differences(real, given_real))
        assert PAGE.read_text(encoding="utf-8") == page, "run python -m tests.synthesis.labelled"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    rows = labelled(with_code=False)
    for number in range(3):
        bad = ["", "{broken", {"question": "no other key"}][: number + 1]
        write(folder / f"part_{number}.jsonl", [*rows[number::3], *bad])
    return folder


def options(sources: Path, out: Path, workers: int = 1) -> CheckOptions:
    return CheckOptions(
        inputs=(str(sources / "*.jsonl"),), out=out, benchmarks=(str(BENCHMARK),), max_bad_share=0.1, workers=workers
    )


@pytest.fixture(scope="module")
def report(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SelectionReport, Path]:
    out = tmp_path_factory.mktemp("straight") / "out"
    return check(options(sources, out)), out


@pytest.fixture(scope="module")
def straight(report: tuple[SelectionReport, Path]) -> dict[str, bytes]:
    return contents(report[1])


def test_every_line_is_in_exactly_one_place(sources: Path, report: tuple[SelectionReport, Path]) -> None:
    counted, out = report
    rows = [line for path in sources.iterdir() for line in path.read_text("utf-8").splitlines() if line]
    assert counted.num_read == len(rows) == counted.num_kept + counted.num_dropped + counted.num_quarantined
    assert counted.num_quarantined == 3
    ids = Counter(row["id"] for place in (out, out / "dropped") for row in read(place))
    assert ids == Counter(row["id"] for row in labelled(with_code=False))
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 3
    content = json.loads((out / "report.json").read_text())
    assert content["sources"]["mathematics"]["dropped"]["arithmetic"] >= 5
    example = content["examples_by_discipline"]["physics"]["arithmetic"][0]
    assert example["value"] == "240 / 3 = 70"
    assert "240 / 3 = 70" in (out / "report.md").read_text()


def test_a_folder_of_benchmarks_is_read_with_its_csv_files(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held/held.csv").write_text(f"question\n{pair()['question']}\n", encoding="utf-8")
    assert checked(tmp_path, pair(), benchmarks=(str(tmp_path / "held"),)) == {"1": "contaminated"}


def test_two_workers_write_the_same_bytes(sources: Path, straight: dict[str, bytes], tmp_path: Path) -> None:
    check(options(sources, tmp_path / "out", workers=2))
    assert contents(tmp_path / "out") == straight


@pytest.mark.parametrize("moment", ["examine/0000001.json", pytest.param("bands/0000003.json", marks=pytest.mark.slow)])
def test_a_killed_call_goes_on_to_the_same_bytes(
    sources: Path, straight: dict[str, bytes], tmp_path: Path, moment: str
) -> None:
    out = tmp_path / "out"
    command = ("synth", "check", "--input", sources / "*.jsonl", "--out", out)
    killed.behind_file(moment, *command, "--benchmarks", BENCHMARK, "--max-bad-share", "0.1")
    assert not (out / "report.json").exists()
    check(options(sources, out))
    assert contents(out) == straight


def test_a_killed_call_inside_its_input_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [pair()])
    command = ("synth", "check", "--input", str(tmp_path), "--out", str(tmp_path / "out"))
    killed.behind_file("write/0000000.json", *command)
    assert main(command) == 0
    assert [row["id"] for row in read(tmp_path / "out")] == ["1"]


def test_code_is_refused_where_there_is_no_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(pair(discipline="code")) + "\n")
    monkeypatch.setenv("PATH", str(tmp_path))  # no bwrap there
    arguments = ["synth", "check", "--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--run-code"]) == 2
    assert sandbox.INSTALL in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_pair_that_goes_for_its_arithmetic_does_not_vote(tmp_path: Path) -> None:
    rows = [
        pair(id="wrong 1", answer="There are 7 × 12 = 74 apples in all.\nThe answer is 74."),
        pair(id="wrong 2", answer="Seven times twelve: 7 × 12 = 74 apples.\nThe answer is 74."),
        pair(id="right"),
    ]
    assert checked(tmp_path, *rows) == {"wrong 1": "arithmetic", "wrong 2": "arithmetic", "right": "good"}


def test_the_agreement_that_is_asked_for_decides(tmp_path: Path) -> None:
    answers = ["84", "84.0", r"\boxed{84}", "74", "no idea"]
    rows = [pair(id=str(n), answer=f"Think about it once or twice.\nThe answer is {a}.") for n, a in enumerate(answers)]
    low = checked(tmp_path, *rows, min_agreement=0.5)
    assert low == {"0": "good", "1": "same_question", "2": "same_question", "3": "disagreement", "4": "disagreement"}
    (tmp_path / "high").mkdir()
    assert set(checked(tmp_path / "high", *rows, min_agreement=0.6).values()) == {"disagreement"}


def test_a_result_of_thousands_of_digits_is_a_text(tmp_path: Path) -> None:
    """As a model that repeats itself states; Python refuses to read 4,300 digits as a number."""
    found = [r"It is \boxed{" + digit * 5000 + "} now." for digit in ("1", "1", "2")]
    rows = [pair(id=str(n), answer=f"Think about it once or twice.\n{text}") for n, text in enumerate(found)]
    assert checked(tmp_path, *rows) == {"0": "good", "1": "same_question", "2": "disagreement"}


def test_a_dropped_pair_does_not_stand_for_its_near_duplicates(tmp_path: Path) -> None:
    long = " ".join(f"word{number}" for number in range(60))
    first = pair(id="a", question=f"Explain {long}", answer=f"It is so because of {long} and 2 + 2 = 5.")
    assert checked(tmp_path, first, first | {"id": "b", "answer": first["answer"].replace("= 5", "= 4")}) == {
        "a": "arithmetic",
        "b": "good",
    }


def test_a_question_that_thousands_ask_is_settled_without_comparing_each_with_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [normalised(text) for text in ("7", "12", "12.0", "x")] * 500
    compared = []
    monkeypatch.setattr(final_answers, "agree", lambda one, other: compared.append(1) or agree(one, other))
    best, agrees = majority(answers)
    assert (best, agrees) == (1, [False, True, True, False] * 500)
    assert len(compared) <= 16 + 2000


def test_a_task_reads_its_own_findings_alone(tmp_path: Path) -> None:
    findings = np.zeros(1_000_000, dtype=FINDING)
    findings["pair"] = np.arange(1_000_000) // 2 << 32  # two of each task
    findings["votes"] = np.arange(1_000_000)
    work = _Work(tmp_path, (), load_pair_rules(PAIR_RULES), (), CheckOptions(inputs=(), out=tmp_path), None)
    findings.tofile(work.findings)
    del findings
    tracemalloc.start()
    found = _findings(work, 1234)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found["votes"].tolist() == [2468, 2469]
    assert peak < 1_000_000  # of 24 MB
    work.findings.write_bytes(b"")
    assert len(_findings(work, 0)) == 0


def test_every_files_answers_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{task}.questions" for task in range(100)]
    for task, path in enumerate(paths):  # five questions, each in every file
        write_questions(
            [(n, content_hash(str(n))) for n in range(5)], {n: str(n + (task == 7)) for n in range(5)}, path
        )
    reads: Counter[str] = Counter()
    read_bytes = Path.read_bytes

    def counted(path: Path) -> bytes:
        reads[path.suffix] += 1
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    found = settle(paths, 0, 1, min_agreement=0.5)
    assert reads[".answers"] == 100
    assert len(found) == 5 * 99 and set(found["votes"]) == {99} and set(found["samples"]) == {100}
    assert sorted(found["pair"][found["disagrees"] == 1].tolist()) == [(7 << 32) + n for n in range(5)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("costs $5", None), ("from $5$ to $x", "$ is not closed"), (r"\left( a \right]", None), ("{1, 2}", None),
        (r"a set \{ 1, 2 \}", None), (r"\begin{a}\end{b}", r"\end{b} closes nothing"), ("`$`", None),
        ("$a$ and\n\n$b", "$ is not closed"), (r"\\[2pt] \[x\]", None), (r"100\$ and $x$", None),
        ("$$x$", "$$ is not closed"), ("a } b {", "a brace } closes nothing"),
    ],
)  # fmt: skip
def test_what_is_not_closed_is_said(text: str, fault: str | None) -> None:
    assert latex_fault(text) == fault


@pytest.mark.parametrize(
    "text",
    [
        "[Problem]\nQ?\n[Solution]\nA.", "## Problem\nQ?\n\n## Solution\n\nA.", "**Problem:** Q?\n\n**Solution:** A.",
        "Problem: Q?\nSolution: A.", "Sure!\n\nQuestion: Q?\nAnswer: A.\n---", "【题目】Q?\n【解答】A.",
        "**Question**\nQ?\n**Answer**\nA.", "### 问题：\nQ?\n### 解析：\nA.", "<Problem>\nQ?\n<Solution>\nA.",
    ],
)  # fmt: skip
def test_sections_are_found_however_they_are_marked(text: str) -> None:
    rules = load_pair_rules(PAIR_RULES)
    assert split_sections(text, rules.question_marks, rules.answer_marks) == Sections("Q?", "A.")


def test_a_completion_becomes_a_pair_and_keeps_its_words() -> None:
    fields = pair(text="[Problem]\nWhat is one and one?\n[Solution]\nThe answer is 2.")
    fields = {key: value for key, value in fields.items() if key not in ("question", "answer")}
    rules = load_pair_rules(PAIR_RULES)
    found = prepare(Document("1", 1, fields["text"], fields, 0), rules)
    assert isinstance(found, Document)
    added = {"question": "What is one and one?", "answer": "The answer is 2.", "final_answer": "2"}
    assert found.fields == fields | added
    assert isinstance(prepare(Document("1", 1, "x", fields | {"discipline": "alchemy"}, 0), rules), BadRecord)


def test_rules_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    text = PAIR_RULES.read_text(encoding="utf-8")
    (tmp_path / "rules.yaml").write_text(text.replace("'\\bas an?", "'(\\bas an?"), encoding="utf-8")
    with pytest.raises(ConfigError, match="no regular expression"):
        load_pair_rules(tmp_path / "rules.yaml")
