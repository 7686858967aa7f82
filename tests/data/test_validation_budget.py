"""How much of the held-out text a validation pass reads, and which rank reads what."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import SCHEMA_VERSION, DatasetManifest, Role
from megatron_synE import validation
from megatron_synE.data.indexed import IndexedFile, IndexedWriter
from megatron_synE.model.context_part import WHOLE
from megatron_synE.validation import MIN_DOCUMENTS, Validator, build_validator
from tests import tiny
from tests.data.test_scheduled_dataset import EOS, IDENTITY, source

SETS = {("zh", "web", "law"): 3000, ("zh", "web", "food"): 3000}


def validator(folder: Path, *, per_topic: int | None, whole: int | None, micro_batch_size: int = 1) -> Validator:
    held = tiny.manifest(folder, SETS, role="validation")
    return build_validator(
        [held], seq_length=32, micro_batch_size=micro_batch_size, max_tokens_per_topic=per_topic, max_tokens=whole,
        device=torch.device("cpu"),
    )  # fmt: skip


def tokens(made: Validator) -> int:
    """Targets: all tokens of a document after its first."""
    return sum(int((row.documents >= 0).sum()) for row in made.rows)


def test_a_pass_reads_its_budget_in_whole_documents(tmp_path: Path) -> None:
    made = validator(tmp_path, per_topic=None, whole=2000)
    assert 2000 - 2 * 60 - made.num_documents <= tokens(made) <= 2000  # documents have at most 60 tokens
    assert {entry.num_documents >= MIN_DOCUMENTS for entry in made.sets} == {True}


def test_the_bytes_of_a_set_are_its_texts_or_the_share_of_them_that_is_read(tmp_path: Path) -> None:
    """They turn nats into bits per byte."""
    held = tiny.manifest(tmp_path / "held", SETS, role="validation")
    whole = validator(tmp_path / "held", per_topic=None, whole=None)
    assert [entry.text_bytes for entry in whole.sets] == [entry.text_bytes for entry in held.sources]
    cut = validator(tmp_path / "held", per_topic=500, whole=None)
    for entry, of_set in zip(cut.sets, held.sources, strict=True):
        mine = range(entry.first_document, entry.first_document + entry.num_documents)
        pairs = sum(int(sum(row.documents == document for document in mine).sum()) for row in cut.rows)
        read = pairs + entry.num_documents  # a document's first token is no target
        assert 400 < read <= 500
        assert entry.text_bytes == round(of_set.text_bytes * read / of_set.num_tokens)


def test_what_holds_nothing_to_score_is_refused_and_documents_of_two_tokens_are_enough(tmp_path: Path) -> None:
    def built(document: list[int], role: Role) -> Validator:
        name = "zh/web/law@holdout" if role == "validation" else "zh/web/law"
        held = source(tmp_path, name, [document] * 3, role=role)
        manifest = DatasetManifest(
            schema_version=SCHEMA_VERSION, folder=tmp_path, tokenizer=IDENTITY, dtype="uint16", sources=(held,)
        )
        return build_validator(
            [manifest], seq_length=8, micro_batch_size=1, max_tokens_per_topic=None, device=torch.device("cpu")
        )

    assert tokens(built([5, EOS], "validation")) == 3
    with pytest.raises(DataError, match="zh/web/law@holdout has no document of two tokens"):
        built([EOS], "validation")
    with pytest.raises(ConfigError, match="no source with role validation"):
        built([5, EOS], "train")


def test_a_set_that_is_alone_may_read_the_whole_budget(tmp_path: Path) -> None:
    held = tiny.manifest(tmp_path, {("zh", "web", "law"): 3000}, role="validation")
    made = build_validator(
        [held], seq_length=32, micro_batch_size=1, max_tokens_per_topic=None, max_tokens=2000,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert 2000 - 60 - made.num_documents <= tokens(made) <= 2000


def test_a_negative_id_among_good_ones_is_refused(tmp_path: Path) -> None:
    """With tensor parallelism it would be a row of zeros in the embedding, and only the loss would know."""
    with IndexedWriter(tmp_path / "held", dtype="int32") as writer:
        writer.add_document(np.array([5, -1, EOS], dtype=np.int32))
    with pytest.raises(DataError, match="token ids from -1 to 5, outside the vocabulary of 1000"):
        validation._check_ids(IndexedFile(tmp_path / "held"), 1000)


def test_a_small_budget_keeps_eight_documents_of_each_set(tmp_path: Path) -> None:
    made = validator(tmp_path, per_topic=None, whole=10)
    assert [entry.num_documents for entry in made.sets] == [8, 8]


def test_what_is_asked_for_per_topic_wins(tmp_path: Path) -> None:
    made = validator(tmp_path, per_topic=100, whole=2000)
    assert tokens(made) <= 200
    everything = validator(tmp_path / "all", per_topic=None, whole=None)
    assert tokens(everything) >= 5500


@pytest.mark.parametrize(
    ("ranks", "micro_batch_size", "stages", "is_interleaved"),
    [(1, 1, 1, False), (3, 2, 1, False), (2, 1, 3, False), (2, 3, 2, True), (1, 1, 4, True), (5, 4, 16, False)],
)
def test_all_ranks_together_score_every_pair_once_in_groups_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, micro_batch_size: int, stages: int,
    is_interleaved: bool,
) -> None:  # fmt: skip
    """A rank with fewer micro-batches than its peers would leave them in a collective."""
    made = validator(tmp_path, per_topic=None, whole=2000, micro_batch_size=micro_batch_size)
    monkeypatch.setattr(validation, "context_part", lambda: WHOLE)
    state = validation.parallel_state
    monkeypatch.setattr(state, "get_data_parallel_world_size", lambda: ranks)
    monkeypatch.setattr(state, "get_pipeline_model_parallel_world_size", lambda: stages)
    scored: Counter[tuple[int, int, int]] = Counter()
    sizes = []
    for rank in range(ranks):
        monkeypatch.setattr(state, "get_data_parallel_rank", lambda rank=rank: rank)
        groups = list(made._groups(is_interleaved))
        sizes.append([len(group) for group in groups])
        for owners, batch in (pair for group in groups for pair in group):
            assert owners.shape == (32 * micro_batch_size,)
            assert batch.row.bounds[-1] == 32 * micro_batch_size
            kept = owners >= 0
            found = zip(
                owners[kept].tolist(), batch.input_ids[0][kept].tolist(), batch.labels[0][kept].tolist(), strict=True
            )
            scored.update(found)
    assert all(size == sizes[0] for size in sizes)
    needed = -(-len(made.rows) // (micro_batch_size * ranks))
    assert sum(sizes[0]) == (-(-needed // stages) * stages if is_interleaved else needed)
    assert all(size % stages == 0 for size in sizes[0][:-1]) and max(sizes[0]) <= max(8, stages)
    wanted = Counter(
        pair
        for row in made.rows
        for pair in zip(row.documents.tolist(), row.inputs.tolist(), row.labels.tolist(), strict=True)
        if pair[0] >= 0
    )
    assert scored == wanted
