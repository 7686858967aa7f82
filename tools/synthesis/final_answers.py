"""Final answers in one notation, so that samples of one question can be compared: numbers, fractions, choices, text."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 1000  # ours: more is no result but a model that repeats itself, and no number that Python reads
_LATEX = (
    (re.compile(r"\\pi(?![a-zA-Z])\s*"), "π"),
    (re.compile(r"\\(?:boxed|fbox|text|mathrm|mathbf|textbf|mbox|mathit)\s*\{([^{}]*)\}"), r"\1"),
    # With a blank before them, which tells a mixed number from a longer numerator.
    (re.compile(r"\\[dt]?frac\s*\{\s*(\w+)\s*\}\s*\{\s*(\d+|\w)\s*\}"), r" \1/\2"),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r" (\1)/(\2)"),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r" \1/\2"),
    (re.compile(r"\\sqrt\s*\{([^{}]*)\}"), r"sqrt(\1)"),
    (re.compile(r"\\(?:left|right|displaystyle|quad|qquad|[,;!: ])"), ""),
    (re.compile(r"\\(?:times|cdot)"), "*"),
    (re.compile(r"\\approx"), "≈"),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ|\\degree"), "°"),
    (re.compile(r"\^\s*\{\s*([-+]?(?:\d+|\w))\s*\}(?!\d)"), r"^\1"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\[()\[\]]|\\?\$"), ""),
)
_RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴-⁹]+")
_ONE_SIGN_FRACTION = re.compile("[¼-¾⅐-⅞]")
_POWER_OF_TEN = re.compile(r"(?<=\d)\s*[*·]\s*10\s*\^\s*([-+]?\d{1,3})(?!\d)")
_BARE_POWER = re.compile(r"^([-+]?)10\s*\^\s*([-+]?\d{1,3})(?!\d)")
# Behind a number: then it is no number with a unit. A letter that stands alone is an unknown, e or i.
_NO_UNIT = re.compile(
    r"[-+*/^=(\dπθ∞±!√]|(?<![^\W\d_])(?:[pP]i|[einxyzXYZ])(?![^\W\d_])"
    r"|\\(?:sin|cos|tan|cot|ln|log|alpha|beta|theta|infty|pm)(?![a-zA-Z])"
)
_DOUBLE_STAR = re.compile(r"(?<=\d)(\s?)\*\*\1(?=\d)")  # a power; elsewhere it is emphasis
_UNIT_SIGN = re.compile(r"(?<=[^\W\d_])(?:\^-?\d|[/*·](?=[^\W\d_]))")
_CHOICE = re.compile(
    r"(?:option|choice|选项?|故选|应选)?\s*[(（\[]?\s*([a-h])\s*[)）\]]?(?:[.、:：].*)?", re.IGNORECASE
)
_NUMBER = re.compile(r"([-+]?)(\d{1,3}(?:[, ]\d{3})+|\d*)(\.\d+)?(?:e([-+]?\d{1,3}))?(?:\s*(%))?")
_FRACTION = re.compile(r"([-+]?)\s*(?:(\d+)\s+)?\(?\s*([-+]?\d+)\s*\)?\s*/\s*\(?\s*([-+]?\d+)\s*\)?")
_EQUATION = re.compile(r"^[a-zα-ω](?:\([a-z]\))?\s*[=≈]\s*", re.IGNORECASE)


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
    if len(text) > MAX_CHARACTERS:
        return FinalAnswer(re.sub(r"\s+", "", text), None, None)
    plain = _plain(text)
    choice = _CHOICE.fullmatch(plain)
    if choice is not None:
        return FinalAnswer(choice[1].casefold(), None, None)
    value = _BARE_POWER.sub(r"\g<1>1e\2", _EQUATION.sub("", plain).lstrip("$¥€£≈约").strip())
    fraction = _FRACTION.fullmatch(value)
    if fraction is not None and int(fraction[4]) != 0:
        number, whole = Fraction(int(fraction[3]), int(fraction[4])), int(fraction[2] or 0)
        if fraction[2] is None or 0 < number < 1:
            number = (whole + number) * (-1 if fraction[1] == "-" else 1)
            return FinalAnswer(str(number), number, None)
    found = _NUMBER.match(value)
    if found is not None and (found[2] or found[3]):
        unit = value[found.end() :].strip()
        if not _NO_UNIT.search(_UNIT_SIGN.sub("", unit)):
            return _numeric(found, unit)
    return FinalAnswer(re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", plain).casefold(), None, None)


def _plain(text: str) -> str:
    previous, text = "", text
    while text != previous:  # nested commands open up from the inside
        previous = text
        for pattern, instead in _LATEX:
            text = pattern.sub(instead, text)
    text = _ONE_SIGN_FRACTION.sub(r" \g<0>", _RAISED.sub(r"^\g<0>", text))  # else x² would be x2, and 3½ 31/2
    text = unicodedata.normalize("NFKC", text.replace("×", "*")).replace("−", "-").replace("⁄", "/")
    text = _POWER_OF_TEN.sub(r"e\1", _DOUBLE_STAR.sub("^", text).replace("**", ""))
    return text.strip().rstrip(".。;,，").strip()


def _numeric(found: re.Match[str], unit: str) -> FinalAnswer:
    sign, whole, part, exponent, percent = found.groups()
    number = Fraction(f"{sign}{re.sub('[, ]', '', whole) or '0'}{part or ''}e{exponent or 0}")
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
    tolerance = Fraction(1, 2) / Fraction(10) ** min(rounded) if rounded else Fraction(0)
    return abs(one.number - other.number) <= tolerance


def majority(answers: Sequence[FinalAnswer]) -> tuple[int, list[bool]]:
    """(the answer most others agree with, the first of equals; who agrees with it)."""
    counts = Counter(answers)  # thousands of pairs may share a question: what is equal is compared once
    votes = {one: sum(count for other, count in counts.items() if agree(one, other)) for one in counts}
    best = max(range(len(answers)), key=lambda place: (votes[answers[place]], -place))
    return best, [agree(answers[best], other) for other in answers]
