"""A topic: problems 0 .. size-1, each number another problem, and what its wording needs to be written down."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

Kind = Literal["arithmetic", "number_theory", "algebra", "calculus", "chemistry"]
KINDS: tuple[Kind, ...] = ("arithmetic", "number_theory", "algebra", "calculus", "chemistry")

Values = dict[str, str]
"""Texts for the places of a wording; "final" is the result in a notation without words."""


class Choices:
    """Every combination of one value of each list, numbered from 0: Choices(a=[1, 2], b=[5, 7])[3] is a=2, b=7."""

    def __init__(self, **lists: Sequence[Any]) -> None:
        self._lists = lists
        self.size = math.prod(len(values) for values in lists.values())

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """The values in the order of the lists; the last list changes fastest."""
        found = []
        for values in reversed(self._lists.values()):
            index, place = divmod(index, len(values))
            found.append(values[place])
        return tuple(reversed(found))


@dataclass(frozen=True)
class Topic:
    name: str
    """Key of the wordings."""
    discipline: str
    size: int
    make: Callable[[int, str], Values]
    """make(number, language)."""


def over(name: str, choices: Choices, make: Callable[..., Values], *, discipline: str = "mathematics") -> Topic:
    """A topic without words of any language in its values: make(a, b, ...) gets what `choices` holds."""
    return Topic(name, discipline, choices.size, lambda index, language: make(*choices[index]))


def nonzero(limit: int) -> list[int]:
    """-limit .. limit without 0."""
    return [value for value in range(-limit, limit + 1) if value]


def signed(value: int) -> str:
    """ "+ 3" or "- 3", to stand after a term."""
    return f"+ {value}" if value >= 0 else f"- {-value}"


def bracketed(shown: int | str) -> str:
    """A number or term as a factor or base: (-3), 3."""
    text = str(shown)
    return f"({text})" if text.startswith("-") else text


def plain(value: Decimal) -> str:
    """Without exponent and without zeros at the end."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
