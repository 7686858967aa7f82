"""The judge of make quickstart-synth: exact answers. What it calls wrong is wrong, and `format` obeys it."""

import json
from pathlib import Path

import pytest

from examples.quickstart_synth.pages import PROBLEMS, problems, write_element_pages, write_problem_seeds
from examples.quickstart_synth.truth import JUDGE, fill_sheet, part_pairs, verdict
from tests.tools import corpus
from tools.cli import main
from tools.synthesis.corrupt import corrupt_file
from tools.synthesis.options import CorruptOptions
from tools.synthesis.prompts import read_prompts

PROMPTS = Path(__file__).parents[2] / "examples" / "quickstart_synth"


def test_exact_solutions_are_right_and_those_with_changed_numbers_wrong(tmp_path: Path) -> None:
    source, wrong = tmp_path / "right.jsonl", tmp_path / "wrong.jsonl"
    pairs = [pair for seed in range(3) for pair in problems(seed)]
    source.write_text("".join(json.dumps(pair.to_json()) + "\n" for pair in pairs))
    assert {verdict(pair.answer, pair.final_answer or "") for pair in pairs} == {"right"}
    corrupt_file(
        CorruptOptions(inputs=(str(source),), out=wrong, share=1.0, seed=0, keys=("answer",), kinds=("number",))
    )  # fmt: skip
    changed = [json.loads(line) for line in wrong.read_text().splitlines()]
    assert {verdict(row["answer"], row["final_answer"]) for row in changed} == {"wrong"}


@pytest.mark.parametrize(
    ("answer", "exact", "found"),
    [
        ("The sum is 4.\nThe answer is $4.0$.", "4", "right"),
        (r"So the answer is $-\frac{38}{198}$.", "-19/99", "right"),
        ("The answer is 5.", "4", "wrong"),
        ("It is 4, I think", "4", "wrong"),  # states no result
    ],
)
def test_the_stated_result_decides(answer: str, exact: str, found: str) -> None:
    assert verdict(answer, exact) == found


def test_the_wrong_rate_is_that_of_the_verdicts_and_format_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = write_problem_seeds(tmp_path / "problems.jsonl")
    seeds = [json.loads(line) for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    assert [seed["seed_hash"] for seed in seeds] == list(answers) and len(answers) == sum(PROBLEMS.values())
    pairs = [
        {"id": f"p{number}", "seed_hash": seed["seed_hash"], "question": seed["text"], "generator": "m",
         "answer": f"The answer is {answers[seed['seed_hash']] if number % 2 else 'unknown'}.",
         "discipline": "mathematics", "language": "en"}
        for number, seed in enumerate(seeds)
    ]  # fmt: skip
    pairs.append(pairs[0] | {"id": "of a page", "seed_hash": "another"})
    (tmp_path / "checked.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    known, of_pages = tmp_path / "known.jsonl", tmp_path / "of_pages.jsonl"
    counts = part_pairs(str(tmp_path / "checked.jsonl"), answers, known=known, of_pages=of_pages)
    assert counts == {"solved problems": len(seeds), "pairs of pages": 1}
    audit = ["synth", "audit", "--input", str(known), "--out", str(tmp_path / "audit"), "--sample", "1000"]
    assert main(audit) == 0
    fill_sheet(tmp_path / "audit/sheet.csv", tmp_path / "filled.csv", str(known), answers)
    assert main([*audit, "--filled", str(tmp_path / "filled.csv"), "--judged-by", JUDGE]) == 0
    report = json.loads((tmp_path / "audit/audit.json").read_text())
    assert (report["wrong_rate"]["value"], report["judge"]) == (0.5, JUDGE)
    hf = corpus.hf_folder(tmp_path / "hf")
    given = ["synth", "format", "--input", str(known), "--audit", str(tmp_path / "audit/audit.json")]
    capsys.readouterr()
    assert main([*given, "--tokenizer", str(hf), "--out", str(tmp_path / "text")]) == 2
    assert "--accept-wrong-rate" in capsys.readouterr().err


def test_pages_and_prompts_are_what_seeds_and_generate_read(tmp_path: Path) -> None:
    pages = [json.loads(line) for line in write_element_pages(tmp_path / "pages.jsonl").read_text().splitlines()]
    assert len(pages) == 118
    assert pages[0]["text"].startswith("Hydrogen is an element. Colourless, odourless gaseous")
    of_pages, of_problems = (read_prompts(PROMPTS / f"prompts_{name}")["en"] for name in ("pages", "problems"))
    assert of_problems.split(" 4 ", "What is 2 + 2?") == ("What is 2 + 2?", "4")
    messages = of_pages.ask("chemistry", pages[0]["text"])
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert messages[-1]["content"] == pages[0]["text"]
    for message in messages[2::2]:
        assert of_pages.split(message["content"]) is not None
