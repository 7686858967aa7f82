r"""Equations between numbers in a solution, found in its text and recomputed: 3 × 4 + 5 = 17, \frac{6}{4} = 1.5.

Only what is surely arithmetic on both sides is looked at. A side that touches a letter, a function, a word like "of" or
"mod", or a sign the grammar does not know is passed over: a pair is dropped for what is certainly false.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from tools.synthesis.recompute import Recomputer

NEAR = 0.02  # of ≈, ours
CARRIED = 0.005  # of = where a decimal stands on the computed side: it may have been rounded before
# Before a left side these end what came before; after most other words the number belongs to the word.
_OPENING_WORDS = frozenset(
    """
    is are get gets have has give gives gave so thus hence therefore then that compute calculate equals find we
    obtain obtains yields yield makes make and where since because total answer result needs
    need costs cost pays pay weighs weigh holds hold leaves leave contains contain uses use takes take earns
    """.split()  # noqa: SIM905  # a list of words reads better so
)
_OPENING_HAN = "有得是为即于共则故由算知因以"
# A right side before these is not all of the number.
_MORE_WORDS = frozenset(
    """
    mod modulo remainder r times dozen hundred thousand million billion trillion percent of to plus minus over
    per and factorial divided multiplied
    """.split()  # noqa: SIM905  # a list of words reads better so
)
_MORE_HAN = re.compile(r"[百万亿余…倍乘除加减又比打]|千(?![克米瓦卡焦])|分之")
_UNIT = re.compile(r"\\(?:text|mathrm|mbox|textrm|operatorname|unit|si)\s*\{[^{}]*\}")
_TOKEN = re.compile(
    r"(?P<arithmetic>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\*\*|[-+*/^()×·÷∗⋅−√%％{}]|"
    r"\\(?:times|cdot|div|ast|left|right|[dt]?frac|sqrt|%|,|!|;)(?![a-zA-Z])|sqrt(?![a-zA-Z])|[ \t]+)"
    r"|(?P<relation>=|≈|\\approx(?![a-zA-Z]))"
    r"|(?P<other>\\[a-zA-Z]+|\\.|[A-Za-z]+|.)",
    re.DOTALL,
)
_CONTINUED = re.compile(r"(?<![ \t])[ \t]*(?:\\\\[ \t]*\n?|\n)[ \t]*(?=[=≈])")  # a line that begins with = goes on
# One that ends with an operation may be a sum that goes on, or a dash: the next is passed over (not behind * or /,
# which end emphasis and shares). One that begins with - and has its = in the next is no bullet, but a sum's next.
_UNFINISHED = re.compile(r"([\d)}][ \t]*(?:[+×÷−-]|\\(?:times|cdot|div))[ \t]*)(?:\\\\[ \t]*)?\n")
_SUBTRACTED = re.compile(r"^[ \t]*-[ \t](?=[^\n=≈]*\n[ \t]*[=≈])", re.MULTILINE)
_MONEY = re.compile(r"([=≈]\s*)(?:\\?\$|[¥€£])(?=\d)")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)、]|\(\d{1,2}\))\s+")  # a line that begins with + is a sum's next
_NUMBERED = re.compile(r"^\s*\(\d{1,2}\)\s+")
_BARE = re.compile(r"[-−]?\s*(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.(\d+))?")
_PER_CENT = re.compile(rf"{_BARE.pattern}\s*\\?[%％]")
_POWER_OF_TEN = (
    r"\s*(?:[×·⋅*]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*(?P<brace>\{)?\s*(?P<exponent>[-−+]?\s*\d{1,4})(?(brace)\s*\})"
)
_SCIENTIFIC = re.compile(_BARE.pattern + _POWER_OF_TEN)
_DIVISOR = re.compile(rf"([/÷]|\\div(?![a-zA-Z]))\s*(\d+(?:\.\d+)?{_POWER_OF_TEN})(?![\d.^])")
_PERIOD = re.compile(r"[-−]?\d+\.\d*\(\d+\)")  # 0.1(6)
# Signs between whole expressions.
_BETWEEN = r"(?:[≡⇒→⟹<>≤≥≠]|\\(?:equiv|Rightarrow|implies|to|rightarrow|quad|qquad|leq?|geq?|neq?|lt|gt)(?![a-zA-Z]))"
_FRACTION = re.compile(r"(?<![\d/.^])(?<!\d )(\d+/\d+)(?![\d/.^])")  # beside ÷ a slash writes a fraction: 4 ÷ 1/3 is 12
_OPERATION = re.compile(r"[-+*/^×·÷∗⋅−√]|\\(?:times|cdot|div|ast|[dt]?frac|sqrt)|sqrt")
# What stands before belongs to the expression: an amount behind a sign, 20 - $3 × 4, or a number, 除以4+1.
_GOES_ON = re.compile(rf"[\d)]\s*(?:{_OPERATION.pattern})\s*\\?\$$|[乘除]以$")
_GOES_ON_BEHIND_POINT = re.compile(  # 0.333..., 0.(3), 0.\overline{3}
    r"\.(?:\.|\(\d+\)|\s*\\(?:overline|bar|dot|overset|wideparen|[lc]?dots)(?![a-zA-Z]))"
)
_REMAINDER = re.compile(r"[^.。;；]{0,40}?\b(?:remainder|left over|with \d+ left)\b|，\s*余", re.IGNORECASE)


@dataclass(frozen=True)
class Equation:
    left: str
    right: str
    is_approximate: bool

    def __str__(self) -> str:
        return f"{self.left} {'≈' if self.is_approximate else '='} {self.right}"


def false_equation(text: str, recomputer: Recomputer) -> Equation | None:
    """The first one whose sides have different values; None if all that can be recomputed hold."""
    return next((equation for equation in equations(text) if _is_false(equation, recomputer)), None)


def equations(text: str) -> Iterator[Equation]:
    """The equations between arithmetic in the text, neighbours in a chain `a = b = c` one by one."""
    text = _MONEY.sub(r"\1", _UNIT.sub("§", text).replace("&", ""))
    for line in _UNFINISHED.sub(r"\1¤", _CONTINUED.sub(" ", _SUBTRACTED.sub("+ ", text))).splitlines():
        for chain in _chains(_BULLET.sub("", line)):
            for number in range(0, len(chain) - 2, 2):
                left, relation, right = chain[number : number + 3]
                if left and right and (_OPERATION.search(left) or _OPERATION.search(right)):
                    yield Equation(left, right, relation != "=")


def _chains(line: str) -> Iterator[list[str]]:
    """side, relation, side, ...: maximal runs of arithmetic and relations; sides that touch anything else are empty."""
    run: list[tuple[str, str]] = []
    start = 0
    for token in [*_TOKEN.finditer(line), None]:
        if token is not None and token.lastgroup != "other":
            start = start if run else token.start()
            run.append((str(token.lastgroup), token[0]))
            continue
        if any(kind == "relation" for kind, _ in run):
            stop = token.start() if token is not None else len(line)
            yield _sides(run, line[:start], line[stop:])
        run = []


def _sides(run: list[tuple[str, str]], before: str, after: str) -> list[str]:
    sides = [""]
    for kind, text in run:
        if kind == "relation":
            sides += [text, ""]
        else:
            sides[-1] += text
    if not before or before[-1] in ";,；，。":
        sides[0] = _NUMBERED.sub("", sides[0])
    if not _opens(before, sides[0]):
        sides[0] = ""
    if not _closes(after, sides[-1]):
        sides[-1] = ""
    sides = ["" if _PERIOD.fullmatch(side.strip()) else side.strip() for side in sides]
    return [_FRACTION.sub(r"(\1)", side) if "÷" in side else side for side in sides]


def _opens(before: str, side: str) -> bool:
    """Whether an expression can begin here: what stands before it is no part of it."""
    if re.match(r"\s*[+*/^×÷·)}%]", side) or _GOES_ON.search(before[-40:]):
        return False
    if not before:
        return True
    last = before[-1]
    if last in f"$,;，。；：、！？{_OPENING_HAN}" or re.search(rf"(?:{_BETWEEN}|\\[(\[])$", before):
        return True
    if last in ".:":
        return side[:1].isspace()
    word = re.search(r"(?<![A-Za-z\\])[A-Za-z]+$", before)
    is_negative = bool(re.match(r"\s*[-−]", side))  # "we - 3" is a subtraction or a dash
    return word is not None and side[:1].isspace() and not is_negative and word[0].casefold() in _OPENING_WORDS


def _closes(after: str, side: str) -> bool:
    """Whether an expression can end here."""
    is_bare = _BARE.fullmatch(side.strip()) is not None
    if not after or re.match(_BETWEEN, after):
        return True
    if _REMAINDER.match(after) or re.match(r"：\s*[\d(]", after):  # 17 ÷ 5 = 3 with remainder 2; a ratio, 1：5
        return False
    if after[0] in "$,;，。；：、！？)." or after.startswith(("\\)", "\\]", "\\\\")):
        return not _GOES_ON_BEHIND_POINT.match(after)
    if _MORE_HAN.match(after):
        return False
    if "一" <= after[0] <= "鿿" or after[0] == "§":
        return is_bare
    word = re.match(r"[A-Za-z]+", after)
    return is_bare and word is not None and side[-1:].isspace() and word[0].casefold() not in _MORE_WORDS


def _is_false(equation: Equation, recomputer: Recomputer) -> bool:
    if not _differs(equation, recomputer):
        return False
    # 6 × 10^4 / 2 × 10^2 = 300, where the divisor is one number, as it is often written
    left, right = (_DIVISOR.sub(r"\1(\2)", side) for side in (equation.left, equation.right))
    whole = Equation(left, right, equation.is_approximate)
    return whole == equation or _differs(whole, recomputer)


def _differs(equation: Equation, recomputer: Recomputer) -> bool:
    if re.fullmatch(r"[01 +-]+", equation.left + equation.right):
        return False  # 1011 + 1 = 1100 and 1 + 1 = 1 are right in base 2 and in logic
    left, right = (recomputer.value(side) for side in (equation.left, equation.right))
    if left is None or right is None:
        return False
    # Fractions throughout: a whole number of 400 digits is no float.
    left, right = Fraction(left), Fraction(right)
    of_per_cent = Fraction(1, 100)
    if "100" in equation.left and _PER_CENT.fullmatch(equation.right) and abs(left - 100 * right) < abs(left - right):
        right, of_per_cent = right * 100, Fraction(1)  # 0.75 × 100 = 75%, as people write it
    difference, size = abs(left - right), max(abs(left), abs(right))
    tolerance = size * Fraction(1e-9)
    for side in (equation.left, equation.right):
        per_cent = _PER_CENT.fullmatch(side)
        power = _SCIENTIFIC.fullmatch(side) if side == equation.right else None  # on the left it is a product
        number = _BARE.fullmatch(side) or per_cent or power
        if number is None:
            continue
        unit = of_per_cent if per_cent else Fraction(10) ** _exponent(power["exponent"]) if power else Fraction(1)
        if number[1] is not None:  # rounded or cut off at the last digit
            within = Fraction(99 if power else 101, 100)  # 6 × 50 = 2.9 × 10^2 is neither
            tolerance = max(tolerance, unit * within / 10 ** len(number[1]))
        elif equation.is_approximate:  # 10 ÷ 3 ≈ 3
            tolerance = max(tolerance, unit / 2)
    if any("." in side and _BARE.fullmatch(side) is None for side in (equation.left, equation.right)):
        tolerance = max(tolerance, Fraction(CARRIED) * size)
    if equation.is_approximate:
        tolerance = max(tolerance, Fraction(NEAR) * size)
    return difference > tolerance


def _exponent(text: str) -> int:
    return int(re.sub(r"\s", "", text).replace("−", "-"))
