"""Final answers in one notation, so that samples of one question can be compared: numbers, fractions, choices, text."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

_LATEX = (
    (re.compile(r"\\(?:boxed|fbox|text|mathrm|mathbf|textbf|mbox|mathit)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"(\1)/(\2)"),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r"\1/\2"),
    (re.compile(r"\\sqrt\s*\{([^{}]*)\}"), r"sqrt(\1)"),
    (re.compile(r"\\(?:left|right|displaystyle|quad|qquad|[,;!: ])"), ""),
    (re.compile(r"\\(?:times|cdot)"), "*"),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ|\\degree"), "°"),
    (re.compile(r"\\[()\[\]]|\$"), ""),
)
_CHOICE = re.compile(
    r"(?:option|choice|选项?|故选|应选)?\s*[(（\[]?\s*([a-h])\s*[)）\]]?(?:[.、:：].*)?", re.IGNORECASE
)
_NUMBER = re.compile(r"([-+]?)(\d{1,3}(?:,\d{3})+|\d*)(\.\d+)?(?:e([-+]?\d{1,3}))?(%?)")
_FRACTION = re.compile(r"([-+]?)\(?\s*([-+]?\d+)\s*\)?\s*/\s*\(?\s*([-+]?\d+)\s*\)?")
_EQUATION = re.compile(r"^[a-zα-ω](?:\([a-z]\))?\s*=\s*", re.IGNORECASE)


@dataclass(frozen=True)
class FinalAnswer:
    """Equal ones agree; so do numbers of which one is the other, rounded."""

    text: str
    number: Fraction | None
    decimals: int | None
    """Digits behind the point where a number is written with one: it may be rounded."""
    unit: str = ""


def normalised(text: str) -> FinalAnswer:
    r"""`\boxed{\frac{1}{2}}`, `x = 1/2` and `1/2` are one; `(B)`, `B.` and `选B` are one; so are `1,000` and `1000`.

    A unit behind a number is kept apart; 5 cm and 5 m differ.
    """
    plain = _plain(text)
    choice = _CHOICE.fullmatch(plain)
    if choice is not None:
        return FinalAnswer(choice[1].casefold(), None, None)
    value = _EQUATION.sub("", plain).lstrip("$¥€£").strip()
    fraction = _FRACTION.fullmatch(value)
    if fraction is not None and int(fraction[3]) != 0:
        number = Fraction(int(fraction[2]), int(fraction[3])) * (-1 if fraction[1] == "-" else 1)
        return FinalAnswer(str(number), number, None)
    found = _NUMBER.match(value)
    if found is not None and (found[2] or found[3]):
        unit = value[found.end() :].strip()
        if not re.search(r"[-+*/^=(\d]", unit.replace("^2", "²").replace("^3", "³")):
            return _numeric(found, unit)
    return FinalAnswer(re.sub(r"\s+", "", plain).casefold(), None, None)


def _plain(text: str) -> str:
    previous, text = "", text
    while text != previous:  # nested commands open up from the inside
        previous = text
        for pattern, instead in _LATEX:
            text = pattern.sub(instead, text)
    text = unicodedata.normalize("NFKC", text.replace("−", "-").replace("×", "*")).replace("**", "")
    return text.strip().rstrip(".。;,，").strip()


def _numeric(found: re.Match[str], unit: str) -> FinalAnswer:
    sign, whole, part, exponent, percent = found.groups()
    number = Fraction(f"{sign}{whole.replace(',', '') or '0'}{part or ''}e{exponent or 0}")
    decimals = None if part is None else len(part) - 1 - int(exponent or 0)
    if percent:
        number, decimals = number / 100, None if decimals is None else decimals + 2
    return FinalAnswer(f"{number}{unit.casefold()}", number, decimals, re.sub(r"\s+", "", unit).casefold())


def agree(one: FinalAnswer, other: FinalAnswer) -> bool:
    """Whether they state the same result; of two numbers, one may be the other rounded to its decimals."""
    if one.number is None or other.number is None:
        return one.text == other.text
    if one.unit != other.unit and one.unit and other.unit:
        return False
    rounded = [found.decimals for found in (one, other) if found.decimals is not None]
    tolerance = Fraction(1, 2) / 10 ** min(rounded) if rounded and min(rounded) >= 0 else Fraction(0)
    return abs(one.number - other.number) <= tolerance


def majority(answers: Sequence[FinalAnswer]) -> tuple[int, list[bool]]:
    """(the answer most others agree with, the first of equals; who agrees with it)."""
    votes = [[agree(one, other) for other in answers] for one in answers]
    best = max(range(len(answers)), key=lambda place: (sum(votes[place]), -place))
    return best, votes[best]
