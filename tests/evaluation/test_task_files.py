"""Our own task files and scorers against items scored by hand."""

import re
from pathlib import Path
from typing import Any

import pytest

from data_mixers.errors import DataError
from tests.evaluation import data_sets
from tools.evaluation import choices, code, exemplars, harness, long_context, mathematics, science, word_problems
from tools.evaluation.data_files import catalogue, find
from tools.evaluation.options import EvalOptions
from tools.evaluation.suite import read_suite, suite_path


def planned_task(suite: str, name: str) -> harness.PlannedTask:
    """The one task of a benchmark."""
    benchmark = next(entry for entry in read_suite(suite_path(suite)).benchmarks if entry.name == name)
    (planned,) = harness.plan_tasks(benchmark)
    return planned


def loaded(data: Path, name: str) -> Any:
    """A task of the paper suite with the data of a folder."""
    planned = planned_task("paper", name)
    assert planned.wanted is not None
    return harness.load_task(planned, find(planned.wanted, EvalOptions(data=data, offline=True), catalogue()))


@pytest.mark.parametrize(
    ("gold", "said", "score"),
    [
        ("9 (apples)", " 7 + 2 = 9. The answer is 9.", 1.0),
        ("9 (apples)", " 7 + 2 = 9. The answer is 8.", 0.0),
        ("9 apples", " She has 3 and 6, so nine in all: 9", 1.0),
        ("9 apples", " 9 and then 3", 0.0),  # without "answer is" the last number counts
        ("1,234", " The answer is 1234 dollars.", 1.0),
        ("1234", " The answer is $1,234.00.", 1.0),
        ("2.5", " The answer is 5/2.", 1.0),
        ("0.333", " The answer is 1/3.", 1.0),
        ("0.33", " The answer is 1/3.", 1.0),
        ("0.16666666666666666", " The answer is 0.17.", 1.0),
        ("0.16666666666666666", " The answer is 1/6.", 1.0),
        ("0.33", " The answer is 0.34.", 0.0),
        ("12.50", " The answer is $12.51.", 0.0),
        ("0.33", " The answer is 0.339.", 1.0),  # cut off
        ("-0.66", " The answer is -2/3.", 1.0),
        ("0.02", " The answer is 0.0111.", 0.0),  # neither rounded nor cut off
        ("12.50", " The answer is $12.491.", 0.0),
        ("5", " The answer is 14.98/3.", 0.0),  # a quotient is not rounded
        ("0.30000000000000004", " The answer is 0.3.", 1.0),  # a float's own error
        ("15.899999999999999", " The answer is $15.9.", 1.0),
        ("33.333333333333336", " The answer is 100/3.", 1.0),
        ("2.5", " The answer is 2.502.", 0.0),
        ("2000", " The answer is 2001.", 0.0),  # a thousandth is near a quotient, and another number of things
        ("64,000", " The answer is 64,050.", 0.0),
        ("-4", " The answer is -4.", 1.0),
        ("-4", " The answer is 4.", 0.0),
        ("18", " The answer is 3. No: the answer is 18.", 1.0),
        ("18", " I do not know.", 0.0),
        ("18", "", 0.0),
        ("7", " The answer is 1/0.", 0.0),
        ("3:30 p.m.", " The answer is 3:30.", 1.0),
        ("3:30 p.m.", " The answer is 3:45.", 0.0),
        ("11:55 p.m. on 24 December 2014.", " The answer is 11:55 p.m.", 1.0),
        ("2:13", " The answer is 2 to 13.", 1.0),
        ("2:13", " The answer is 2/13.", 1.0),
        ("2:13", " The ratio is 2:13.", 1.0),
        ("2:13", " The answer is 2:3.", 0.0),
        ("2:13", " The answer is 13:2.", 0.0),
        ("8 ft; 128 sq. ft", " The answer is 8 feet and 128 square feet.", 1.0),
        ("8 ft; 128 sq. ft", " The answer is 128 square feet and 8 feet.", 1.0),
        ("8 (ft); 128 (sq. ft)", " The answer is 8 feet and 64 square feet.", 0.0),
        ("8 ft; 128 sq. ft", " The answer is 8.", 0.0),
        ("Mrs. Hilt", " The answer is Mrs. Hilt.", 1.0),
        ("Yes", " The answer is yes.", 1.0),
        ("No", " The answer is nothing.", 0.0),
    ],
)
def test_word_problems_are_scored_by_value(gold: str, said: str, score: float) -> None:
    assert word_problems.score({"answer": gold}, [said]) == {"exact_match": score}


def test_three_formats_of_word_problems_become_one(tmp_path: Path) -> None:
    from datasets import Dataset

    for convert, row, question, answer in (
        (word_problems.mawps, {"Question": "Ann has N_00 pens and N_01 cats .", "Numbers": "27.0 1.5", "Answer": 28.5},
         "Ann has 27 pens and 1.5 cats .", "28.5"),
        (word_problems.mawps, {"sQuestion": "How many ?", "lSolutions": [43.0]}, "How many ?", "43.0"),
        (word_problems.asdiv, {"passage": "Two pens.", "question": "How many?", "answer": "2 pens"},
         "Two pens. How many?", "2 pens"),
        (word_problems.gsm8k, {"prompt": "How many?", "expected": "18"}, "How many?", "18"),
    ):  # fmt: skip
        assert convert(Dataset.from_list([row])).to_list() == [{"question": question, "answer": answer}]
    data_sets.write_mathematics(tmp_path, 2)
    docs = loaded(tmp_path, "MAWPS").eval_docs
    assert len(docs) == 4  # two files of two


def test_the_eight_exemplars_state_their_answers() -> None:
    given = word_problems.exemplars()
    # Of the chain-of-thought paper's eight problems: 6, 5, 39, 8, 9, 29, 33, 8.
    assert [int(re.findall(r"answer is (\d+)", one["answer"])[0]) for one in given] == [6, 5, 39, 8, 9, 29, 33, 8]


@pytest.mark.parametrize(
    ("solution", "said", "score"),
    [
        (r"so $\boxed{\frac{1}{2}}$", r"Thus $\boxed{\frac12}$.", 1.0),
        (r"so $\boxed{\frac{1}{2}}$", r"The final answer is $\frac{1}{2}$. I hope it is correct.", 1.0),
        (r"so $\boxed{\frac{1}{2}}$", r"The answer is 0.5.", 1.0),
        (r"so $\boxed{16}$", r"first $\boxed{3}$, then $\boxed{16}$", 1.0),
        (r"so $\boxed{16}$", r"The answer is 16.", 1.0),
        (r"so $\boxed{16}$", r"It is 16.", 0.0),
        (r"so $\boxed{16}$", r"The answer is 3. No: the answer is 16.", 1.0),
        (r"so $\boxed{16}$", "The answer is 16.\nThe answer is $3$. No, wrong.", 0.0),
        (r"so $\boxed{16}$", "The final answer is:\n16.\nThis answer is", 1.0),
        (r"so $\boxed{(3,\frac{\pi}{2})}$", r"\boxed{\left( 3, \frac{\pi}{2} \right)}", 1.0),
        (r"so $\boxed{16}$", r"$\boxed{16", 0.0),
        (r"so $\boxed{16}$", r"\boxed 16$ is it", 1.0),
    ],
)
def test_math_is_scored_by_the_last_box_as_its_authors_normalise(solution: str, said: str, score: float) -> None:
    assert mathematics.score({"solution": solution}, [said]) == {"exact_match": score}


@pytest.mark.parametrize(
    ("kind", "gold", "said", "score"),
    [
        ("multiple-choice", "B", " B. three", 1.0),
        ("multiple-choice", "B", " (b)", 1.0),
        ("multiple-choice", "B", " A, not B", 0.0),
        ("multiple-choice", "B", "", 0.0),
        ("judge", "yes", " Yes, it is", 1.0),
        ("judge", "no", " yes", 0.0),
    ],
)
def test_scieval_is_scored_as_its_authors_do(kind: str, gold: str, said: str, score: float) -> None:
    assert science.score({"type": kind, "answer": [gold]}, [said]) == {"exact_match": score}


def test_scieval_is_divided_by_category_and_its_exemplars_are_of_the_questions_own_kind(tmp_path: Path) -> None:
    data_sets.write_science(tmp_path, 2)
    task = loaded(tmp_path, "SciEval CHE")
    assert [doc["id"] for doc in task.eval_docs] == ["chemistry0", "chemistry1"]  # without the gap of its first item
    prompt = task.fewshot_context(task.eval_docs[0], num_fewshot=5)
    assert "physics" not in prompt and "biology" not in prompt and "Reactant" not in prompt
    assert prompt.endswith("Answer: The answer is")
    assert prompt.count("The answer is A") == 2  # exemplars 1 and 5 of the letters A, B, C, D, A
    task = loaded(tmp_path, "SciEval BIO")
    judged, chosen = task.eval_docs[0], task.eval_docs[1]
    for doc, answers in ((judged, ["yes", "no", "yes", "no", "yes"]), (chosen, list("ABCDA")), (judged, ["yes"] * 0)):
        prompt = task.fewshot_context(doc, num_fewshot=len(answers))
        assert re.findall(r"The answer is (\w+)\n\n", prompt) == answers  # of this item, whatever was asked before
    with pytest.raises(DataError, match="holds 5 exemplars of SocraticQA, Base Knowledge, biology, 6 are asked for"):
        task.fewshot_context(chosen, num_fewshot=6)


def test_the_named_exemplars_are_right_answers_in_words_of_agieval(tmp_path: Path) -> None:
    data_sets.write_agieval(tmp_path, 1)
    prompt = loaded(tmp_path, "SAT-Math")
    text = prompt.fewshot_context(prompt.eval_docs[0], num_fewshot=5)
    # 3x + 7 = 22 gives x = 5 and 6x - 1 = 29; the second is 80 - 12; slope 9 / 3; sum of roots 9; 5, 12, 13.
    answers = re.findall(r"the answer is (\([A-D]\).*)\n\n", text)
    assert answers == ["(B)29", "(C)$\\$68$", "(A)$3$", "(D)$9$", "(B)$13$"]
    for of in (exemplars.sat_math, exemplars.aqua_rat, exemplars.gaokao_mathqa, exemplars.gaokao_chemistry,
               exemplars.gaokao_biology):  # fmt: skip
        documents = of()
        assert len(documents) == 5
        assert len({document["gold"] for document in documents}) >= 4  # no letter to copy
        assert all(len(document["choices"]) in (4, 5) for document in documents)
    assert exemplars.aqua_rat()[0]["query"].endswith("Among A through E, the answer is")
    assert exemplars.gaokao_biology()[0]["query"].startswith("问题：")


def test_arc_offers_lettered_choices_also_where_the_set_numbers_them(tmp_path: Path) -> None:
    data_sets.write_science(tmp_path, 3)
    task = loaded(tmp_path, "ARC-E")
    lettered, numbered = task.eval_docs[0], task.eval_docs[1]
    assert task.doc_to_text(lettered) == "Question: Which?\nA. one\nB. two\nC. three\nAnswer:"
    assert task.doc_to_text(numbered) == "Question: Which?\n1. one\n2. two\n3. three\nAnswer:"
    assert task.doc_to_choice(numbered) == ["1", "2", "3"]
    assert (task.doc_to_target(lettered), task.doc_to_target(numbered)) == (0, 1)


def test_questions_of_packages_become_choices() -> None:
    from datasets import Dataset

    row = {"question": "There is fog around: ", "options": "A. a marsh\nB. a desert", "answer": "B. a desert"}
    assert choices.openbookqa(Dataset.from_list([row])).to_list() == [
        {"question": "There is fog around:", "choices": ["a marsh", "a desert"], "gold": 1}
    ]
    chinese = [
        {"question": "防火墙的作用是什么？A. 防止，B. 提高，C. 提供", "correct_answer": "C"},
        {"question": "多选题：A、甲，B、乙，C、丙", "correct_answer": "A、B"},
        {"question": "有几个国家？", "correct_answer": "B"},
        {"question": "B. 乙，C. 丙", "correct_answer": "B"},
    ]
    made = choices.zh_questions(Dataset.from_list(chinese)).to_list()
    assert made == [{"question": chinese[0]["question"], "choices": ["A", "B", "C"], "gold": 2}]


@pytest.mark.bubblewrap
def test_what_a_model_writes_runs_in_the_sandbox_and_counts_if_the_tests_pass(tmp_path: Path) -> None:
    data_sets.write_code(tmp_path)
    doc = loaded(tmp_path, "HumanEval").eval_docs[0]
    assert code.humaneval(doc, [doc["canonical_solution"]]) == {"pass_at_1": 1.0}
    assert code.humaneval(doc, ["    return a - b\n"]) == {"pass_at_1": 0.0}
    assert code.humaneval(doc, ["    return a + b\nimport sys; sys.exit(0)\n"]) == {"pass_at_1": 0.0}
    marker = tmp_path / "escaped"
    code.humaneval(doc, [f"    open({str(marker)!r}, 'w').close()\n    return a + b\n"])
    assert not marker.exists()
    task = loaded(tmp_path, "MBPP")
    doc = task.eval_docs[0]
    assert code.mbpp(doc, ["def f(x):\n  return x + 11\n[DONE]\nthis is no Python"]) == {"pass_at_1": 1.0}
    assert code.mbpp(doc, ["def f(x):\n  return x\n"]) == {"pass_at_1": 0.0}
    prompt = task.fewshot_context(doc, num_fewshot=3)
    assert re.findall(r"function to add (\d+)", prompt) == ["2", "3", "4", "11"]
    assert prompt.count("[DONE]") == 3


@pytest.mark.slow
@pytest.mark.bubblewrap
def test_every_canonical_solution_of_humaneval_passes_and_none_passes_another_test(tmp_path: Path) -> None:
    planned = planned_task("probe", "HumanEval")
    assert planned.wanted is not None
    found = find(planned.wanted, EvalOptions(data=tmp_path), catalogue())
    assert found.where == "package"
    docs = list(harness.load_task(planned, found).eval_docs)
    assert len(docs) == 164
    assert [
        doc["task_id"] for doc in docs if code.humaneval(doc, [doc["canonical_solution"]]) != {"pass_at_1": 1.0}
    ] == []
    wrong = [code.humaneval(doc, ["    return None\n"])["pass_at_1"] for doc in docs[:20]]
    assert sum(wrong) == 0


def test_a_key_stands_once_at_its_depth_in_a_text_of_its_length() -> None:
    items = [long_context.item(index) for index in range(long_context.NUM_ITEMS)]
    assert items == [long_context.item(index) for index in range(long_context.NUM_ITEMS)]
    for item in items:
        assert item["prompt"].count(item["key"]) == 1
        assert item["num_words"] <= len(item["prompt"].split()) <= item["num_words"] + 60
        place = item["prompt"].index(item["key"]) / len(item["prompt"])
        assert abs(place - item["depth"]) < 0.05
    assert long_context.score(items[0], [f" {items[0]['key']} and more"]) == {"exact_match": 1.0}
    for digit in "7²①":
        assert long_context.score(items[0], [f" {items[0]['key']}{digit}"]) == {"exact_match": 0.0}
    planned = planned_task("retention", "Key retrieval")
    assert planned.wanted is None
    assert len(harness.load_task(planned, None).eval_docs) == long_context.NUM_ITEMS
