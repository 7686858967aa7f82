"""What a report consists of, before anybody asks how it is shown. Every string is plain text; writers escape it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML forbids or a terminal obeys: control characters, and halves of a surrogate pair, which UTF-8 cannot hold."""


def printable(text: str) -> str:
    """The same with a replacement character for what no file or terminal should be given."""
    return _UNPRINTABLE.sub("\ufffd", text)


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Missing:
    """Something that could not be read or shown, with the reason."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a header. The first `num_text_columns` are text, the others numbers, aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_text_columns: int = 1


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    label: str
    colour: str
    dash: str = ""
    """SVG stroke-dasharray; empty: solid."""
    kind: Literal["line", "area"] = "line"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing with its title and what a person who cannot see it is told."""

    title: str
    alt: str
    svg: str
    """An <svg> element made by `figures`, the one string that is markup."""
    legend: Sequence[LegendEntry] = ()


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A piece of text that was trained on."""

    title: str
    facts: Sequence[str]
    text: str


Block = Text | Missing | Table | Figure | Excerpt


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    title: str
    subtitle: str
    sections: Sequence[Section]
