"""Small stand-ins for every set of the paper suite, in that set's own file names and fields. The questions are made up.

What a real file looks like is known from the sets' own repositories and from the task files of lm-evaluation-harness.
"""

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

Rows = Sequence[dict[str, Any]]
MMLU_PRO = (
    "biology", "business", "chemistry", "computer science", "economics", "engineering", "health", "history", "law",
    "math", "other", "philosophy", "physics", "psychology",
)  # fmt: skip
INSTRUCTIONS: Rows = [
    {"prompt": "Two sentences, no commas.", "instruction_id_list": ["punctuation:no_comma",
     "length_constraints:number_sentences"], "kwargs": [{}, {"relation": "at least", "num_sentences": 2}]},
    {"prompt": "At most three words in French.", "instruction_id_list": ["length_constraints:number_words",
     "language:response_language"], "kwargs": [{"relation": "less than", "num_words": 9}, {"language": "fr"}]},
]  # fmt: skip


def write_paper(root: Path, *, num_items: int = 3) -> Path:
    """All of them below `root`, as `--data` expects."""
    write_mmlu(root, num_items)
    write_chinese(root, num_items)
    write_mathematics(root, num_items)
    write_agieval(root, num_items)
    write_code(root)
    write_science(root, num_items)
    return root


def write_mmlu(root: Path, num_items: int) -> None:
    for subject in harness_configs("mmlu/default", "cais/mmlu"):
        folder = root / "cais/mmlu" / subject
        row = {"question": f"What belongs to {subject}?", "subject": subject, "choices": ["a", "b", "c", "d"]}
        for split, count in (("test", num_items), ("dev", 5)):
            parquet(folder / f"{split}-00000-of-00001.parquet", [{**row, "answer": i % 4} for i in range(count)])


def write_chinese(root: Path, num_items: int) -> None:
    for subject in harness_configs("ceval", "ceval/ceval-exam"):
        row = {"question": f"{subject}的问题", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "explanation": ""}
        for split, count in (("val", num_items), ("dev", 5)):
            rows = [{"id": i, **row, "answer": "ABCD"[i % 4]} for i in range(count)]
            table(root / "ceval/ceval-exam" / split / f"{subject}_{split}.csv", rows)
    for subject in harness_configs("cmmlu", "haonan-li/cmmlu"):
        row = {"Question": f"{subject}的问题", "A": "甲", "B": "乙", "C": "丙", "D": "丁"}
        for split, count in (("test", num_items), ("dev", 5)):
            rows = [{"": i, **row, "Answer": "ABCD"[i % 4]} for i in range(count)]
            table(root / "haonan-li/cmmlu" / split / f"{subject}.csv", rows)


def write_mathematics(root: Path, num_items: int) -> None:
    for subject in ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory",
                    "prealgebra", "precalculus"):  # fmt: skip
        for split, count in (("test", num_items), ("train", 6)):
            rows = [
                {"problem": f"What is ${i}+1$?", "level": "Level 1", "type": subject,
                 "solution": f"Adding gives $\\boxed{{{i + 1}}}$."}
                for i in range(count)
            ]  # fmt: skip
            parquet(root / "EleutherAI/hendrycks_math" / subject / f"{split}-00000-of-00001.parquet", rows)
    questions = [
        {"question": f"Ann has {i} pens and buys 2. How many?", "answer": f"{i}+2={i + 2}\n#### {i + 2}"}
        for i in range(num_items)
    ]
    for split in ("test", "train"):
        parquet(root / "openai/gsm8k/main" / f"{split}-00000-of-00001.parquet", questions)
    asdiv = [
        {"body": f"Ann has {i} pens.", "question": "How many pens has she after 2 more?", "solution-type": "Addition",
         "answer": f"{i + 2} (pens)", "formula": f"{i}+2={i + 2}"}
        for i in range(num_items)
    ]  # fmt: skip
    parquet(root / "EleutherAI/asdiv/asdiv/validation-00000-of-00001.parquet", asdiv)
    # Two of the four files of MAWPS' first release.
    for name in ("AddSub", "SingleOp"):
        rows = [
            {"iIndex": i, "sQuestion": f"Ann has {i} pens and buys 2 . How many pens ?", "lEquations": [f"X={i}.0+2.0"],
             "lSolutions": [i + 2.0]}
            for i in range(num_items)
        ]  # fmt: skip
        document(root / "mwpt5/MAWPS" / f"{name}.json", rows)


def write_agieval(root: Path, num_items: int) -> None:
    english = "Q: {}? Answer Choices: (A)1 (B)2\nA: Among A through B, the answer is"
    chinese = "问题：{}？ 选项：(A)1 (B)2\n答案：从A到B, 我们应选择"
    for name in ("sat-math", "aqua-rat", "gaokao-mathqa", "gaokao-chemistry", "gaokao-biology"):
        query = chinese if name.startswith("gaokao") else english
        rows = [{"query": query.format(i), "choices": ["(A)1", "(B)2"], "gold": [i % 2]} for i in range(num_items)]
        parquet(root / f"hails/agieval-{name}" / "data" / "test-00000-of-00001.parquet", rows)


def write_retention(root: Path, num_items: int) -> Path:
    """BBH, MMLU-Pro and IFEval; the code sets are the paper's, and key retrieval makes its own."""
    for subject in harness_configs("bbh/cot_fewshot", "SaylorTwift/bbh"):
        rows = [{"input": f"not {i} is", "target": "False"} for i in range(num_items)]
        parquet(root / "SaylorTwift/bbh" / subject / "test-00000-of-00001.parquet", rows)

    def question(i: int, category: str) -> dict[str, Any]:
        return {
            "question_id": i, "question": f"What is right in {category}?", "options": [f"o{n}" for n in range(10)],
            "answer": "ABCDEFGHIJ"[i % 10], "answer_index": i % 10, "category": category, "src": f"made up-{category}",
            "cot_content": "A: Let's think step by step. It is plain. The answer is (A).",
        }  # fmt: skip

    for split, count in (("test", num_items), ("validation", 5)):
        rows = [question(i, category) for category in MMLU_PRO for i in range(count)]
        parquet(root / "TIGER-Lab/MMLU-Pro/data" / f"{split}-00000-of-00001.parquet", rows)
    lines = [{"key": 1000 + i, **row} for i, row in enumerate(INSTRUCTIONS)]
    file = root / "google/IFEval/ifeval_input_data.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_code(root)
    return root


def write_code(root: Path) -> None:
    humaneval = [
        {"task_id": "HumanEval/0", "prompt": 'def add(a, b):\n    """Sum."""\n',
         "canonical_solution": "    return a + b\n",
         "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n", "entry_point": "add"}
    ]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in humaneval)
    file = root / "openai/openai_humaneval/HumanEval.jsonl.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(lines.encode()))

    def problem(number: int) -> dict[str, Any]:
        return {
            "task_id": number, "text": f"Write a function to add {number}.",
            "code": f"def f(x):\r\n  return x + {number}", "test_setup_code": "", "challenge_test_list": [],
            "test_list": [f"assert f({x}) == {x + number}" for x in range(3)],
        }  # fmt: skip

    for split, numbers in (("test", range(11, 13)), ("prompt", range(1, 11))):
        rows = [problem(number) for number in numbers]
        parquet(root / "google-research-datasets/mbpp/full" / f"{split}-00000-of-00001.parquet", rows)


def write_science(root: Path, num_items: int) -> None:
    """SciEval: sorted, as its files are, so that a category begins with what is rare in it; then SciQ and ARC."""
    text = "Which is right in {}?\n\nA. one\nB. two\nC. three\nD. four\n\nAnswer:"

    def question(i: int, category: str) -> dict[str, Any]:
        return {
            "question": text.format(category), "answer": ["ABCD"[i % 4]], "category": category, "topic": None,
            "ability": "Base Knowledge", "type": "multiple-choice", "task_name": "SocraticQA",
            "prompt": "Please select the right answer.", "cot_prompt": "Select it.", "id": f"{category}{i}",
        }  # fmt: skip

    def other(i: int, category: str) -> dict[str, Any]:
        """What few items of a category are: reagents to be named, or a judgement."""
        changes: dict[str, Any] = {
            "type": "filling", "task_name": "reagent selection", "ability": "Knowledge Application",
            "prompt": "You are an expert.", "question": "Reactant: CCO\nsolvent:", "answer": ["c1ccccc1"],
        }  # fmt: skip
        if category == "biology":
            changes = {
                "type": "judge", "task_name": "PubMedQA", "ability": "Research Ability", "prompt": "Yes or no?",
                "question": "Does it help?\n\nAnswer:", "answer": [["yes", "no"][i % 2]],
            }  # fmt: skip
        return {**question(i, category), **changes, "id": f"other {category}{i}"}

    for split, count in (("valid", num_items), ("dev", 5)):
        others = [
            other(i, category) for category in ("chemistry", "biology") for i in range(5 if split == "dev" else 1)
        ]
        rows = others + [
            question(i, category) for category in ("physics", "chemistry", "biology") for i in range(count)
        ]
        document(root / "OpenDFM/SciEval" / f"scieval-{split}.json", rows)
    sciq = [
        {"question": f"What is {i}?", "distractor1": "a", "distractor2": "b", "distractor3": "c",
         "correct_answer": "d", "support": "It is d."}
        for i in range(6)
    ]  # fmt: skip
    for split in ("test", "train"):
        parquet(root / "allenai/sciq/data" / f"{split}-00000-of-00001.parquet", sciq)
    for name in ("ARC-Easy", "ARC-Challenge"):
        rows = [
            {"id": f"{i}", "question": "Which?", "choices": {"text": ["one", "two", "three"], "label": labels},
             "answerKey": labels[i % 3]}
            for i, labels in enumerate([["A", "B", "C"], ["1", "2", "3"], ["A", "B", "C"]][:num_items])
        ]  # fmt: skip
        parquet(root / "allenai/ai2_arc" / name / "test-00000-of-00001.parquet", rows)


def harness_configs(folder: str, data_set: str) -> list[str]:
    """The subjects of a set, as the harness's own task files name them."""
    from lm_eval.tasks import TaskManager

    from tools.evaluation.harness import harness_folder

    index = TaskManager(include_path=str(harness_folder(folder)), include_defaults=False).task_index
    configs = [entry.cfg for entry in index.values() if entry.cfg]
    return sorted({cfg["dataset_name"] for cfg in configs if cfg.get("dataset_path") == data_set})


def parquet(file: Path, rows: Rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)


def document(file: Path, rows: Rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(list(rows), indent=1, ensure_ascii=False), encoding="utf-8")


def table(file: Path, rows: Rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
