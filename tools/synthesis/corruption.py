"""Wrong content put into one text on purpose, and taken out again: numbers, nouns and adjectives.

A word or number that is chosen is changed wherever it stands in the pair, so that the pair is wrong but hangs together.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_mixers.errors import DataError
from data_mixers.permutation import keyed_hash
from tools.data.options import Texts
from tools.synthesis.options import ChangeKind
from tools.synthesis.vocabulary import Vocabulary

# Ours: of the different words and numbers of a wrong pair; the paper names neither types nor amounts.
CHANGED_OF_100 = 50
# Not inside a name (H2O, x1) or a longer number; thousands may have commas.
_NUMBER = re.compile(r"(?<![A-Za-z0-9_.])\d+(?:,\d{3})*(?:\.\d+)?(?![A-Za-z0-9_])")


@dataclass(frozen=True)
class Change:
    key: str
    start: int
    """Of `after`, in the changed text."""
    kind: ChangeKind
    before: str
    after: str


@dataclass(frozen=True)
class _Place:
    key: str
    start: int
    stop: int
    kind: ChangeKind
    word: str


def corrupt(
    fields: Mapping[str, Any], keys: Texts, *, vocabulary: Vocabulary | None, kinds: tuple[ChangeKind, ...], seed: str
) -> tuple[dict[str, Any], list[Change]]:
    """The record with wrong texts under `keys`, and every change; none if nothing in it can be changed.

    The first key's last number is always among the changes, if there is one: it is where the result stands.
    vocabulary: None changes numbers only. seed: decides everything; another record needs another seed.
    """
    texts: dict[str, str] = {key: fields[key] for key in keys if isinstance(fields.get(key), str)}
    places = [p for key, text in texts.items() for p in _places(text, key, vocabulary) if p.kind in kinds]
    chosen = _chosen(places, vocabulary, seed, keys[0])
    changed, changes = dict(fields), []
    for key, text in texts.items():
        here = [place for place in places if place.key == key and (place.kind, place.word) in chosen]
        changed[key], made = _apply(text, here, chosen)
        changes += made
    return changed, changes


def restore(fields: Mapping[str, Any], changes: list[Change]) -> dict[str, Any]:
    """The record before `corrupt`. Errors: DataError if a change is not where it is said to be."""
    restored = dict(fields)
    for change in sorted(changes, key=lambda change: change.start, reverse=True):
        text, stop = restored[change.key], change.start + len(change.after)
        if text[change.start : stop] != change.after:
            raise DataError(f"{change.key} of {fields.get('id')} has no {change.after!r} at {change.start}")
        restored[change.key] = text[: change.start] + change.before + text[stop:]
    return restored


def other_number(number: str, choice: int) -> str:
    """Another value of the same length and form: one digit is another one."""
    digits = [place for place, letter in enumerate(number) if letter.isdigit()]
    place = digits[choice % len(digits)]
    leads = place == 0 and number[1:2] != "."  # no number begins with 0, nor becomes 0: it may stand below a line
    allowed = [digit for digit in ("123456789" if leads else "0123456789") if digit != number[place]]
    return number[:place] + allowed[(choice // len(digits)) % len(allowed)] + number[place + 1 :]


def _places(text: str, key: str, vocabulary: Vocabulary | None) -> Iterator[_Place]:
    for match in _NUMBER.finditer(text):
        yield _Place(key, match.start(), match.end(), "number", match[0])
    for start, stop, kind in vocabulary.words(text) if vocabulary is not None else ():
        yield _Place(key, start, stop, kind, text[start:stop])


def _chosen(
    places: list[_Place], vocabulary: Vocabulary | None, seed: str, first_key: str
) -> dict[tuple[ChangeKind, str], str]:
    """What is put in for which word or number."""
    words = list(dict.fromkeys((place.kind, place.word) for place in places))
    results = [place.word for place in places if place.key == first_key and place.kind == "number"]
    must = ("number", results[-1]) if results else None
    found: dict[tuple[ChangeKind, str], str] = {}
    spare: list[tuple[int, tuple[ChangeKind, str], str]] = []
    for kind, word in words:
        drawn = keyed_hash("corrupt", seed, kind, word)
        choice = drawn // 100
        if kind == "number":
            other: str | None = other_number(word, choice)
        else:
            assert vocabulary is not None  # it found the word
            other = vocabulary.instead(word, kind, choice)
        if other is None or other == word:
            continue
        if (kind, word) == must or drawn % 100 < CHANGED_OF_100:
            found[kind, word] = other
        spare.append((drawn, (kind, word), other))
    if not found and spare:
        _, word_key, other = min(spare)
        found[word_key] = other
    return found


def _apply(text: str, places: list[_Place], chosen: Mapping[tuple[ChangeKind, str], str]) -> tuple[str, list[Change]]:
    parts, changes, position, length = [], [], 0, 0
    for place in sorted(places, key=lambda place: place.start):
        after = chosen[place.kind, place.word]
        parts += [text[position : place.start], after]
        length += place.start - position
        changes.append(Change(place.key, length, place.kind, place.word, after))
        length += len(after)
        position = place.stop
    return "".join([*parts, text[position:]]), changes
