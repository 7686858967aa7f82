"""How much of the held-out text a validation pass reads."""

from pathlib import Path

import torch

from megatron_synE.validation import MIN_DOCUMENTS, Validator, build_validator
from tests import tiny

SETS = {("zh", "web", "law"): 3000, ("zh", "web", "food"): 3000}


def validator(folder: Path, *, per_topic: int | None, whole: int | None) -> Validator:
    held = tiny.manifest(folder, SETS, role="validation")
    return build_validator(
        [held], seq_length=32, micro_batch_size=1, max_tokens_per_topic=per_topic, max_tokens=whole,
        device=torch.device("cpu"),
    )  # fmt: skip


def tokens(made: Validator) -> int:
    """Targets: all tokens of a document after its first."""
    return sum(int((row.documents >= 0).sum()) for row in made.rows)


def test_a_pass_reads_its_budget_in_whole_documents(tmp_path: Path) -> None:
    made = validator(tmp_path, per_topic=None, whole=2000)
    assert 2000 - 2 * 60 - made.num_documents <= tokens(made) <= 2000  # documents have at most 60 tokens
    assert {entry.num_documents >= MIN_DOCUMENTS for entry in made.sets} == {True}


def test_a_small_budget_keeps_eight_documents_of_each_set(tmp_path: Path) -> None:
    made = validator(tmp_path, per_topic=None, whole=10)
    assert [entry.num_documents for entry in made.sets] == [8, 8]


def test_what_is_asked_for_per_topic_wins(tmp_path: Path) -> None:
    made = validator(tmp_path, per_topic=100, whole=2000)
    assert tokens(made) <= 200
    everything = validator(tmp_path / "all", per_topic=None, whole=None)
    assert tokens(everything) >= 5500
