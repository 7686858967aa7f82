"""The five exemplars of each AGIEval set: ours, in exemplars.yaml, put into words as AGIEval's questions are."""

from functools import cache, partial
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


@cache
def _all() -> dict[str, list[Exemplar]]:
    exemplars: dict[str, list[Exemplar]] = read_yaml(FILE, dict[str, list[Exemplar]])
    return exemplars


def _of(name: str, *, chinese: bool) -> list[dict[str, Any]]:
    return [_document(exemplar, chinese=chinese) for exemplar in _all()[name]]


def _document(exemplar: Exemplar, *, chinese: bool) -> dict[str, Any]:
    letters = "ABCDE"[: len(exemplar.choices)]
    choices = [f"({letter}){text}" for letter, text in zip(letters, exemplar.choices, strict=True)]
    if chinese:
        query = f"问题：{exemplar.question} 选项：{' '.join(choices)}\n答案：从A到{letters[-1]}, 我们应选择"
    else:
        query = (
            f"Q: {exemplar.question} Answer Choices: {' '.join(choices)}\n"
            f"A: Among A through {letters[-1]}, the answer is"
        )
    return {"query": query, "choices": choices, "gold": letters.index(exemplar.answer)}


sat_math = partial(_of, "sat_math", chinese=False)
aqua_rat = partial(_of, "aqua_rat", chinese=False)
gaokao_mathqa = partial(_of, "gaokao_mathqa", chinese=True)
gaokao_chemistry = partial(_of, "gaokao_chemistry", chinese=True)
gaokao_biology = partial(_of, "gaokao_biology", chinese=True)
