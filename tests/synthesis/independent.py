"""The answers of the verifiable problems found again, without SymPy and without the generators: from the text alone."""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

from tests.synthesis import independent_chemistry as chemistry
from tools.synthesis.record import QaRecord

POINTS = [Fraction(n) for n in (-3, -1, 0, 2, 5, 7)]  # more than any degree here


class Dual:
    """a + b ε with ε² = 0: the second part is the derivative."""

    def __init__(self, value: Fraction, slope: Fraction) -> None:
        self.value, self.slope = value, slope

    def __add__(self, other: Any) -> "Dual":
        other = dual(other)
        return Dual(self.value + other.value, self.slope + other.slope)

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Dual":
        return self + dual(other) * Fraction(-1)

    def __mul__(self, other: Any) -> "Dual":
        other = dual(other)
        return Dual(self.value * other.value, self.value * other.slope + self.slope * other.value)

    __rmul__ = __mul__

    def __neg__(self) -> "Dual":
        return self * Fraction(-1)

    def __rsub__(self, other: Any) -> "Dual":
        return -self + other

    def __truediv__(self, other: Fraction) -> "Dual":
        return self * (1 / other)

    def __pow__(self, exponent: Fraction) -> "Dual":
        result = Dual(Fraction(1), Fraction(0))
        for _ in range(int(exponent)):
            result = result * self
        return result


def dual(value: Any) -> Dual:
    return value if isinstance(value, Dual) else Dual(value, Fraction(0))


@cache
def code(latex: str) -> Any:
    """LaTeX as Python: \\frac, \\times, \\cdot, \\div, ^, and products without a sign."""
    text = re.sub(r"\\frac\{(-?\d+)\}\{(\d+)\}", r"((\1)/\2)", latex)
    text = re.sub(r"\\times|\\cdot", "*", text).replace(r"\div", "/").replace("{", "(").replace("}", ")")
    text = text.replace("^", "**")
    text = re.sub(r"(?<=[\d)])\s*(?=[xy(])", "*", text)
    text = re.sub(r"(\d+(?:\.\d+)?)", r"F('\1')", text)
    return compile(text.strip(), latex, "eval")


def value(latex: str, **unknowns: Any) -> Any:
    return eval(code(latex), {"F": Fraction, **unknowns})


def maths(text: str) -> list[str]:
    return re.findall(r"\$(.*?)\$", text)


def numbers(text: str) -> list[Fraction]:
    """All numbers between dollar signs."""
    return [Fraction(found) for part in maths(text) for found in re.findall(r"\d+(?:\.\d+)?", part)]


def roots(text: str) -> list[Fraction]:
    return [Fraction(found) for found in re.findall(r"= (-?\d+(?:/\d+)?)", text)]


def sides(equation: str, **unknowns: Any) -> Fraction:
    left, right = equation.split("=")
    return Fraction(value(left, **unknowns) - value(right, **unknowns))


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


# ---- one function a topic: whether the final answer is right for the question ----


def expression(item: QaRecord, final: str) -> bool:
    return bool(value(maths(item.question)[0]) == Fraction(final))


def percentage(item: QaRecord, final: str) -> bool:
    first, second = maths(item.question)
    percent, whole = (first, second) if "%" in first else (second, first)
    return Fraction(percent.replace(r"\%", "")) * Fraction(whole) / 100 == Fraction(final)


def distance(item: QaRecord, final: str) -> bool:
    speed, hours = numbers(item.question)
    return speed * hours == Fraction(final)


def shopping(item: QaRecord, final: str) -> bool:
    price, count, note = numbers(item.question)
    return note - price * count == Fraction(final) and note - price * count >= 0


def gcd(item: QaRecord, final: str) -> bool:
    n, m = map(int, numbers(item.question))
    return max(d for d in range(1, n + 1) if n % d == 0 and m % d == 0) == int(final)


def lcm(item: QaRecord, final: str) -> bool:
    n, m = map(int, numbers(item.question))
    multiple = m
    while multiple % n:
        multiple += m
    return multiple == int(final)


def power_remainder(item: QaRecord, final: str) -> bool:
    a, k, m = map(int, numbers(item.question))
    return a**k % m == int(final)


def inverse(item: QaRecord, final: str) -> bool:
    a, p = sorted({int(n) for n in numbers(item.question) if n > 1})
    return a * int(final) % p == 1 and 0 < int(final) < p


def factors(item: QaRecord, final: str) -> bool:
    (n,) = numbers(item.question)
    found = [part.split("^") for part in final.split(" * ")]
    product = math.prod(int(part[0]) ** int(part[1] if len(part) > 1 else 1) for part in found)
    return product == n and all(is_prime(int(part[0])) for part in found) and len({p[0] for p in found}) == len(found)


def equation_of(item: QaRecord) -> str:
    return next(part for part in maths(item.question) if "=" in part)


def linear_equation(item: QaRecord, final: str) -> bool:
    (x,) = roots(final)
    return sides(equation_of(item), x=x) == 0 != sides(equation_of(item), x=x + 1)


def quadratic_equation(item: QaRecord, final: str) -> bool:
    found = roots(final)
    r, s = found[0], found[-1]
    at = [sides(equation_of(item), x=Fraction(x)) for x in (-1, 0, 1)]
    lead = (at[0] + at[2]) / 2 - at[1]
    return all(sides(equation_of(item), x=x) == lead * (x - r) * (x - s) for x in POINTS)


def completing_the_square(item: QaRecord, final: str) -> bool:
    pattern = r"x = (?:(-?\d+) )?([+-])? ?(?:(\d+)\*)?sqrt\((\d+)\)"
    (u, sign, v, w), (u2, sign2, v2, w2) = re.findall(pattern, final)
    assert (u, v, w) == (u2, v2, w2) and sign == "-" and sign2 in ("+", "")
    middle, square = Fraction(u or 0), Fraction(v or 1) ** 2 * Fraction(w)
    assert math.isqrt(int(w)) ** 2 != int(w)
    return all(sides(equation_of(item), x=x) == (x - middle) ** 2 - square for x in POINTS)


def linear_system(item: QaRecord, final: str) -> bool:
    x, y = roots(final)
    first, second = [part for part in maths(item.question) if "=" in part]
    rows = [
        (sides(e, x=x + 1, y=y) - sides(e, x=x, y=y), sides(e, x=x, y=y + 1) - sides(e, x=x, y=y))
        for e in (first, second)
    ]
    determinant = rows[0][0] * rows[1][1] - rows[0][1] * rows[1][0]
    return sides(first, x=x, y=y) == 0 == sides(second, x=x, y=y) and determinant != 0


def expansion(item: QaRecord, final: str) -> bool:
    (product,) = [part for part in maths(item.question) if "(" in part]
    return "(" not in final and all(value(product, x=x) == value(final, x=x) for x in POINTS)


def polynomial_value(item: QaRecord, final: str) -> bool:
    (at,) = [part for part in maths(item.question) if part.startswith("x = ")]
    polynomial = next(part for part in maths(item.question) if "x^" in part).removeprefix("f(x) = ")
    return bool(value(polynomial, x=value(at.removeprefix("x = "))) == Fraction(final))


def function_of(item: QaRecord) -> str:
    return next(part for part in maths(item.question) if part.startswith("f(x) = ")).removeprefix("f(x) = ")


def slope_at(function: str, x: Fraction) -> Fraction:
    return dual(value(function, x=Dual(x, Fraction(1)))).slope


def derivative(item: QaRecord, final: str) -> bool:
    return all(slope_at(function_of(item), x) == value(final, x=x) for x in POINTS)


def slope(item: QaRecord, final: str) -> bool:
    (at,) = [part for part in maths(item.question) if part.startswith("x = ")]
    return slope_at(function_of(item), value(at.removeprefix("x = "))) == Fraction(final)


def antiderivative(item: QaRecord, final: str) -> bool:
    assert final.endswith(" + C")
    return all(slope_at(final.removesuffix(" + C"), x) == value(function_of(item), x=x) for x in POINTS)


def definite_integral(item: QaRecord, final: str) -> bool:
    """Simpson's rule, exact up to degree 3."""
    low, high, body = re.findall(r"\\int_\{(-?\d+)\}\^\{(-?\d+)\} \((.*)\) ", maths(item.question)[0])[0]
    a, b = Fraction(low), Fraction(high)
    simpson = (b - a) / 6 * (value(body, x=a) + 4 * value(body, x=(a + b) / 2) + value(body, x=b))
    return bool(simpson == Fraction(final))


CHECKS: dict[str, Callable[[QaRecord, str], bool]] = {
    "precedence": expression, "brackets": expression, "fractions": expression, "percentage": percentage,
    "distance": distance, "shopping": shopping, "gcd": gcd, "lcm": lcm, "power_remainder": power_remainder,
    "inverse": inverse, "factors": factors, "linear_equation": linear_equation,
    "quadratic_equation": quadratic_equation, "completing_the_square": completing_the_square,
    "linear_system": linear_system, "expansion": expansion, "polynomial_value": polynomial_value,
    "derivative": derivative, "slope": slope, "antiderivative": antiderivative, "definite_integral": definite_integral,
    **chemistry.CHECKS,
}  # fmt: skip


def is_right(item: QaRecord) -> bool:
    """Whether the final answer follows from the question's text."""
    assert item.final_answer is not None
    return CHECKS[item.generator.rpartition("/")[2]](item, item.final_answer)


def false_steps(item: QaRecord) -> list[str]:
    """The chains of equal numbers in the solution that are not equal."""
    found = []
    for part in maths(item.answer):
        parts = part.split(" = ")
        if len(parts) > 1 and not re.search(r"[A-Za-z']", re.sub(r"\\(?:frac|times|div|cdot)", "", part)):
            values = {value(side) for side in parts}
            if len(values) > 1:
                found.append(part)
    return found
