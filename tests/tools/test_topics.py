"""The topics and the subject maps: every subject of MMLU and CMMLU has exactly one topic, and no topic is empty."""

import hashlib
import json
from importlib.resources import files
from typing import Literal

import pytest

from tools.data.labels import is_label
from tools.data.topic_labels import read_topics
from tools.data.topics import subject_topics

Benchmark = Literal["mmlu", "cmmlu"]
TITLES = read_topics(None)
# sha256 of the sorted subject names, each with a line end, taken from the dataset_name of every task file below
# lm_eval/tasks/mmlu/default and lm_eval/tasks/cmmlu of lm-evaluation-harness 0.4.13.
HARNESS_SUBJECTS = {
    "mmlu": (57, "2e0a731ba2558c6b4f73f5c519e80e2b57e60b8bfdc23eafba35e35b61d1e3ae"),
    "cmmlu": (67, "8925d42ec7604620af9afab2e49c54f6d06200f22b8d34b28b4434e3826b61ed"),
}


@pytest.mark.parametrize(("benchmark", "language"), [("mmlu", "en"), ("cmmlu", "zh")])
def test_every_subject_of_the_harness_has_exactly_one_topic_and_every_topic_a_subject(
    benchmark: Benchmark, language: str
) -> None:
    text = (files("tools.data.topics") / f"{benchmark}_subjects.json").read_text(encoding="utf-8")
    pairs: list[tuple[str, str]] = json.loads(text, object_pairs_hook=list)  # a dict would hide a repeated subject
    names = [subject for subject, _ in pairs]
    count, digest = HARNESS_SUBJECTS[benchmark]
    assert len(names) == len(set(names)) == count
    assert hashlib.sha256("".join(f"{name}\n" for name in sorted(names)).encode()).hexdigest() == digest
    assert {topic for _, topic in pairs} == set(TITLES[language])
    assert dict(pairs) == subject_topics(benchmark)


def test_both_languages_have_the_same_eleven_topics_and_each_can_be_part_of_a_source_name() -> None:
    assert list(TITLES["en"]) == list(TITLES["zh"])
    assert len(TITLES["en"]) == 11
    assert all(is_label(topic) for topic in TITLES["en"])
    # the three that the paper's Figure 1 names
    assert {"Computer Science and Engineering", "History and Geography", "Psychology and Sociology"} <= set(
        TITLES["en"].values()
    )
