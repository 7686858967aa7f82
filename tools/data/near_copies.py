"""Which documents hold most of a held-out document's 5-grams of tokens: copies with small changes, or pages around it.

Only the held-out documents' 5-grams are in memory. Every training document is compared with all of them exactly, up to
collisions of 64-bit hashes; nothing is sampled, so nothing is missed by chance.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_mixers.atomic import publish
from megatron_synE.data.indexed import IndexedFile
from tools.data.units import Hashes, HashTable, ngram_hashes

NGRAM = 5
HELD_SHARE = 0.5
"""Ours: a document is a near copy if it holds this share of a held-out document's different 5-grams. A Jaccard
similarity of 1/2 implies it, and so does a page that holds half of a held-out one; of two texts that differ in one
token of twenty some 3/4 are common."""
LEAST_NGRAMS = 10  # so many must be common, or all of a shorter document's: no document goes for a turn of phrase
COMMON = 10  # 5-grams that more held-out documents share are boilerplate, and not counted
BLOCK_TOKENS = 1 << 17  # hashed at once
LEAST_FILTER_BITS = 24

TABLE = ("hashes", "starts", "owners", "needed")
Numbers = npt.NDArray[np.int64]


class NearCopies:
    """The 5-grams of the held-out documents. `build` writes them into a folder, `open` maps them."""

    def __init__(self, hashes: npt.NDArray[np.uint64], starts: Numbers, owners: Numbers, needed: Numbers) -> None:
        """hashes: ascending, different; owners[starts[i]:starts[i + 1]] are the held-out documents that have the i-th.

        needed: how many of each held-out document's 5-grams make a near copy.
        """
        self._table = HashTable(hashes, least_bits=LEAST_FILTER_BITS)
        self._starts, self._owners, self._needed = starts, owners, needed

    @classmethod
    def open(cls, folder: Path) -> "NearCopies":
        """What `build` wrote: 24 bytes a held-out token, once in memory for all workers of a machine."""
        paths = (folder / f"{name}.npy" for name in TABLE)
        return cls(*(np.asarray(np.load(path, mmap_mode="r")) for path in paths))

    @staticmethod
    def build(folder: Path, held_out: Sequence[Path]) -> None:
        """The table of all documents of these token files, given by prefix."""
        all_hashes, all_owners = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
        num_documents = 0
        for prefix in held_out:
            file = IndexedFile(prefix)
            bounds = file.document_ranges()
            for first, last in _blocks(np.diff(bounds)):
                tokens = np.asarray(file.tokens(int(bounds[first]), int(bounds[last])))
                hashes = ngram_hashes(tokens.astype(np.uint64), NGRAM)
                documents, is_text = _documents_of(np.arange(len(hashes)), np.diff(bounds[first : last + 1]))
                all_hashes.append(hashes[is_text])
                all_owners.append(documents[is_text] + num_documents + first)
            num_documents += file.num_documents
        table = _table(np.concatenate(all_hashes), np.concatenate(all_owners), num_documents)
        for name, array in zip(TABLE, table, strict=True):
            temporary = folder / f".{name}.npy.tmp"
            with temporary.open("wb") as stream:
                np.save(stream, array)
            publish(temporary, folder / f"{name}.npy")

    @classmethod
    def of(cls, documents: Sequence[Hashes]) -> "NearCopies":
        """The table of documents given as hashes of their units (tools/data/units.py), in place of tokens."""
        hashes = [ngram_hashes(units, NGRAM) for units in documents]
        owners = np.repeat(np.arange(len(documents)), [len(found) for found in hashes])
        return cls(*_table(np.concatenate([np.zeros(0, dtype=np.uint64), *hashes]), owners, len(documents)))

    def is_near(self, units: Hashes) -> bool:
        """Whether a document, given as `of` takes it, is a near copy."""
        return bool(self.are_near(np.append(units, np.uint64(0)), np.array([len(units) + 1]))[0])

    def are_near(self, tokens: npt.NDArray[np.integer], lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Which of the documents, lying one after the other with EOS, are near copies of held-out ones."""
        near = np.zeros(len(lengths), dtype=bool)
        ends = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)))
        if len(self._table.hashes):
            for first, last in _blocks(lengths):
                part = tokens[ends[first] : ends[last]]
                near[first + self._near_in(part, lengths[first:last])] = True
        return near

    def _near_in(self, tokens: npt.NDArray[np.integer], lengths: npt.NDArray[np.integer]) -> Numbers:
        """The numbers of near copies among a block of documents."""
        places, at = self._table.find(ngram_hashes(tokens.astype(np.uint64), NGRAM))
        if not len(places):
            return places  # most documents, where each is looked up alone
        documents, is_text = _documents_of(places, lengths)
        documents, at = _different(documents[is_text], at[is_text])
        counts = self._starts[at + 1] - self._starts[at]
        ends = np.cumsum(counts)
        # start, start + 1, ... of each hash, one after the other
        places = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(self._starts[at] - (ends - counts), counts)
        owners = self._owners[places]
        pairs, common = np.unique(np.repeat(documents, counts) * len(self._needed) + owners, return_counts=True)
        return np.unique(pairs[common >= self._needed[pairs % len(self._needed)]] // len(self._needed))


def _table(hashes: Hashes, owners: Numbers, num_documents: int) -> tuple[Hashes, Numbers, Numbers, Numbers]:
    """TABLE, of the 5-grams of all documents with the document that each is of."""
    owners, hashes = _different(owners, hashes)
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    unique, starts, counts = np.unique(hashes, return_index=True, return_counts=True)
    kept = counts <= COMMON
    owners = owners[np.repeat(kept, counts)]
    unique, counts = unique[kept], counts[kept]
    sizes = np.bincount(owners, minlength=num_documents)
    needed = np.maximum(np.ceil(HELD_SHARE * sizes).astype(np.int64), np.minimum(sizes, LEAST_NGRAMS))
    starts = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)))
    return unique, starts, owners, needed


def _documents_of(places: Numbers, lengths: npt.NDArray[np.integer]) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """(The document in which each 5-gram begins, whether it ends there before EOS, the document's last token)."""
    ends = np.cumsum(lengths, dtype=np.int64)
    documents = np.searchsorted(ends, places, side="right")
    return documents, places + NGRAM < ends[documents]


def _different(documents: Numbers, values: Any) -> tuple[Numbers, Any]:
    order = np.lexsort((values, documents))
    documents, values = documents[order], values[order]
    fresh = np.ones(len(documents), dtype=bool)
    fresh[1:] = (documents[1:] != documents[:-1]) | (values[1:] != values[:-1])
    return documents[fresh], values[fresh]


def _blocks(lengths: npt.NDArray[np.integer]) -> Iterator[tuple[int, int]]:
    """Ranges of whole documents of about BLOCK_TOKENS."""
    ends = np.cumsum(lengths, dtype=np.int64)
    first = 0
    while first < len(ends):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + BLOCK_TOKENS, side="right")))
        yield first, last
        first = last
