"""The five exemplars of each AGIEval set: ours, in exemplars.yaml, put into words as AGIEval's questions are."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass as checked

from tools.data.yaml_file import STRICT, read_yaml

FILE = Path(__file__).with_name("exemplars.yaml")


@checked(frozen=True, kw_only=True, config=STRICT)
class Exemplar:
    name: str
    question: str
    choices: list[str]
    """Without letters."""
    answer: Literal["A", "B", "C", "D", "E"]


def _of(name: str, *, chinese: bool) -> list[dict[str, Any]]:
    exemplars: dict[str, list[Exemplar]] = read_yaml(FILE, dict[str, list[Exemplar]])
    documents = []
    for exemplar in exemplars[name]:
        letters = "ABCDE"[: len(exemplar.choices)]
        choices = [f"({letter}){text}" for letter, text in zip(letters, exemplar.choices, strict=True)]
        asked, offered, last = exemplar.question, " ".join(choices), letters[-1]
        query = (
            f"问题：{asked} 选项：{offered}\n答案：从A到{last}, 我们应选择" if chinese
            else f"Q: {asked} Answer Choices: {offered}\nA: Among A through {last}, the answer is"
        )  # fmt: skip
        documents.append({"query": query, "choices": choices, "gold": letters.index(exemplar.answer)})
    return documents


sat_math = partial(_of, "sat_math", chinese=False)
aqua_rat = partial(_of, "aqua_rat", chinese=False)
gaokao_mathqa = partial(_of, "gaokao_mathqa", chinese=True)
gaokao_chemistry = partial(_of, "gaokao_chemistry", chinese=True)
gaokao_biology = partial(_of, "gaokao_biology", chinese=True)
