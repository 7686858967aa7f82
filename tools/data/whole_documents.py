"""Documents packed whole into windows of equal length: best fit decreasing (Johnson 1973), on lengths alone."""

from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def fill_windows(
    lengths: npt.NDArray[np.integer], *, window: int, windows_at_once: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Every document once, in windows whose lengths sum to at most `window`; no length may be larger.

    (Numbers of documents in the order of some consecutive windows, which of these is the last of each window.)
    Order: windows by their first document, documents of a window as they came; so a shuffled input stays shuffled.
    Cost: a binary search per document; memory: some 100 bytes per document.
    """
    window_of = best_fit(lengths, window=window)
    _, firsts = np.unique(window_of, return_index=True)
    rank = np.empty(len(firsts), dtype=np.int64)
    rank[np.argsort(firsts, kind="stable")] = np.arange(len(firsts))
    order = np.argsort(rank[window_of], kind="stable")
    ends = np.flatnonzero(np.diff(rank[window_of][order], append=len(firsts)))  # last document of each window
    for start in range(0, len(ends), windows_at_once):
        chosen = ends[start : start + windows_at_once]
        first = int(ends[start - 1]) + 1 if start else 0
        yield order[first : int(chosen[-1]) + 1], chosen - first


def best_fit(lengths: npt.NDArray[np.integer], *, window: int) -> npt.NDArray[np.int64]:
    """The window of each document: longest first, each into the fullest window that still holds it."""
    window_of = np.empty(len(lengths), dtype=np.int64)
    open_windows: dict[int, list[int]] = {}  # room -> windows
    rooms: list[int] = []  # ascending, those of open_windows
    num_windows = 0
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    for document, length in zip(order.tolist(), np.asarray(lengths)[order].tolist(), strict=True):
        place = bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            chosen = open_windows[room].pop()
            if not open_windows[room]:
                del open_windows[room], rooms[place]
        else:
            room, chosen = window, num_windows
            num_windows += 1
        window_of[document] = chosen
        left = room - length
        if left:
            if left not in open_windows:
                open_windows[left] = []
                insort(rooms, left)
            open_windows[left].append(chosen)
    return window_of
