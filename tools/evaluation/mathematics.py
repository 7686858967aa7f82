"""MATH: what a worked solution ends with, compared as the set's authors compare."""

import re
from typing import Any

from tools.synthesis.sections import to_closing_brace

_STATED = re.compile(r"answer is:?\s*", re.IGNORECASE)


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the answer equals the gold solution's last box after the authors' normalisation of LaTeX."""
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    gold, said = boxed(doc["solution"]), final_answer(results[0])
    return {"exact_match": float(gold is not None and said is not None and bool(is_equiv(said, gold)))}


def final_answer(text: str) -> str | None:
    """The last box, else what follows the last "answer is", without dollars and a closing full stop."""
    if (found := boxed(text)) is not None:
        return found
    stated = [behind.split("\n")[0] for behind in _STATED.split(text)[1:] if behind]
    if not stated:
        return None
    inside = re.search(r"\$([^$]+)\$", stated[-1])
    return inside[1].strip() if inside else stated[-1].strip().rstrip(".").strip()


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} or \fbox{...}; None if there is none, or it does not end."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    behind = text[start:].removeprefix("\\boxed").removeprefix("\\fbox")
    if not behind.startswith("{"):
        return behind.split("$")[0].strip() or None
    return to_closing_brace(behind, 1)
