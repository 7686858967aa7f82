"""What the rules of `syne data clean` measure of a text: its length and how much of it repeats itself.

Shares are of characters inside units (tools/data/units.py), so that neither blanks nor punctuation dilute them, and a
character counts once however many n-grams cover it. The idea of the repetition shares is Gopher's (arXiv 2112.11446,
table A1); theirs are of words and let overlapping n-grams count twice.
"""

import re
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tools.data.units import Hashes, hashes_of, ngram_hashes, num_han, units_of

_PARAGRAPH = re.compile(r"\n\s*\n")


class Measured:
    """A text with its measures, each computed when it is asked for."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._duplicates: dict[int, float] = {}

    @cached_property
    def _units(self) -> list[str]:
        return units_of(self._text)

    @cached_property
    def hashes(self) -> Hashes:
        """Of its units."""
        return hashes_of(self._units)

    @cached_property
    def _lengths(self) -> npt.NDArray[np.int64]:
        return np.fromiter(map(len, self._units), dtype=np.int64, count=len(self._units))

    @property
    def num_units(self) -> int:
        return len(self._units)

    @cached_property
    def is_mostly_han(self) -> bool:
        """Whether more than half of the units are Han or Kana characters."""
        return 2 * num_han(self._units) > self.num_units

    @cached_property
    def _num_characters(self) -> int:
        return max(1, int(self._lengths.sum()))

    @property
    def mean_unit_length(self) -> float:
        return self._num_characters / max(1, self.num_units)

    def duplicate_line_share(self) -> float:
        """Share of lines that stand earlier in the text already; blank lines do not count."""
        return _duplicate_share(self._text.splitlines(), by_characters=False)

    def duplicate_line_character_share(self) -> float:
        return _duplicate_share(self._text.splitlines(), by_characters=True)

    def duplicate_paragraph_share(self) -> float:
        """As for lines; a paragraph ends at a blank line."""
        return _duplicate_share(_PARAGRAPH.split(self._text), by_characters=False)

    def duplicate_paragraph_character_share(self) -> float:
        return _duplicate_share(_PARAGRAPH.split(self._text), by_characters=True)

    def top_ngram_share(self, n: int) -> float:
        """Share of characters inside the most frequent n-gram, the first of equals; 0 if none comes twice."""
        grams = ngram_hashes(self.hashes, n)
        _, firsts, counts = np.unique(grams, return_index=True, return_counts=True)
        if len(firsts) == len(grams):
            return 0.0
        best = firsts[counts == counts.max()].min()
        return self._covered_share(np.flatnonzero(grams == grams[best]), n)

    def duplicate_ngram_share(self, n: int) -> float:
        """Share of characters inside n-grams that came earlier in the text."""
        if n not in self._duplicates:
            grams = ngram_hashes(self.hashes, n)
            _, firsts = np.unique(grams, return_index=True)
            self._duplicates[n] = self._covered_share(np.delete(np.arange(len(grams)), firsts), n)
        return self._duplicates[n]

    def duplicate_ngram_share_bound(self, n: int) -> float:
        """What `duplicate_ngram_share(n)` cannot exceed, from what was measured so far.

        An n-gram that came earlier is covered by shorter ones that came earlier too: the share falls with n.
        """
        return min((share for shorter, share in self._duplicates.items() if shorter <= n), default=1.0)

    def _covered_share(self, starts: npt.NDArray[np.int64], n: int) -> float:
        if not len(starts):
            return 0.0
        edges = np.zeros(self.num_units + 1, dtype=np.int64)
        np.add.at(edges, starts, 1)
        np.add.at(edges, starts + n, -1)
        return float(self._lengths[np.cumsum(edges[:-1]) > 0].sum()) / self._num_characters


def _duplicate_share(parts: list[str], *, by_characters: bool) -> float:
    stripped = [part for part in map(str.strip, parts) if part]
    total, of_different = (sum(map(len, some)) if by_characters else len(some) for some in (stripped, set(stripped)))
    return (total - of_different) / max(1, total)
