"""Sums, fractions, percentages and two everyday problems, computed with SymPy's exact numbers."""

from decimal import Decimal
from math import gcd, lcm

from sympy import Rational

from tools.synthesis.verifiable.polynomial import number_latex
from tools.synthesis.verifiable.topic import Choices, Topic, Values, over, plain
from tools.synthesis.verifiable.wording import words

PROPER_FRACTIONS = [(p, q) for q in range(2, 21) for p in range(1, q) if gcd(p, q) == 1]
GOODS = 8
"""Entries of the list "goods" in every language's wordings."""


def topics() -> list[Topic]:
    shopping = Choices(good=range(GOODS), count=range(2, 31), price_cents=range(15, 1000, 5), more_notes=range(4))
    return [
        over("precedence", Choices(a=range(10, 500), b=range(3, 60), c=range(3, 60), d=range(1, 500)), _precedence),
        over("brackets", Choices(a=range(20, 120), b=range(2, 20), c=range(3, 40), d=range(2, 30)), _brackets),
        over("fractions", Choices(first=PROPER_FRACTIONS, second=PROPER_FRACTIONS, sign=[1, -1]), _fractions),
        over("percentage", Choices(half_percents=range(2, 200), whole=range(20, 2020, 4)), _percentage),
        over("distance", Choices(speed=range(18, 121), quarters=range(2, 49)), _distance),
        Topic("shopping", "mathematics", shopping.size, lambda index, language: _shopping(language, *shopping[index])),
    ]


def _precedence(a: int, b: int, c: int, d: int) -> Values:
    return {
        "expression": rf"{a} + {b} \times {c} - {d}",
        "product": rf"{b} \times {c} = {b * c}",
        "rest": f"{a} + {b * c} - {d} = {a + b * c - d}",
        "final": str(a + b * c - d),
    }


def _brackets(a: int, b: int, c: int, d: int) -> Values:
    result = (a - b) * c + d**2
    return {
        "expression": rf"({a} - {b}) \times {c} + {d}^2",
        "inner": f"{a} - {b} = {a - b}",
        "square": f"{d}^2 = {d**2}",
        "product": rf"{a - b} \times {c} = {(a - b) * c}",
        "rest": f"{(a - b) * c} + {d**2} = {result}",
        "final": str(result),
    }


def _fractions(first: tuple[int, int], second: tuple[int, int], sign: int) -> Values:
    (p, q), (r, s) = first, second
    result = Rational(p, q) + sign * Rational(r, s)
    common = lcm(q, s)
    left, right = p * (common // q), r * (common // s)
    operator = "+" if sign > 0 else "-"
    return {
        "expression": rf"\frac{{{p}}}{{{q}}} {operator} \frac{{{r}}}{{{s}}}",
        "common": str(common),
        "widened": rf"\frac{{{left}}}{{{common}}} {operator} \frac{{{right}}}{{{common}}}"
        rf" = \frac{{{left + sign * right}}}{{{common}}}",
        "shown": number_latex(result),
        "final": str(result),
    }


def _percentage(half_percents: int, whole: int) -> Values:
    percent = Decimal(half_percents) / 2
    result = plain(percent * whole / 100)
    return {"percent": plain(percent), "whole": str(whole), "share": plain(percent / 100), "final": result}


def _distance(speed: int, quarters: int) -> Values:
    hours = Decimal(quarters) / 4
    return {"speed": str(speed), "hours": plain(hours), "final": plain(speed * hours)}


def _shopping(language: str, good: int, count: int, price_cents: int, more_notes: int) -> Values:
    """Paid with notes of 50: as few as are enough, and `more_notes`."""
    price = Decimal(price_cents) / 100
    note = 50 * (-(-count * price_cents // 5000) + more_notes)
    return {
        "good": words(language, "goods")[good],
        "count": str(count),
        "price": f"{price:.2f}",
        "cost": f"{price * count:.2f}",
        "note": str(note),
        "final": f"{note - price * count:.2f}",
    }
