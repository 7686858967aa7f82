"""Raw pages to clean text: markup off, white space settled, long works cut at their own borders."""

import re
import unicodedata
from html.parser import HTMLParser

BLOCKS = frozenset((
    "address", "article", "blockquote", "body", "dd", "div", "dl", "dt", "figure", "li", "ol", "p", "pre", "section",
    "td", "th", "tr", "ul",
))  # fmt: skip
HEADINGS = frozenset(f"h{level}" for level in range(1, 7))
VOID = frozenset(("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"))
SKIPPED_TAGS = frozenset(("aside", "footer", "head", "header", "nav", "noscript", "script", "style", "table"))
SKIPPED_CLASSES = frozenset(("MAC", "navfooter", "navheader", "toc"))  # MAC: the other system's key names
# From the strongest to the weakest: two blank lines (top level of code), one, a line's end, a sentence's end, a blank.
BORDERS = (r"(?<=\n\n\n)(?=\S)", r"(?<=\n\n)(?=\S)", r"(?<=\n)", r"(?<=[。！？；])", r"(?<=[.!?;] )", r"(?<= )")
# Control, format, surrogate and private-use characters; newline and tab stay.
INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\uf8ff\ufeff]"
)
SECTION = "\f"  # stands before a heading while a page is read


class _TextOfHtml(HTMLParser):
    """Collects the text of the element with id `root` (or of the whole page), one line per block element."""

    def __init__(self, root: str | None) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._root = root
        self._open: list[tuple[str, bool, bool]] = []  # tag, whether its text is wanted, whether it is preformatted

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br":
            self._add("\n")
        if tag in VOID:
            return
        attributes = dict(attrs)
        wanted, preformatted = self._open[-1][1:] if self._open else (self._root is None, False)
        wanted = wanted or (self._root is not None and attributes.get("id") == self._root)
        classes = set((attributes.get("class") or "").split())
        wanted = wanted and tag not in SKIPPED_TAGS and not classes & SKIPPED_CLASSES
        self._open.append((tag, wanted, preformatted or tag == "pre"))
        self._break(tag, opening=True)

    def handle_endtag(self, tag: str) -> None:
        if not any(tag == opened for opened, _, _ in self._open):
            return
        self._break(tag, opening=False)
        while self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][2]:
            self._add(data)
        else:
            text = re.sub(r"\s+", " ", data)
            at_line_start = not self.parts or self.parts[-1].endswith(("\n", SECTION, " "))
            self._add(text.lstrip() if at_line_start else text)

    def _break(self, tag: str, *, opening: bool) -> None:
        if tag in HEADINGS:
            self._add(SECTION if opening else "\n")
        elif tag in BLOCKS:
            self._add("\n")

    def _add(self, text: str) -> None:
        if self._open and self._open[-1][1]:
            self.parts.append(text)


def text_of_html(markup: str, *, root: str | None = None) -> str:
    """The readable text of an HTML page. Tables, navigation and scripts are left out; headings follow a blank line.

    root: id of the element that holds the content; None takes the whole page.
    """
    parser = _TextOfHtml(root)
    parser.feed(markup)
    parser.close()
    sections = (section.splitlines() for section in "".join(parser.parts).split(SECTION))
    cleaned = ("\n".join(line.rstrip() for line in section if line.strip()) for section in sections)
    return tidy("\n\n".join(section for section in cleaned if section))


def tidy(text: str) -> str:
    """NFC text without control characters, trailing blanks and runs of more than two newlines."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\u00a0", " ")
    text = INVISIBLE.sub("", text)
    text = re.sub(r"[ \t\u3000]+\n", "\n", text)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n ")


def without_indents(text: str) -> str:
    """Paragraphs of a printed book, one a line, without leading blanks (also ideographic ones) and blank lines."""
    return "\n".join(line for line in (line.strip(" \t\u3000") for line in text.splitlines()) if line)


def split_text(text: str, *, max_characters: int, min_characters: int) -> list[str]:
    """Cuts `text` at the strongest borders that give pieces of at most max_characters; nothing is lost but white space.

    A piece shorter than min_characters joins a neighbour, so a piece may reach the sum of both.
    """
    merged: list[str] = []
    for piece in _pack(text, max_characters, BORDERS):
        is_short = bool(merged) and min(len(merged[-1].strip()), len(piece.strip())) < min_characters
        if is_short and len(merged[-1]) + len(piece) <= max_characters + min_characters:
            merged[-1] += piece
        else:
            merged.append(piece)
    return [piece.strip("\n ") for piece in merged if piece.strip()]


def _pack(text: str, max_characters: int, borders: tuple[str, ...]) -> list[str]:
    if len(text) <= max_characters:
        return [text]
    if not borders:
        return [text[start : start + max_characters] for start in range(0, len(text), max_characters)]
    packed = [""]
    for part in re.split(borders[0], text):
        if len(packed[-1]) + len(part) <= max_characters:
            packed[-1] += part
        elif len(part) <= max_characters:
            packed.append(part)
        else:
            packed += _pack(part, max_characters, borders[1:])
    return packed


def share_of_chinese(text: str) -> float:
    """Share of Chinese characters among the characters that are not white space."""
    visible = [c for c in text if not c.isspace()]
    return sum("\u3400" <= c <= "\u9fff" for c in visible) / max(len(visible), 1)
