"""Documents as windows, windows best-fit into rows: what one forward pass of scoring reads.

A document of n tokens has n - 1 (input, target) pairs. One that is longer than the context is cut into windows; each
window but the first begins `overlap` pairs earlier, and those pairs are context alone, so every pair counts once.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive pairs of one document."""

    document: int
    start: int
    """First input token in the document."""
    num_pairs: int
    num_context: int
    """So many of the first pairs are scored by the window before."""


def windows_of(document: int, length: int, *, seq_length: int, overlap: int) -> list[Window]:
    """All pairs of a document of `length` tokens, in windows of at most seq_length pairs; 0 <= overlap < seq_length."""
    num_pairs = length - 1
    windows = [Window(document, 0, min(num_pairs, seq_length), 0)] if num_pairs > 0 else []
    scored = seq_length
    while scored < num_pairs:
        start = scored - overlap
        windows.append(Window(document, start, min(seq_length, num_pairs - start), overlap))
        scored = start + windows[-1].num_pairs
    return windows


def rows_of(lengths: Sequence[int], *, seq_length: int, overlap: int, row_pairs: int) -> list[list[Window]]:
    """Windows of all documents in rows of at most row_pairs (≥ seq_length) pairs, each in the row it fills best.

    Order: longest windows first, so windows of like length lie together in a row. Depends on `lengths` alone.
    """
    windows = [
        window
        for document, length in enumerate(lengths)
        for window in windows_of(document, length, seq_length=seq_length, overlap=overlap)
    ]
    windows.sort(key=lambda window: -window.num_pairs)
    rows: list[list[Window]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), ascending
    for window in windows:
        place = bisect_left(open_rows, (window.num_pairs, -1))
        if place < len(open_rows):
            room, row = open_rows.pop(place)
        else:
            room, row = row_pairs, len(rows)
            rows.append([])
        rows[row].append(window)
        if room > window.num_pairs:
            insort(open_rows, (room - window.num_pairs, row))
    return rows
