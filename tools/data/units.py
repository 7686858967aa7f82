"""Text as units that n-grams are made of: one Han or Kana character, or one word of any other script.

So a 5-gram is five characters of Chinese and five words of English, in one pass over a page that holds both: Chinese
has no blanks between words, and cutting it into words needs a dictionary whose cuts move with their context.
Normalised: NFKC, case folded; punctuation, symbols and white space only separate.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

HAN_AND_KANA = "\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNIT = re.compile(f"[{HAN_AND_KANA}]|[^\\W_{HAN_AND_KANA}]+")
_HAN = re.compile(f"[{HAN_AND_KANA}]")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of an earlier unit is shifted out for good
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_KEPT_HASHES = 1 << 19  # of units, some 100 MB; a page's own words come again, so a table begun anew soon serves
MOST_FILTER_BITS = 26

Hashes = npt.NDArray[np.uint64]


def units_of(text: str) -> list[str]:
    return _UNIT.findall(unicodedata.normalize("NFKC", text).casefold())


def num_han(units: Sequence[str]) -> int:
    """How many units are Han or Kana characters."""
    return len(_HAN.findall("".join(units)))


def hashes_of(units: Sequence[str]) -> Hashes:
    """64 bits per unit, the same on every machine."""
    if len(_table) > _KEPT_HASHES:
        _table.clear()
    return np.fromiter(map(_table.__getitem__, units), dtype=np.uint64, count=len(units))


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """64 bits per n-gram, in the order of their first units; empty if there are fewer than n units.

    Of M known n-grams and N looked up, N · M / 2**64 agree by chance.
    """
    count = len(hashes) - n + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    total = hashes[:count].copy()
    for offset in range(1, n):
        total *= _BASE
        total += hashes[offset : offset + count]
    total ^= total >> np.uint64(31)  # MinHash and tables by leading bits need every bit to depend on every unit
    total *= _MIX
    total ^= total >> np.uint64(29)
    return total


class HashTable:
    """Ascending, different hashes behind a filter by their leading bits, which seven of eight strangers fail up to 8 M.

    To look one up among millions takes ten times as long. Memory: beside the hashes a byte for each number of so many
    bits, 2**least_bits at least and 64 MB at most.
    """

    def __init__(self, hashes: Hashes, *, least_bits: int) -> None:
        self.hashes = hashes
        self._bits = min(max((8 * len(hashes)).bit_length(), least_bits), MOST_FILTER_BITS)
        self.filter = np.zeros(1 << self._bits, dtype=bool)
        self.filter[self._leading(hashes)] = True

    def find(self, hashes: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(places of the hashes that are in the table, their places in the table)."""
        candidates = np.flatnonzero(self.filter[self._leading(hashes)])
        found = np.searchsorted(self.hashes, hashes[candidates])
        found[found == len(self.hashes)] = 0
        hits = self.hashes[found] == hashes[candidates]
        return candidates[hits], found[hits]

    def _leading(self, hashes: Hashes) -> Hashes:
        return hashes >> np.uint64(64 - self._bits)


class _Table(dict[str, int]):
    def __missing__(self, unit: str) -> int:
        value = int.from_bytes(hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        self[unit] = value
        return value


_table = _Table()
