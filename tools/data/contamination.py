"""How much of a text is in benchmarks, by n-grams of units (tools/data/units.py).

datatrove's own n-gram blocks are not used: their indexer wants lighteval for every benchmark, their words of Chinese
want spaCy, and their filter knows any hit alone, neither shares nor which item was hit. Here a page's n-grams are
looked up as one array in a sorted one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tools.data.benchmark_items import Benchmark, read_benchmark
from tools.data.units import Hashes, HashTable, hashes_of, ngram_hashes, units_of

SHORTEST_ITEM = 8  # units: the shortest n-gram of the contamination studies of GPT-3 (arXiv 2005.14165, appendix C)
LEAST_FILTER_BITS = 20


@dataclass(frozen=True, kw_only=True)
class Contamination:
    share: float
    """Of its n-grams, counted at every place, those in a benchmark; 1 if a whole short item is in it and no n-gram is
    counted, i.e. the text is shorter than n."""
    ngram: str
    """The first one that matches, normalised."""
    items: tuple[int, ...]
    """Numbers of the items that own a matching n-gram; an n-gram belongs to the first item that has it. The first is
    the owner of `ngram`."""
    short_share: float
    """Of its units, those of the longest whole short item that is in it."""


class NgramIndex:
    """All n-grams of the benchmarks' items.

    An item of 8 to n - 1 units is sought as a whole; a shorter one cannot be found and is counted.
    questions: an item's question is an item too, if it is so short that the n-grams of the whole do not hold it.
    Memory: 28 bytes an n-gram of the benchmarks at most, and 1 MB a length.
    """

    def __init__(self, benchmarks: Sequence[Benchmark], n: int, *, questions: bool = False) -> None:
        self.n = n
        self.benchmarks = tuple(benchmarks)
        self.owners: list[tuple[int, int]] = []
        """Item number -> (benchmark, line)."""
        self.num_too_short = [0] * len(benchmarks)
        grams: dict[int, list[tuple[Hashes, int]]] = {}
        for number, benchmark in enumerate(benchmarks):
            for item in benchmark.items:
                for text in dict.fromkeys((item.text, item.question) if questions else (item.text,)):
                    hashes = hashes_of(units_of(text))
                    length = min(n, len(hashes))
                    if text is not item.text and length == n:
                        continue  # its n-grams are those of the item
                    if length < min(n, SHORTEST_ITEM):
                        self.num_too_short[number] += text is item.text
                    grams.setdefault(length, []).append((ngram_hashes(hashes, length), len(self.owners)))
                    self.owners.append((number, item.line))
        self._tables = {
            length: _table(found) for length, found in sorted(grams.items()) if length >= min(n, SHORTEST_ITEM)
        }

    def look_up(self, text: str) -> Contamination | None:
        """None if the text shares nothing."""
        units = units_of(text)
        hashes = hashes_of(units)
        items: set[int] = set()
        first: tuple[int, int, int] | None = None  # place, length, owner
        num_hits = longest = 0
        for length, (table, owner_of) in self._tables.items():
            places, at = table.find(ngram_hashes(hashes, length))
            if not len(places):
                continue
            owners = owner_of[at]
            items.update(owners.tolist())
            first = min(first or (len(units), 0, 0), (int(places[0]), length, int(owners[0])))
            num_hits += len(places) if length == self.n else 0
            longest = max(longest, length if length < self.n else 0)
        if first is None:
            return None
        count = len(hashes) - self.n + 1
        share = num_hits / count if count > 0 else 1.0
        place, length, owner = first
        ngram = _shown(units[place : place + length])
        return Contamination(
            share=share, ngram=ngram, items=(owner, *sorted(items - {owner})), short_share=longest / len(units)
        )


@lru_cache(maxsize=1)  # once a process
def open_index(paths: tuple[Path, ...], keys: tuple[str, ...], n: int, *, questions: bool = False) -> NgramIndex:
    """Of benchmarks in files; paths, keys: as in read_benchmark; questions: as in NgramIndex."""
    return NgramIndex([read_benchmark(path, keys) for path in paths], n, questions=questions)


def _table(grams: list[tuple[Hashes, int]]) -> tuple[HashTable, npt.NDArray[np.int32]]:
    """(Different n-grams, the first item that has each)."""
    hashes, first = np.unique(np.concatenate([found for found, _ in grams]), return_index=True)
    owners = np.repeat(np.array([owner for _, owner in grams], dtype=np.int32), [len(found) for found, _ in grams])
    return HashTable(hashes, least_bits=LEAST_FILTER_BITS), owners[first]


def _shown(units: Sequence[str]) -> str:
    """Units as a person reads them: no blanks between single characters."""
    text = ""
    for unit in units:
        text += unit if not text or (len(unit) == 1 and ord(unit) > 0x2E7F) else f" {unit}"
    return text
