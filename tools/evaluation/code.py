"""HumanEval and MBPP: what a model writes is run in the bubblewrap sandbox, with the set's tests, and nowhere else."""

from functools import cache
from typing import TYPE_CHECKING, Any

from tools.synthesis.sandbox import Example, require_sandbox

if TYPE_CHECKING:
    from datasets import Dataset

MBPP_EXEMPLARS = (2, 3, 4)
"""task_id of the three that the set's authors prompt with."""
sandbox = cache(require_sandbox)
"""Tried once a process. Errors: ConfigError (exit code 2) where there is none."""


def humaneval(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if prompt and completion pass the item's check."""
    return _passes(doc["prompt"] + results[0], f"{doc['test']}\ncheck({doc['entry_point']})")


def mbpp(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the program passes the item's set-up code and its three asserts."""
    setup = doc.get("test_setup_code") or ""
    return _passes(results[0].split("[DONE]")[0], "\n".join([setup, *doc["test_list"]]))


def mbpp_exemplars(docs: "Dataset") -> list[dict[str, Any]]:
    """Problems 2, 3 and 4, in this order."""
    by_id = {row["task_id"]: row for row in docs}
    return [by_id[number] for number in MBPP_EXEMPLARS]


def _passes(program: str, test: str) -> dict[str, float]:
    return {"pass_at_1": float(sandbox().check(program, [Example(test=test)]).passed)}
