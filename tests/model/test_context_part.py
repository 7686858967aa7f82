"""Which tokens a context-parallel rank has, and which keys its queries see."""

import pytest
import torch

from megatron_synE.model.context_part import WHOLE, ContextPart
from megatron_synE.model.packed_row import packed_row

CPU = torch.device("cpu")


def pairs_of(chunks: tuple[range, ...]) -> int:
    """Query-key pairs of a causal row without borders."""
    return sum(query + 1 for chunk in chunks for query in chunk)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_parts_are_a_partition_with_equal_work(size: int) -> None:
    total = 48
    parts = [ContextPart(rank, size).chunks(total) for rank in range(size)]
    assert sorted(token for chunks in parts for chunk in chunks for token in chunk) == list(range(total))
    assert len({pairs_of(chunks) for chunks in parts}) == 1
    assert [ContextPart(rank, size).of(torch.arange(total)).tolist() for rank in range(size)] == [
        [token for chunk in chunks for token in chunk] for chunks in parts
    ]


def test_a_row_that_cannot_be_cut_evenly_is_not_cut() -> None:
    with pytest.raises(AssertionError, match="cannot be cut"):
        ContextPart(0, 2).chunks(6)


def test_chunks_by_hand() -> None:
    """Twelve tokens in documents [0, 5), [5, 6), [6, 12), over two ranks: chunks of three."""
    bounds = (0, 5, 6, 12)
    first, second = (packed_row(bounds, max_segments=4, device=CPU, part=ContextPart(rank, 2)) for rank in (0, 1))
    assert first.positions.tolist() == [0, 1, 2, 3, 4, 5]  # tokens 0, 1, 2 and 9, 10, 11
    assert second.positions.tolist() == [3, 4, 0, 0, 1, 2]  # tokens 3, 4, 5 and 6, 7, 8
    assert [chunk.keys for chunk in first.chunks] == [slice(0, 3), slice(6, 12)]
    assert [(chunk.row.bounds, chunk.row.key_bounds) for chunk in first.chunks] == [((0, 3),) * 2, ((0, 3), (0, 6))]
    # Queries 3 and 4 see their document from its beginning; 5 is a document of its own; 6 to 8 begin one.
    assert [chunk.keys for chunk in second.chunks] == [slice(0, 6), slice(6, 9)]
    assert [(chunk.row.bounds, chunk.row.key_bounds) for chunk in second.chunks] == [
        ((0, 2, 3), (0, 5, 6)),
        ((0, 3), (0, 3)),
    ]
    row = second.chunks[0].row
    assert row.cu_seqlens_q.tolist() == [0, 2, 3, 3, 3]
    assert row.cu_seqlens_kv.tolist() == [0, 5, 6, 6, 6]
    assert (row.max_seqlen_q, row.max_seqlen_kv) == (2, 5)


def test_without_context_parallelism_there_are_no_chunks() -> None:
    row = packed_row((0, 5, 6, 12), max_segments=4, device=CPU, part=WHOLE)
    assert row.chunks == ()
    assert row.key_bounds == row.bounds
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 4, 5]
