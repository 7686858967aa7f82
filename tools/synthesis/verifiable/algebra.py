"""Equations in one and two unknowns and products of polynomials, solved with SymPy."""

from math import isqrt

from sympy import Integer, Poly, Rational, Symbol, sqrt

from tools.synthesis.verifiable.polynomial import number_latex, polynomial_latex, polynomial_text
from tools.synthesis.verifiable.topic import Choices, Topic, Values, bracketed, nonzero, over, signed

X = Symbol("x")
ROWS = [(a, b) for a in nonzero(6) for b in nonzero(6)]
INDEPENDENT = [(first, second) for first in ROWS for second in ROWS if first[0] * second[1] != first[1] * second[0]]
IRRATIONAL = [  # x^2 + 2px + q with a positive discriminant that is no square
    (p, q) for p in range(-20, 21) for q in range(-60, 200) if p * p - q > 0 and isqrt(p * p - q) ** 2 != p * p - q
]


def topics() -> list[Topic]:
    slopes = [(a, c) for a in nonzero(12) for c in nonzero(12) if a != c]
    roots = [(r, s) for r in range(-15, 16) for s in range(r, 16)]
    binomials = [(a, b) for a in range(1, 10) for b in nonzero(15)]
    pairs = [(first, second) for index, first in enumerate(binomials) for second in binomials[index:]]
    values = Choices(a=nonzero(9), b=range(-9, 10), c=range(-20, 21), at=nonzero(12))
    return [
        over("linear_equation", Choices(slopes=slopes, b=nonzero(30), d=range(-30, 31)), _linear_equation),
        over("quadratic_equation", Choices(a=range(1, 8), roots=roots), _quadratic_equation),
        over("completing_the_square", Choices(pair=IRRATIONAL), lambda pair: _completing_the_square(*pair)),
        over("linear_system", Choices(rows=INDEPENDENT, x=range(-9, 10), y=range(-9, 10)), _linear_system),
        over("expansion", Choices(pair=pairs), lambda pair: _expansion(*pair)),
        over("polynomial_value", values, _polynomial_value),
    ]


def _text(*coefficients: int) -> str:
    return polynomial_latex(coefficients)


def _linear_equation(slopes: tuple[int, int], b: int, d: int) -> Values:
    a, c = slopes
    solution = Rational(d - b, a - c)
    return {
        "equation": f"{_text(a, b)} = {_text(c, d)}",
        "moved": f"{_text(a, 0)} {_signed_term(-c, 'x')} = {d} {signed(-b)}",
        "gathered": f"{_text(a - c, 0)} = {d - b}",
        "shown": f"x = {number_latex(solution)}",
        "check": number_latex(a * solution + b),
        "final": f"x = {solution}",
    }


def _quadratic_equation(a: int, roots: tuple[int, int]) -> Values:
    r, s = roots
    b, c = -a * (r + s), a * r * s
    discriminant = b * b - 4 * a * c
    final = f"x = {r}" if r == s else f"x = {r}, x = {s}"
    return {
        "equation": f"{_text(a, b, c)} = 0",
        "abc": f"a = {a}, b = {b}, c = {c}",
        "discriminant": rf"{bracketed(b)}^2 - 4 \times {a} \times {bracketed(c)} = {discriminant}",
        "root": str(isqrt(discriminant)),
        "formula": rf"x = \frac{{{-b} \pm {isqrt(discriminant)}}}{{{2 * a}}}",
        "final": final,
    }


def _completing_the_square(p: int, q: int) -> Values:
    root = sqrt(Integer(p * p - q))
    outside, inside = root.as_coeff_Mul()
    shown = rf"{outside if outside > 1 else ''} \sqrt{{{inside**2}}}".strip()
    typed = f"{outside}*sqrt({inside**2})" if outside > 1 else f"sqrt({inside**2})"
    before, before_minus = (f"{-p} + ", f"{-p} - ") if p else ("", "-")
    return {
        "equation": f"{_text(1, 2 * p, q)} = 0",
        "moved": f"{_text(1, 2 * p, 0)} = {-q}",
        "square": f"{_square(p)} = {-q} + {p * p} = {p * p - q}",
        "taken": rf"{_text(1, p)} = \pm {shown}",
        "shown": f"x = {before_minus}{shown}, x = {before}{shown}",
        "final": f"x = {before_minus}{typed}, x = {before}{typed}",
    }


def _square(p: int) -> str:
    return f"({_text(1, p)})^2" if p else "x^{2}"


def _linear_system(rows: tuple[tuple[int, int], tuple[int, int]], x: int, y: int) -> Values:
    (a, b), (c, d) = rows
    e, f = a * x + b * y, c * x + d * y
    # By construction, not by a solver: LUsolve finds the same and takes twenty times as long.
    return {
        "first": f"{_two(a, b)} = {e}",
        "second": f"{_two(c, d)} = {f}",
        "by_first": str(d),
        "by_second": str(b),
        "eliminated": f"{_text(a * d - b * c, 0)} = {e * d - f * b}",
        "x": str(x),
        "put_in": rf"{a} \times {bracketed(x)} {_signed_term(b, 'y')} = {e}",
        "y": str(y),
        "final": f"x = {x}, y = {y}",
    }


def _two(a: int, b: int) -> str:
    return f"{_text(a, 0)} {_signed_term(b, 'y')}"


def _expansion(first: tuple[int, int], second: tuple[int, int]) -> Values:
    (a, b), (c, d) = first, second
    product = Poly(first, X) * Poly(second, X)
    return {
        "expression": f"({_text(*first)})({_text(*second)})",
        "terms": rf"{a * c} x^2 {signed(a * d)} x {signed(b * c)} x {signed(b * d)}",
        "shown": polynomial_latex(product.all_coeffs()),
        "final": polynomial_text(product.all_coeffs()),
    }


def _polynomial_value(a: int, b: int, c: int, at: int) -> Values:
    polynomial = Poly((a, b, c), X)
    value = polynomial.eval(at)
    return {
        "polynomial": _text(a, b, c),
        "at": str(at),
        "put_in": rf"{a} \times {bracketed(at)}^2 {signed(b)} \times {bracketed(at)} {signed(c)}",
        "terms": f"{a * at * at} {signed(b * at)} {signed(c)}",
        "final": str(value),
    }


def _signed_term(coefficient: int, unknown: str) -> str:
    size = abs(coefficient)
    return f"{'+' if coefficient > 0 else '-'} {f'{size} ' if size > 1 else ''}{unknown}"
