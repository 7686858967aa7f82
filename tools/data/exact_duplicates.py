"""Exact duplicates by content hash, memory bounded: 24 bytes a document on disk, a range of hashes at a time in memory.

The content is the text in NFC with every run of white space as one blank, so that two line widths of a page are one.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_mixers.atomic import write_atomic
from tools.data.minhash import node

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u4"), ("unused", "<u4")])
DOCUMENTS_AT_ONCE = 4_000_000  # some 400 MB while a range is sorted


def content_hash(text: str) -> bytes:
    """16 bytes of the normalised text."""
    content = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def write_hashes(hashes: Sequence[tuple[int, bytes]], path: Path) -> None:
    """(document's number in the task, hash) sorted by hash."""
    records = np.zeros(len(hashes), dtype=RECORD)
    halves = np.frombuffer(b"".join(digest for _, digest in hashes), dtype=">u8").reshape(-1, 2)
    records["high"], records["low"] = halves[:, 0], halves[:, 1]
    records["number"] = [number for number, _ in hashes]
    order = np.lexsort((records["number"], records["low"], records["high"]))
    write_atomic(path, records[order].tobytes())


def num_ranges(num_documents: int) -> int:
    return max(1, -(-num_documents // DOCUMENTS_AT_ONCE))


def duplicates_in_range(paths: Sequence[Path], index: int, count: int) -> npt.NDArray[np.int64]:
    """(document, first document with the same hash) of all but the first ones, [n, 2]; node numbers as in minhash.py.

    paths: of the tasks' hashes in input order. index of count: the range of hashes.
    """
    low, high = (np.uint64(min((1 << 64) * number // count, (1 << 64) - 1)) for number in (index, index + 1))
    parts, nodes = [], []
    for task, path in enumerate(paths):
        if not path.stat().st_size:
            continue
        records = np.memmap(path, dtype=RECORD, mode="r")
        start = int(np.searchsorted(records["high"], low)) if index else 0
        stop = int(np.searchsorted(records["high"], high)) if index + 1 < count else len(records)
        parts.append(np.array(records[start:stop]))
        nodes.append(node(task, parts[-1]["number"].astype(np.int64)))
    if not parts:
        return np.zeros((0, 2), dtype=np.int64)
    joined, places = np.concatenate(parts), np.concatenate(nodes)
    order = np.lexsort((places, joined["low"], joined["high"]))
    joined, places = joined[order], places[order]
    is_repeat = np.zeros(len(places), dtype=bool)
    is_repeat[1:] = (joined["high"][1:] == joined["high"][:-1]) & (joined["low"][1:] == joined["low"][:-1])
    first = places[np.maximum.accumulate(np.where(is_repeat, 0, np.arange(len(places))))]
    return np.stack([places[is_repeat], first[is_repeat]], axis=1)
