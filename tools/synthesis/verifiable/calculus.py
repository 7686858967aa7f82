"""Derivatives and integrals of polynomials, by SymPy."""

from sympy import Poly, Symbol

from tools.synthesis.verifiable.polynomial import number_latex, polynomial_latex, polynomial_text
from tools.synthesis.verifiable.topic import Choices, Topic, Values, bracketed, nonzero, over

X = Symbol("x")


def topics() -> list[Topic]:
    small = range(-6, 7)
    cubic = {"a": nonzero(6), "b": small, "c": small, "d": small}
    bounds = [(low, high) for low in range(-4, 5) for high in range(low + 1, 6)]
    return [
        over("derivative", Choices(**cubic, degree=[3, 4, 5]), _derivative),
        over("slope", Choices(**cubic, at=range(-4, 5)), _slope),
        over("antiderivative", Choices(**cubic, degree=[3, 4]), _antiderivative),
        over("definite_integral", Choices(a=nonzero(9), b=small, c=small, bounds=bounds), _definite_integral),
    ]


def _polynomial(a: int, b: int, c: int, d: int, degree: int) -> Poly:
    """a x^degree + b x^2 + c x + d."""
    return Poly((a, *[0] * (degree - 3), b, c, d), X)


def _latex(function: Poly) -> str:
    return polynomial_latex(function.all_coeffs())


def _terms(function: Poly) -> list[Poly]:
    """One polynomial for each term, highest power first."""
    return [Poly({powers: coefficient}, X) for powers, coefficient in function.terms()]


def _derivative(a: int, b: int, c: int, d: int, degree: int) -> Values:
    function = _polynomial(a, b, c, d, degree)
    result = function.diff(X)
    return {
        "function": _latex(function),
        "steps": "\n".join(rf"$({_latex(term)})' = {_latex(term.diff(X))}$" for term in _terms(function)),
        "shown": _latex(result),
        "final": polynomial_text(result.all_coeffs()),
    }


def _slope(a: int, b: int, c: int, d: int, at: int) -> Values:
    function = _polynomial(a, b, c, d, 3)
    derivative = function.diff(X)
    return {
        "function": _latex(function),
        "at": str(at),
        "derivative": _latex(derivative),
        "put_in": _latex(derivative).replace("x", rf"\cdot ({at})").removeprefix(r"\cdot "),
        "final": str(derivative.eval(at)),
    }


def _antiderivative(a: int, b: int, c: int, d: int, degree: int) -> Values:
    function = _polynomial(a, b, c, d, degree)
    result = function.integrate(X)
    return {
        "function": _latex(function),
        "steps": "\n".join(
            rf"$\int {bracketed(_latex(term))} \, dx = {_latex(term.integrate(X))} + C$" for term in _terms(function)
        ),
        "shown": f"{_latex(result)} + C",
        "final": f"{polynomial_text(result.all_coeffs())} + C",
    }


def _definite_integral(a: int, b: int, c: int, bounds: tuple[int, int]) -> Values:
    low, high = bounds
    function = Poly((a, b, c), X)
    antiderivative = function.integrate(X)
    upper, lower = antiderivative.eval(high), antiderivative.eval(low)
    return {
        "integral": rf"\int_{{{low}}}^{{{high}}} ({_latex(function)}) \, dx",
        "antiderivative": _latex(antiderivative),
        "upper": rf"F({high}) = {number_latex(upper)}",
        "lower": rf"F({low}) = {number_latex(lower)}",
        "difference": rf"{number_latex(upper)} - {bracketed(number_latex(lower))}",
        "shown": number_latex(upper - lower),
        "final": str(upper - lower),
    }
