"""Arithmetic as people and models write it, read by a grammar of its own: nothing of the text is ever executed.

    sum      := product (("+" | "-") product)*
    product  := factor (("*" | "/" | nothing) factor)*       nothing: only before a bracket, \\frac, \\sqrt, sqrt
    factor   := ("+" | "-") factor | power
    power    := atom "%"? ("^" factor)?
    atom     := number | "(" sum ")" | "sqrt" atom | "\\frac" atom atom | "\\sqrt" atom
A mixed number is not told from a product: a whole number right before \\frac is refused.
Accepted too: × · ÷ ∗ − ** \\times \\cdot \\div \\left \\right \\% { } [ ] and commas in thousands.
"""

import re
from dataclasses import dataclass

MAX_CHARACTERS = 500
MAX_DEPTH = 40
MAX_DIGITS = 60
MAX_EXPONENT = 10_000  # of a number with whole exponent; the bounded process stops what is still too large

_TOKEN = re.compile(r"\s*(?:(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)|(\\?[a-z]+)|(\*\*|[-+*/^()%]))")
_SPELLINGS = {
    "×": "*", "·": "*", "∗": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-", "（": "(", "）": ")", "％": "%",
    "√": " sqrt ", "\\times": "*", "\\cdot": "*", "\\ast": "*", "\\div": "/", "\\%": "%", "\\left": "", "\\right": "",
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\,": " ", "\\!": "", "\\;": " ", "{": "(", "}": ")", "[": "(", "]": ")",
    "$": "",
}  # fmt: skip
_SPELLING = re.compile("|".join(re.escape(name) for name in sorted(_SPELLINGS, key=len, reverse=True)))


@dataclass(frozen=True)
class Node:
    """A number, or an operation on parts: "+", "*", "/", "^", "-" (of one part), "sqrt"."""

    operation: str
    parts: tuple["Node", ...] = ()
    number: str = ""


class NotAnExpressionError(ValueError):
    """The text is not arithmetic of this grammar, or is larger than it may be."""


def parse(text: str) -> Node:
    """The expression as a tree. Errors: NotAnExpressionError, for names, unknown signs, or too long a text."""
    if len(text) > MAX_CHARACTERS:
        raise NotAnExpressionError(f"longer than {MAX_CHARACTERS} characters")
    reader = _Reader(_tokens(_SPELLING.sub(lambda found: _SPELLINGS[found[0]], text)))
    node = reader.sum(0)
    if reader.next is not None:
        raise NotAnExpressionError(f"{reader.next!r} is not expected")
    return node


def _tokens(text: str) -> list[str]:
    tokens, position, text = [], 0, text.strip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise NotAnExpressionError(f"{text[position : position + 10]!r} is not arithmetic")
        number, name, sign = found.groups()
        if name is not None and name not in ("sqrt", "\\sqrt", "\\frac"):
            raise NotAnExpressionError(f"the name {name!r}")
        if number is not None and len(number) > MAX_DIGITS:
            raise NotAnExpressionError(f"a number of {len(number)} digits")
        tokens.append(number.replace(",", "") if number else "^" if sign == "**" else (name or sign).lstrip("\\"))
        position = found.end()
    return tokens


class _Reader:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens[::-1]
        self._last = ""

    @property
    def next(self) -> str | None:
        return self._tokens[-1] if self._tokens else None

    def take(self) -> str:
        if not self._tokens:
            raise NotAnExpressionError("ends too early")
        self._last = self._tokens.pop()
        return self._last

    def sum(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise NotAnExpressionError(f"nested deeper than {MAX_DEPTH}")
        node = self.product(depth)
        while self.next in ("+", "-"):
            sign = self.take()
            part = self.product(depth)
            node = Node("+", (node, part if sign == "+" else Node("-", (part,))))
        return node

    def product(self, depth: int) -> Node:
        node = self.factor(depth)
        while self.next in ("*", "/", "(", "sqrt", "frac"):
            if self.next == "frac" and self._last.isdigit():
                raise NotAnExpressionError("a mixed number or a product")
            sign = self.take() if self.next in ("*", "/") else "*"
            node = Node(sign, (node, self.factor(depth)))
        return node

    def factor(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise NotAnExpressionError(f"nested deeper than {MAX_DEPTH}")
        if self.next in ("+", "-"):
            sign = self.take()
            part = self.factor(depth + 1)
            return part if sign == "+" else Node("-", (part,))
        node = self.atom(depth)
        if self.next == "%":
            self.take()
            node = Node("/", (node, Node("number", number="100")))
        if self.next == "^":
            self.take()
            node = Node("^", (node, self.factor(depth + 1)))
        return node

    def atom(self, depth: int) -> Node:
        token = self.take()
        if token == "(":
            node = self.sum(depth + 1)
            if self.take() != ")":
                raise NotAnExpressionError("a bracket is not closed")
            return node
        if token == "sqrt":
            return Node("sqrt", (self.atom(depth + 1),))
        if token == "frac":
            return Node("/", (self.argument(depth + 1), self.argument(depth + 1)))
        if not (token[0].isdigit() or token[0] == "."):
            raise NotAnExpressionError(f"{token!r} is not expected")
        return Node("number", number=token)

    def argument(self, depth: int) -> Node:
        r"""Of \frac: a bracket, or one digit alone as in \frac12."""
        token = self.next or ""
        if token.isdigit() and len(token) > 1:
            self._tokens[-1:] = [token[1:], token[0]]
        return self.atom(depth)
