"""Documents as windows in rows, for scoring: every pair once, rows full, by hand and as laws."""

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_synE.data.scoring_rows import Window, rows_of, windows_of


def test_windows_of_a_long_document_by_hand() -> None:
    # 24 pairs, windows of 10 that see 4 pairs again: 0 to 10, 6 to 16, 12 to 22, and 18 to 24.
    assert windows_of(7, 25, seq_length=10, overlap=4) == [
        Window(7, 0, 10, 0), Window(7, 6, 10, 4), Window(7, 12, 10, 4), Window(7, 18, 6, 4),
    ]  # fmt: skip
    assert windows_of(0, 11, seq_length=10, overlap=4) == [Window(0, 0, 10, 0)]  # 10 pairs: none is left
    assert windows_of(0, 1, seq_length=10, overlap=4) == []


def test_windows_go_where_they_fit_best_by_hand() -> None:
    # 9, 7, 3, 2 and 1 pairs, rows of 10: 3 fills the row of 7, then 1 that of 9; 2 opens a row.
    rows = rows_of([4, 10, 8, 2, 3], seq_length=10, overlap=0, row_pairs=10)
    assert [[window.num_pairs for window in row] for row in rows] == [[9, 1], [7, 3], [2]]
    assert [[window.document for window in row] for row in rows] == [[1, 3], [2, 0], [4]]


@given(
    lengths=st.lists(st.integers(0, 400), max_size=40),
    seq_length=st.integers(1, 50),
    share=st.integers(0, 99),
    rows_per_micro_batch=st.integers(1, 3),
)
def test_every_pair_is_scored_once_and_sees_its_overlap(
    lengths: list[int], seq_length: int, share: int, rows_per_micro_batch: int
) -> None:
    overlap = share * seq_length // 100
    capacity = rows_per_micro_batch * seq_length
    rows = rows_of(lengths, seq_length=seq_length, overlap=overlap, row_pairs=capacity)
    scored: Counter[tuple[int, int]] = Counter()
    for row in rows:
        assert 0 < sum(window.num_pairs for window in row) <= capacity
        for window in row:
            assert 0 < window.num_pairs <= seq_length and window.num_context < window.num_pairs
            assert window.num_context == (overlap if window.start else 0)
            assert window.start + window.num_pairs < lengths[window.document]
            for pair in range(window.num_context, window.num_pairs):
                scored[window.document, window.start + pair] += 1
    assert scored == Counter((d, pair) for d, length in enumerate(lengths) for pair in range(length - 1))


def test_rows_are_full_but_for_one_when_short_windows_can_fill_them() -> None:
    lengths = [int(n) for n in np.random.default_rng(3).integers(2, 40, size=400)]
    rows = rows_of(lengths, seq_length=128, overlap=0, row_pairs=128)
    filled = [sum(window.num_pairs for window in row) for row in rows]
    assert sum(filled) == sum(lengths) - len(lengths)
    assert len(rows) <= -(-sum(filled) // 128) + 1
    assert all(a.num_pairs >= b.num_pairs for row in rows for a, b in pairwise(row))
