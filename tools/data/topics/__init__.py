"""The topics of web pages, and which topic each subject of MMLU and CMMLU belongs to: data, not code.

topics.json: language -> topic (a label, part of source names) -> its title in that language.
mmlu_subjects.json, cmmlu_subjects.json: subject, as lm-evaluation-harness spells it, -> topic.
Three topic names are the paper's (its Figure 1 shows them); the other eight and the subject maps are ours.
"""

import json
from importlib.resources import files
from typing import Literal


def subject_topics(benchmark: Literal["mmlu", "cmmlu"]) -> dict[str, str]:
    """Subject -> topic: English topics for mmlu, Chinese ones for cmmlu."""
    text = (files(__package__) / f"{benchmark}_subjects.json").read_text(encoding="utf-8")
    topics: dict[str, str] = json.loads(text)
    return topics
