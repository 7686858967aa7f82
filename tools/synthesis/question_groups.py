"""Pairs with the same question: one stays, if enough of them agree on the final answer.

A range of the questions' hashes at a time, so memory is bounded; what is found is a file of Finding, sorted by pair.
"""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_mixers.atomic import write_atomic
from tools.data.exact_duplicates import duplicates_in_range, write_hashes
from tools.synthesis.final_answers import majority, normalised

FINDING = np.dtype([("pair", "<i8"), ("kept", "<i8"), ("votes", "<u4"), ("samples", "<u4"), ("disagrees", "<u4")])
"""pair, kept: nodes (tools/data/minhash.py); kept is -1 where no answer had enough votes.

samples: those that state a result.
"""

Findings = npt.NDArray[np.void]


def write_questions(questions: Sequence[tuple[int, bytes]], answers: dict[int, str], path: Path) -> None:
    """(pair's number in the task, hash of its question), and the final answers that are stated, by number."""
    write_hashes(questions, path)
    write_atomic(path.with_suffix(".answers"), json.dumps(answers, ensure_ascii=False).encode())


def settle(paths: Sequence[Path], index: int, count: int, *, min_agreement: float) -> Findings:
    """What becomes of every pair whose question comes more than once, but for the one that is kept.

    Of n >= 2 that state a result the largest group that agrees must hold more than `min_agreement` of them, and its
    first pair stays; without results the first pair does. index of count: the range of hashes.
    """
    groups: dict[int, list[int]] = {}
    for later, first in duplicates_in_range(paths, index, count).tolist():
        groups.setdefault(first, [first]).append(later)
    answers = _answers(paths, sorted(pair for members in groups.values() for pair in members))
    found = []
    for first, members in groups.items():
        members.sort()
        stated = [(pair, answers[pair]) for pair in members if pair in answers]
        if len(stated) < 2:
            kept = stated[0][0] if stated else first
            found += [(pair, kept, 0, len(stated), 0) for pair in members if pair != kept]
            continue
        best, agrees = majority([normalised(answer) for _, answer in stated])
        votes = sum(agrees)
        kept = stated[best][0] if votes > min_agreement * len(stated) else -1
        others = {pair for (pair, _), agreed in zip(stated, agrees, strict=True) if not agreed}
        found += [(pair, kept, votes, len(stated), int(kept < 0 or pair in others)) for pair in members if pair != kept]
    return np.array(sorted(found), dtype=FINDING)


def _answers(paths: Sequence[Path], pairs: Sequence[int]) -> dict[int, str]:
    """What those of the pairs state that state a result. pairs: sorted, so that each task's file is read once."""
    found = {}
    for task, of_task in groupby(pairs, key=lambda pair: pair >> 32):
        answers: dict[str, str] = json.loads(paths[task].with_suffix(".answers").read_bytes())
        numbers = ((pair, str(pair & 0xFFFFFFFF)) for pair in of_task)
        found.update({pair: answers[number] for pair, number in numbers if number in answers})
    return found
