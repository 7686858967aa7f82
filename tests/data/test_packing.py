"""Held-out documents in rows: every pair of every document, once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_synE.data.packing import pack, padding_row

LENGTHS = st.lists(st.integers(1, 40), max_size=15)
SEQ_LENGTHS = st.integers(1, 16)


def documents(lengths: list[int]) -> list[np.ndarray]:
    """Tokens that tell where they stand: 1000 * (document + 1) + position."""
    return [1000 * (number + 1) + np.arange(length) for number, length in enumerate(lengths)]


@given(lengths=LENGTHS, seq_length=SEQ_LENGTHS)
def test_each_pair_of_each_document_is_there_exactly_once(lengths: list[int], seq_length: int) -> None:
    made = documents(lengths)
    found = sorted(
        (owner, int(row.inputs[place]), int(row.labels[place]))
        for row in pack(made, seq_length=seq_length)
        for place, owner in enumerate(row.documents.tolist())
        if owner >= 0
    )
    expected = sorted(
        (number, int(a), int(b))
        for number, tokens in enumerate(made)
        for a, b in zip(tokens[:-1], tokens[1:], strict=True)
    )
    assert found == expected


@given(lengths=LENGTHS, seq_length=SEQ_LENGTHS)
def test_segments_hold_one_document_and_begin_where_it_does_or_was_cut(lengths: list[int], seq_length: int) -> None:
    for row in pack(documents(lengths), seq_length=seq_length):
        assert len(row.inputs) == len(row.labels) == len(row.documents) == seq_length
        assert row.starts[0] == 0 and list(row.starts) == sorted(set(row.starts))
        for start, stop in zip(row.starts, (*row.starts[1:], seq_length), strict=True):
            owners = set(row.documents[start:stop].tolist())
            assert len(owners) == 1
            if owners != {-1}:
                first = int(row.inputs[start]) % 1000
                assert first % seq_length == 0  # a window of the document: 0, seq_length, 2 * seq_length ...
                assert row.inputs[start:stop].tolist() == list(
                    range(int(row.inputs[start]), int(row.inputs[start]) + stop - start)
                )


@given(lengths=LENGTHS, seq_length=SEQ_LENGTHS)
def test_a_document_that_fits_a_row_is_never_cut(lengths: list[int], seq_length: int) -> None:
    rows = pack(documents(lengths), seq_length=seq_length)
    for number, length in enumerate(lengths):
        holding = [row for row in rows if number in row.documents.tolist()]
        if 1 < length <= seq_length + 1:
            assert len(holding) == 1


def test_by_hand() -> None:
    rows = pack([np.array([1, 2, 3]), np.array([4]), np.array([5, 6]), np.array([7, 8, 9])], seq_length=4)
    assert [row.inputs.tolist() for row in rows] == [[1, 2, 5, 0], [7, 8, 0, 0]]
    assert [row.labels.tolist() for row in rows] == [[2, 3, 6, 0], [8, 9, 0, 0]]
    assert [row.documents.tolist() for row in rows] == [[0, 0, 2, -1], [3, 3, -1, -1]]
    assert [row.starts for row in rows] == [(0, 2, 3), (0, 2)]


def test_a_padding_row_scores_nothing() -> None:
    row = padding_row(3)
    assert row.documents.tolist() == [-1, -1, -1]
    assert row.starts == (0,)
