"""Each threshold of `check`, `corrupt`, `audit` and `format` from both of its sides."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rows import read, write
from tests.synthesis.test_audit import fill
from tests.synthesis.test_audit import options as audit_options
from tests.synthesis.test_audit import pairs as sums
from tests.synthesis.test_check import checked, pair
from tests.tools import corpus
from tools.cli import main
from tools.data.documents import Document
from tools.synthesis.audit import audit
from tools.synthesis.format import format_pairs
from tools.synthesis.options import PAIR_RULES, FormatOptions
from tools.synthesis.pair_rules import judge_pair, load_pair_rules, prepare
from tools.synthesis.recompute import Recomputer


def reason(**changes: Any) -> str:
    """The first rule that the pair breaks, or nothing."""
    rules, fields = load_pair_rules(PAIR_RULES), pair(**changes)
    prepared = prepare(Document("1", 1, fields["question"], fields, 0), rules)
    assert isinstance(prepared, Document)
    with Recomputer() as recomputer:
        verdict = judge_pair(prepared, rules, recomputer, None)
    return "" if verdict is None else verdict.reason


def asked(question: str) -> str:
    """The first rule that this question breaks, with an answer that breaks none."""
    if question.isascii():
        return reason(question=question, answer="w1 w2 w3 w4 w5.")
    return reason(language="zh", question=question, answer="结果由定义直接可得，一共是二十三。")


def words(number: int) -> str:
    """Different ones, none of any language."""
    return " ".join(f"w{place}" for place in range(number)) + "."


@pytest.mark.parametrize(
    ("key", "number", "expected"),
    [
        ("question", 3, "question_too_short"), ("question", 4, ""), ("question", 1000, ""),
        ("question", 1001, "question_too_long"), ("answer", 4, "answer_too_short"), ("answer", 5, ""),
        ("answer", 3000, ""), ("answer", 3001, "answer_too_long"),
    ],
)  # fmt: skip
def test_lengths(key: str, number: int, expected: str) -> None:
    assert reason(**{key: words(number)}) == expected


@pytest.mark.parametrize(
    ("language", "question", "expected"),
    [
        ("zh", "苹果树 and then the seven big boxes", ""),
        ("zh", "苹果 and then the seven big heavy boxes", "language"),
        ("en", "What does the sign of Huang say about it 黄", ""),
        ("en", "What does the sign say here now 黄金", "language"),
    ],
)  # fmt: skip
def test_shares_of_han_characters(language: str, question: str, expected: str) -> None:
    answer = "一共有八十四个苹果。" if language == "zh" else "It says w1 w2 w3 w4."
    assert reason(language=language, question=question, answer=answer) == expected


def test_a_program_is_of_no_language() -> None:
    asked, program = (
        "写一个函数，把名单里的每一个名字倒过来再返回。",
        "def reversed_names(names): return names turned around one by one",
    )
    assert reason(language="zh", discipline="code", question=asked, answer=program) == ""
    assert reason(language="zh", question=asked, answer=f"{program}.") == "language"


def test_a_refusal_counts_at_the_beginning_alone() -> None:
    assert reason(answer=f"{'w1 ' * 60}I cannot answer this.") == "refused"
    assert reason(answer=f"{words(70)} I cannot answer this.") == ""


@pytest.mark.parametrize("finish_reason", ["length", "max_tokens", "model_length", "content_filter"])
def test_every_word_of_servers_for_an_answer_that_is_not_whole(finish_reason: str) -> None:
    assert reason(finish_reason=finish_reason) == "truncated"
    assert reason(finish_reason="stop") == ""


@pytest.mark.parametrize(
    "question",
    [
        "计算以下表达式的值：3 + 4 × 5。", "在一个无向图中，有 5 个顶点和 7 条边，求所有顶点度数之和。",
        "请列出三种常见图形并求边长为 2 的正方形的面积。", "以下图形中对称轴最多的是哪一个：正方形、圆、等边三角形？",
        "已知北京在地图中距上海 10 厘米，比例尺为 1:10000000，求实际距离。",
        "圆柱的上表面积是多少平方厘米，若其半径为 2 厘米？",
        "Who is the author of Hamlet, and in which century did he live?",
        "Compress the following text with run-length encoding: aaabbc.",
        "Edges are 1-2 and 2-3. Find the shortest path from 1 to 3 in the given graph.",
        "How many words are in the text 'to be or not to be'?",
    ],
)  # fmt: skip
def test_a_task_that_brings_what_it_speaks_of_stands_alone(question: str) -> None:
    assert asked(question) == ""


@pytest.mark.parametrize(
    "question",
    [
        "如图，求阴影部分的面积是多少平方厘米？", "观察下图，求阴影部分的面积。", "求图中阴影部分的面积是多少。",
        "根据上表，求平均分是多少？",
        "下表是三个班的人数，求平均数是多少。", "见图3，求角的大小是多少度。", "下图形状的面积是多少平方厘米？",
        "What does the author think of whales?", "Why does the author of the passage dislike whales?",
        "What is shown in the following figure about whales?", "Which whales are named in the passage?",
        "Which of the whales described in the text is the largest?", "In the above graph, which node is the root?",
    ],
)  # fmt: skip
def test_a_question_about_what_is_not_there_does_not_stand_alone(question: str) -> None:
    assert asked(question) == "not_self_contained"


@pytest.mark.parametrize(("language", "expected"), [("de", ""), ("en", "arithmetic")])
def test_a_comma_between_digits_may_be_a_decimal_one_elsewhere(language: str, expected: str) -> None:
    assert reason(language=language, answer="w1 w2 w3: 3,5 + 1 = 4,5 und 1.000 + 500 = 1.500.") == expected
    assert reason(language=language, answer="w1 w2 w3 w4: 3 + 1 = 5.") == "arithmetic"


@pytest.mark.parametrize(("repeated", "expected"), [(7, ""), (8, "repetition")])
def test_repeated_lines(repeated: int, expected: str) -> None:
    lines = [f"w{number} w{number + 1}." for number in range(0, 40, 2)]
    assert reason(answer="\n".join([*lines[: 20 - repeated], *[lines[0]] * repeated])) == expected


def test_more_than_a_tenth_of_the_20_grams(tmp_path: Path) -> None:
    all_words = [f"w{number}" for number in range(119)]  # 100 20-grams
    asked = pair(question=" ".join(all_words[:10]), answer=" ".join(all_words[10:]) + ".")
    for length, expected in ((29, "good"), (30, "contaminated")):  # they hold 10 and 11 of them
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / "benchmark.jsonl").write_text(json.dumps({"question": " ".join(all_words[:length])}) + "\n")
        assert checked(folder, asked, benchmarks=(str(folder / "benchmark.jsonl"),)) == {"1": expected}


@pytest.mark.parametrize("before", ["", "Here is one. "])
@pytest.mark.parametrize("key", ["question", "problem"])
def test_a_question_of_a_benchmark_is_found_however_long_its_answer_and_however_short_it_is(
    tmp_path: Path, before: str, key: str
) -> None:
    long = "Nora packs honey into crates and every crate holds eighteen jars, she fills forty crates on Monday and six \
crates break on the road, so how many whole jars of honey can Nora still sell at the market on the next morning?"
    short = "Seven red apples and two green apples are in the basket. How many apples are there?"
    phrase = "Which of the following statements about it are true?"
    benchmark = write(tmp_path / "b.jsonl", [{key: text, "answer": "9 (apples)"} for text in (long, short, phrase)])
    answer = " ".join(f"w{number}" for number in range(350)) + "."
    rows = [pair(id=name, question=before + asked, answer=answer) for name, asked in
            (("long", long), ("short", short), ("other", f"Iron is a metal which rusts in the rain and in the snow. \
{phrase} It is soft, it is hard, it is green, it is a gas."))]  # fmt: skip
    found = checked(tmp_path, *rows, benchmarks=(str(benchmark),), near_duplicates=False)
    assert found == {"long": "contaminated", "short": "contaminated", "other": "good"}


def test_a_half_of_the_numbers_of_a_wrong_pair_and_the_share_is_rounded(tmp_path: Path) -> None:
    rows = [{"id": str(n), "answer": " ".join(str(1000 + 20 * n + k) for k in range(20))} for n in range(200)]
    source = write(tmp_path / "in.jsonl", rows)
    call = ["synth", "corrupt", "--input", str(source), "--kind", "number", "--out"]
    assert main([*call, str(tmp_path / "all.jsonl"), "--share", "1"]) == 0
    made = [json.loads(line)["corruption"]["changes"] for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    share = sum(map(len, made)) / (200 * 20)
    assert 0.525 - 0.033 < share < 0.525 + 0.033  # half of 19 and the last, 4 standard errors
    assert main([*call, str(tmp_path / "few.jsonl"), "--share", "0.0083"]) == 0  # 1.66 pairs
    assert (tmp_path / "few.jsonl").read_text().count('"corruption"') == 2


def test_what_is_unclear_counts_as_wrong_and_the_seed_draws_the_sample(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", sums(7, 60, share_wrong=0, marked=False))
    drawn = []
    for seed in (1, 2):
        given = audit_options(tmp_path, None, sample=8, seed=seed, out=tmp_path / f"audit{seed}")
        audit(given)
        filled = tmp_path / "filled.csv"
        rows = fill(given.out / "sheet.csv", filled, lambda place, row: "unclear" if place < 2 else "right")
        drawn.append({row["id"] for row in rows})
    assert drawn[0] != drawn[1]
    given = audit_options(tmp_path, None, sample=8, seed=2, out=tmp_path / "audit2", filled=filled)
    assert audit(given)["wrong_rate"]["value"] == 0.25


TEXTS = {
    ("plain", "en"): "About sums.\n\nWhat is 1?\n\nIt is 1.", ("plain", "zh"): "About sums.\n\n几？\n\n是一。",
    ("labelled", "en"): "About sums.\n\n---\n\nProblem: What is 1?\n\nSolution: It is 1.",
    ("labelled", "zh"): "About sums.\n\n---\n\n题目：几？\n\n解答：是一。",
    ("question_answer", "en"): "About sums.\n\nQuestion: What is 1?\nAnswer: It is 1.",
    ("question_answer", "zh"): "About sums.\n\n问：几？\n答：是一。",
    ("headings", "en"): "About sums.\n\n## Exercise\n\nWhat is 1?\n\n## Solution\n\nIt is 1.",
    ("headings", "zh"): "About sums.\n\n## 习题\n\n几？\n\n## 解答\n\n是一。",
}  # fmt: skip


@pytest.mark.parametrize("layout", sorted({name for name, _ in TEXTS}))
def test_every_layout_and_its_separators_letter_for_letter(tmp_path: Path, layout: str) -> None:
    said = {"en": ("What is 1?", "It is 1."), "zh": ("几？", "是一。")}
    rows = [
        pair(id=key, language=key, question=f" {q}\n", answer=f"{a}\n", seed_id="p") for key, (q, a) in said.items()
    ]
    write(tmp_path / "pairs.jsonl", rows)
    write(tmp_path / "pages.jsonl", [{"id": "p", "content": "About sums.\n"}])
    report = format_pairs(
        FormatOptions(
            inputs=(str(tmp_path / "pairs.jsonl"),), out=tmp_path / "out", tokenizer=corpus.hf_folder(tmp_path / "hf"),
            audit=None, layouts=(layout,), pages=(str(tmp_path / "pages.jsonl"),), page_share=1.0,
            page_key="content",
        )
    )  # fmt: skip
    found = {row["language"]: row["text"] for row in read(tmp_path / "out")}
    assert found == {key: TEXTS[layout, key] for key in said}
    assert report["disciplines"]["all"]["bytes"] == sum(len(text.encode()) for text in found.values())
