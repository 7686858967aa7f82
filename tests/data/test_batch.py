"""Samples to one packed row, and which samples each rank reads."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synE.data.batch import MicroBatch, collate, sample_indices
from megatron_synE.data.scheduled_dataset import Sample

EOS = 9


def sample(tokens: list[int], starts: list[int]) -> Sample:
    return Sample(np.array(tokens, dtype=np.int64), np.array(starts, dtype=np.int64), 0)


# Two windows of four pairs: [1 2 E | 3] -> 4 and [5 E | 6 E | ] -> 7
FIRST = sample([1, 2, EOS, 3, 4], [0, 3])
SECOND = sample([5, EOS, 6, EOS, 7], [0, 2])


def collated(*, document_masking: bool = True, eod_mask_loss: bool = False) -> MicroBatch:
    return collate(
        [FIRST, SECOND], document_masking=document_masking, eod_mask_loss=eod_mask_loss, eos_id=EOS,
        device=torch.device("cpu"),
    )  # fmt: skip


def test_windows_lie_end_to_end_and_each_target_is_the_next_token() -> None:
    batch = collated()
    assert batch.input_ids.tolist() == [[1, 2, EOS, 3, 5, EOS, 6, EOS]]
    assert batch.labels.tolist() == [[2, EOS, 3, 4, EOS, 6, EOS, 7]]
    assert batch.loss_mask.tolist() == [[1.0] * 8]


def test_eos_after_eos_never_counts_and_nothing_else_changes() -> None:
    filled = sample([1, EOS, EOS, EOS, 4], [0, 2])  # a document, two fillers, and the next window's first token
    batch = collate([filled, FIRST], document_masking=True, eod_mask_loss=False, eos_id=EOS, device=torch.device("cpu"))
    assert batch.loss_mask.tolist() == [[1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]]


def test_with_masking_segments_and_positions_restart_at_each_document() -> None:
    row = collated().row
    assert row.bounds == (0, 3, 4, 6, 8)
    assert row.positions.tolist() == [0, 1, 2, 0, 0, 1, 0, 1]
    assert row.cu_seqlens_q.tolist() == [0, 3, 4, 6, 8]
    assert row.max_seqlen_q == 3 and type(row.max_seqlen_q) is int


def test_without_masking_each_window_is_one_segment() -> None:
    row = collated(document_masking=False).row
    assert row.bounds == (0, 4, 8)
    assert row.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_eod_mask_loss_leaves_out_the_pairs_whose_input_is_eos() -> None:
    assert collated(eod_mask_loss=True).loss_mask.tolist() == [[1, 1, 0, 1, 1, 0, 1, 0]]


LAYOUTS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))  # DP, micro-batch, micro-batches a rank


def read_by(rank: int, layout: tuple[int, int, int], *, begin: int, end: int) -> list[list[int]]:
    """The samples of each micro-batch of a rank, from iteration `begin` up to `end`."""
    data_parallel_size, micro_batch_size, _ = layout
    batch = math.prod(layout)
    return list(
        sample_indices(
            consumed_samples=begin * batch,
            total_samples=end * batch,
            global_batch_size=batch,
            micro_batch_size=micro_batch_size,
            data_parallel_rank=rank,
            data_parallel_size=data_parallel_size,
        )
    )


@given(layout=LAYOUTS, iterations=st.integers(1, 4), done=st.integers(0, 3))
def test_the_samples_of_an_iteration_are_the_same_for_every_layout(
    layout: tuple[int, int, int], iterations: int, done: int
) -> None:
    data_parallel_size, micro_batch_size, num_microbatches = layout
    batch = math.prod(layout)
    ranks = [read_by(rank, layout, begin=done, end=done + iterations) for rank in range(data_parallel_size)]
    assert all(len(micro_batches) == iterations * num_microbatches for micro_batches in ranks)
    assert all(len(micro_batch) == micro_batch_size for rank in ranks for micro_batch in rank)
    for iteration in range(iterations):
        part = slice(iteration * num_microbatches, (iteration + 1) * num_microbatches)
        read = [number for rank in ranks for micro_batch in rank[part] for number in micro_batch]
        first = (done + iteration) * batch
        assert sorted(read) == list(range(first, first + batch))  # each once, whatever the layout
        # Read round by round over the ranks, the order is the schedule's own.
        rounds = zip(*(rank[part] for rank in ranks), strict=True)
        assert [n for together in rounds for micro_batch in together for n in micro_batch] == sorted(read)


@settings(max_examples=30)
@given(layout=LAYOUTS, cut=st.integers(0, 4))
def test_starting_later_gives_the_rest_of_the_same_row(layout: tuple[int, int, int], cut: int) -> None:
    rank, num_microbatches = layout[0] - 1, layout[2]
    whole = read_by(rank, layout, begin=0, end=4)
    assert read_by(rank, layout, begin=cut, end=4) == whole[cut * num_microbatches :]


def test_a_row_of_very_many_documents_is_a_row() -> None:
    many = sample([EOS] * 201, list(range(200)))
    row = collate([many], document_masking=True, eod_mask_loss=False, eos_id=EOS, device=torch.device("cpu")).row
    assert row.bounds == tuple(range(201))
    assert len(row.cu_seqlens_q) == 257  # the next power of two, plus one
    assert row.positions.tolist() == [0] * 200


@pytest.mark.parametrize(("count", "padded"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_the_number_of_documents_changes_the_shape_of_cu_seqlens_rarely(count: int, padded: int) -> None:
    row = collate(
        [sample([1] * 129, list(range(count)))], document_masking=True, eod_mask_loss=False, eos_id=EOS,
        device=torch.device("cpu"),
    ).row  # fmt: skip
    assert len(row.cu_seqlens_q) == padded + 1
    assert set(row.cu_seqlens_q.tolist()[count:]) == {row.bounds[-1]}
