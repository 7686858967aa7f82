"""SciEval by category, scored as its authors' script does."""

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def _of_category(docs: "Dataset", *, category: str) -> "Dataset":
    """Without the gaps (reagents to be named in SMILES), which the paper's 643 chemistry items do not count either."""
    return docs.filter(lambda row: row["category"] == category and row["type"] != "filling")


physics = partial(_of_category, category="physics")
chemistry = partial(_of_category, category="chemistry")
biology = partial(_of_category, category="biology")


def kind(row: dict[str, Any]) -> tuple[Any, ...]:
    """What the set's own make_few_shot.py matches exemplars by; its development set has five of each kind."""
    return tuple(row[key] for key in ("task_name", "ability", "category", "prompt"))


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """A multiple choice is right if the first letter is; a judgement if the gold answer occurs.

    Ours: brackets, stars and quotes before the letter do not count against it.
    """
    said, gold = results[0].strip().casefold(), doc["answer"][0].strip().casefold()
    if doc["type"] == "multiple-choice":
        return {"exact_match": float(said.lstrip("(（[*\"' ")[: len(gold)] == gold)}
    return {"exact_match": float(gold in said)}
