"""English nouns and adjectives from WordNet's own files (Debian: wordnet-base), see wndb(5WN) and cntlist(5WN).

NLTK's reader asks for files that Debian keeps in other packages (lexnames, index.sense), so these four are read here.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from data_mixers.errors import ConfigError, DataError
from tools.synthesis.vocabulary import WordKind, first_that

FOLDER = Path("/usr/share/wordnet")
CURE = "apt-get install wordnet-base, or name its folder with --wordnet"
# Times in the tagged texts: a candidate must be known to readers, and a word must be a noun more than anything else.
FEWEST_USES = 5
CLEAR_MAJORITY = 2
# WordNet has no function words, so that it takes these for nouns or adjectives alone.
_FUNCTION_WORDS = {"will", "being", "used", "while", "can", "may", "might", "must"}
_PART = {"1": "noun", "2": "verb", "3": "adjective", "4": "adverb", "5": "adjective"}
_WORD = re.compile(r"(?<![A-Za-z0-9\\_'-])[A-Za-z]{3,}(?![A-Za-z0-9_'-])")


class WordNet:
    """Nouns against nouns of the same field (food, body, artifact, ...) that mean neither the same nor a kind of it."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder or FOLDER
        uses, fields = self._uses()
        self._senses = self._index("noun")
        self._data = self._path("data.noun").read_bytes()
        self._field = {
            lemma: fields[lemma]
            for lemma, counts in uses.items()
            if counts["noun"] >= CLEAR_MAJORITY * max(1, counts.total() - counts["noun"]) and self._is_common(lemma)
        }
        self._by_field: dict[str, list[str]] = defaultdict(list)
        for lemma, field in self._field.items():
            if uses[lemma]["noun"] >= FEWEST_USES:
                self._by_field[field].append(lemma)
        self._antonyms = {
            lemma: other
            for lemma, other in self._all_antonyms().items()
            if uses[lemma]["adjective"] > uses[lemma].total() / 2
        }

    def words(self, text: str) -> Iterator[tuple[int, int, WordKind]]:
        for match in _WORD.finditer(text):
            word = match[0].lower()
            if word in _FUNCTION_WORDS:
                continue
            if word in self._antonyms:
                yield match.start(), match.end(), "adjective"
            elif self._lemma(word) is not None:
                yield match.start(), match.end(), "noun"

    def instead(self, word: str, kind: WordKind, choice: int) -> str | None:
        lower = word.lower()
        if kind == "adjective":
            return _like(word, self._antonyms[lower])
        lemma = self._lemma(lower)
        assert lemma is not None

        def fits(other: str) -> bool:
            """The same kind of first letter, so that "a" and "an" stay right."""
            return (other[0] in "aeiou") == (lemma[0] in "aeiou") and not self._related(lemma, other)

        other = first_that(fits, self._by_field[self._field[lemma]], choice)
        return other and _like(word, _plural(other) if lemma != lower else other)

    def _is_common(self, lemma: str) -> bool:
        """Whether its first sense writes it in small letters: no name."""
        return lemma in self._senses and lemma in self._line(self._senses[lemma][0]).split()

    def _line(self, offset: int) -> str:
        return self._data[offset : self._data.index(b"\n", offset)].decode().partition("|")[0]

    def _lemma(self, word: str) -> str | None:
        """The noun of which this is the singular or a regular plural."""
        forms = [word]
        if word.endswith("ies"):
            forms.append(f"{word[:-3]}y")
        if word.endswith("s") and not word.endswith("ss"):
            forms += [word[:-1], word.removesuffix("es")]
        return next((form for form in forms if form in self._field), None)

    def _related(self, one: str, other: str) -> bool:
        """Whether they share a meaning, or a meaning of one is a kind of a meaning of the other."""
        mine, theirs = set(self._senses[one]), set(self._senses[other])
        return bool(
            mine & theirs
            or theirs & {parent for sense in mine for parent in self._parents(sense)}
            or mine & {parent for sense in theirs for parent in self._parents(sense)}
        )

    @cache  # noqa: B019  # one object lives as long as the command
    def _parents(self, offset: int) -> tuple[int, ...]:
        return tuple(int(found) for found in re.findall(r" @i? (\d{8}) n", self._line(offset)))

    def _uses(self) -> tuple[dict[str, Counter[str]], dict[str, str]]:
        """How often each word was tagged as which part of speech, and the field of its most frequent noun sense."""
        uses: dict[str, Counter[str]] = defaultdict(Counter)
        fields: dict[str, str] = {}
        for line in self._lines("cntlist.rev"):
            key, sense_number, count = line.split()
            lemma, _, rest = key.partition("%")
            part, field = rest.split(":")[:2]
            if re.fullmatch(r"[a-z]{3,}", lemma):
                uses[lemma][_PART[part]] += int(count)
                if part == "1" and (sense_number == "1" or lemma not in fields):
                    fields[lemma] = field
        return uses, fields

    def _all_antonyms(self) -> dict[str, str]:
        """Of the first sense that has one."""
        words: dict[int, list[str]] = {}
        pointers: dict[int, list[tuple[int, int, int]]] = {}
        for line in self._lines("data.adj"):
            entries = line.partition("|")[0].split()
            offset, count = int(entries[0]), int(entries[3], 16)
            words[offset] = [re.sub(r"\(.*\)", "", entry).lower() for entry in entries[4 : 4 + 2 * count : 2]]
            rest = entries[4 + 2 * count + 1 :]
            pointers[offset] = [
                (int(rest[i + 1]), int(rest[i + 3][:2], 16), int(rest[i + 3][2:], 16))
                for i in range(0, len(rest) - 3, 4)
                if rest[i] == "!"
            ]
        found: dict[str, str] = {}
        for lemma, senses in self._index("adj").items():
            for offset in senses:
                for target, source_word, target_word in pointers[offset]:
                    other = words[target][target_word - 1]
                    if words[offset][source_word - 1] == lemma and re.fullmatch(r"[a-z]{3,}", other):
                        found.setdefault(lemma, other)
        return found

    def _index(self, part: str) -> dict[str, list[int]]:
        """The offsets of each word's senses in data.<part>, most frequent first."""
        senses = {}
        for line in self._lines(f"index.{part}"):
            entries = line.split()
            if re.fullmatch(r"[a-z]{3,}", entries[0]):
                senses[entries[0]] = [int(offset) for offset in entries[-int(entries[2]) :]]
        return senses

    def _lines(self, name: str) -> Iterator[str]:
        """Without the licence at the top, whose lines begin with spaces."""
        try:
            with self._path(name).open(encoding="utf-8") as stream:
                yield from (line for line in stream if not line.startswith("  "))
        except (ValueError, LookupError) as error:
            raise DataError(f"{self._path(name)} is damaged ({error!r}); {CURE}") from error

    def _path(self, name: str) -> Path:
        path = self._folder / name
        if not path.is_file():
            raise ConfigError(f"{path} is missing; English nouns and antonyms come from WordNet: {CURE}")
        return path


def _plural(noun: str) -> str:
    if re.search(r"[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if re.search(r"(s|x|z|ch|sh)$", noun) else f"{noun}s"


def _like(pattern: str, word: str) -> str:
    """With the capitals of `pattern`."""
    if pattern.isupper():
        return word.upper()
    return word.capitalize() if pattern[0].isupper() else word
