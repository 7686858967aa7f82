"""Polynomials in x as text. SymPy's printer would take most of the time that a problem costs."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from sympy import Rational

Coefficient: TypeAlias = int | Rational


def polynomial_latex(coefficients: Sequence[Coefficient]) -> str:
    r"""-\frac{1}{2} x^{3} + x - 7 of (-1/2, 0, 1, -7): highest power first, without terms of 0."""
    return _joined(coefficients, power="x^{{{}}}", number=number_latex, product="{} {}")


def polynomial_text(coefficients: Sequence[Coefficient]) -> str:
    """The same as expressions are typed: -1/2*x^3 + x - 7."""
    return _joined(coefficients, power="x^{}", number=str, product="{}*{}")


def number_latex(value: Coefficient) -> str:
    r"""-7, \frac{1}{2}, -\frac{1}{2}."""
    value = Rational(value)
    if value.q == 1:
        return str(value.p)
    return rf"{'-' if value < 0 else ''}\frac{{{abs(value.p)}}}{{{value.q}}}"


def _joined(
    coefficients: Sequence[Coefficient], *, power: str, number: Callable[[Coefficient], str], product: str
) -> str:
    text = ""
    for exponent, coefficient in zip(range(len(coefficients) - 1, -1, -1), coefficients, strict=True):
        if coefficient == 0:
            continue
        size = abs(coefficient)
        unknown = "" if exponent == 0 else "x" if exponent == 1 else power.format(exponent)
        term = number(size) if not unknown else unknown if size == 1 else product.format(number(size), unknown)
        sign = ("-" if coefficient < 0 else "") if not text else (" - " if coefficient < 0 else " + ")
        text += f"{sign}{term}"
    return text or "0"
