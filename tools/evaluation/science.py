"""SciEval by category, scored as its authors' script does."""

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def _of_category(docs: "Dataset", *, category: str) -> "Dataset":
    return docs.filter(lambda row: row["category"] == category)


physics = partial(_of_category, category="physics")
chemistry = partial(_of_category, category="chemistry")
biology = partial(_of_category, category="biology")


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """A multiple choice is right if the first letter is; a judgement or a gap if the gold answer occurs.

    Ours: brackets, stars and quotes before the letter do not count against it.
    """
    said, gold = results[0].strip().casefold(), doc["answer"][0].strip().casefold()
    if doc["type"] == "multiple-choice":
        return {"exact_match": float(said.lstrip("(（[*\"' ")[: len(gold)] == gold)}
    return {"exact_match": float(gold in said)}
