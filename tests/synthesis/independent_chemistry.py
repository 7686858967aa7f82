"""The answers of the verifiable chemistry problems found again: Madelung's rule, counted atoms, Gauss's elimination."""

import math
import re
from collections import Counter
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from functools import cache

from tools.synthesis.record import QaRecord

# Ground states that do not follow Madelung's rule, as electrons moved (NIST atomic spectra database).
EXCEPTIONS = {
    24: "4s1 3d5", 29: "4s1 3d10", 41: "5s1 4d4", 42: "5s1 4d5", 44: "5s1 4d7", 45: "5s1 4d8", 46: "5s0 4d10",
    47: "5s1 4d10", 57: "4f0 5d1", 58: "4f1 5d1", 64: "4f7 5d1", 78: "6s1 5d9", 79: "6s1 5d10", 89: "5f0 6d1",
    90: "5f0 6d2", 91: "5f2 6d1", 92: "5f3 6d1", 93: "5f4 6d1", 96: "5f7 6d1",
}  # fmt: skip
SYMBOLS = re.findall(
    r"\w+",
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr "
    "Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir "
    "Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No",
)


def madelung(number: int) -> dict[str, int]:
    """Subshells by n + l, then n, each with 2 (2 l + 1) places."""
    order = sorted(((n, kind) for n in range(1, 8) for kind in range(min(n, 4))), key=lambda s: (s[0] + s[1], s[0]))
    left, found = number, {}
    for n, kind in order:
        taken = min(left, 2 * (2 * kind + 1))
        left -= taken
        found[f"{n}{'spdf'[kind]}"] = taken
    for part in EXCEPTIONS.get(number, "").split():
        found[part[:2]] = int(part[2:])
    return {shell: count for shell, count in found.items() if count}


def symbol_of(item: QaRecord) -> int:
    symbol = re.search(r"[(（]([A-Z][a-z]?)[)）]", item.question)
    assert symbol is not None
    return SYMBOLS.index(symbol[1]) + 1


def electron_configuration(item: QaRecord, final: str) -> bool:
    return {part[:2]: int(part[2:]) for part in final.split()} == madelung(symbol_of(item))


def subshell_electrons(item: QaRecord, final: str) -> bool:
    (shell,) = set(re.findall(r"\b[1-7][spdf]\b", item.question, flags=re.ASCII))
    return madelung(symbol_of(item))[shell] == int(final)


@cache
def atoms(formula: str) -> Counter[str]:
    """By writing the formula out: brackets repeated until none is left, then numbers, then counting letters."""
    found: Counter[str] = Counter()
    for part in formula.split("·"):
        times, text = re.fullmatch(r"(\d*)(.*)", part).groups()  # type: ignore[union-attr]
        while "(" in text:
            text = re.sub(r"\(([^()]*)\)(\d*)", lambda group: group[1] * int(group[2] or 1), text)
        text = re.sub(r"([A-Z][a-z]?)(\d+)", lambda atom: atom[1] * int(atom[2]), text)
        found.update(re.findall(r"[A-Z][a-z]?", text) * int(times or 1))
    return found


FORMULA = re.compile(r"(?<![A-Za-z0-9(])\(?[A-Z][A-Za-z0-9()·]*")


def masses_in(question: str) -> dict[str, Fraction]:
    return {symbol: Fraction(mass) for symbol, mass in re.findall(r"([A-Z][a-z]?) (\d+\.\d+)", question)}


def formula_in(item: QaRecord) -> tuple[str, dict[str, Fraction]]:
    masses = masses_in(item.question)
    candidates = [
        found for found in FORMULA.findall(item.question) if set(atoms(found)) == set(masses) and found not in masses
    ]
    assert len(set(candidates)) == 1, (item.question, candidates)
    return candidates[0], masses


def molar(item: QaRecord) -> tuple[Fraction, str, dict[str, Fraction]]:
    formula, masses = formula_in(item)
    return sum((masses[s] * n for s, n in atoms(formula).items()), Fraction(0)), formula, masses


def molar_mass(item: QaRecord, final: str) -> bool:
    return molar(item)[0] == Fraction(final)


def amount_in(item: QaRecord) -> Fraction:
    found = re.search(r"(?<![\d.])(\d+(?:\.\d+)?) mol\b", item.question, flags=re.ASCII)
    assert found is not None
    return Fraction(found[1])


def mass_of_amount(item: QaRecord, final: str) -> bool:
    return molar(item)[0] * amount_in(item) == Fraction(final)


def mass_share(item: QaRecord, final: str) -> bool:
    total, formula, masses = molar(item)
    symbol = SYMBOLS[symbol_of(item) - 1]
    share = 100 * masses[symbol] * atoms(formula)[symbol] / total
    rounded = (Decimal(share.numerator) / Decimal(share.denominator)).quantize(Decimal("0.01"), ROUND_HALF_UP)
    return str(rounded) == final


def split(equation: str) -> tuple[list[str], list[str]]:
    left, right = equation.split(" -> ")
    return left.split(" + "), right.split(" + ")


@cache
def coefficients(equation: str) -> tuple[Fraction, ...]:
    """By Gauss's elimination over fractions; the first coefficient is 1."""
    left, right = split(equation)
    names = left + right
    signs = [1] * len(left) + [-1] * len(right)
    rows = [
        [Fraction(sign * atoms(name)[symbol]) for sign, name in zip(signs, names, strict=True)]
        for symbol in sorted(set().union(*map(atoms, names)))
    ]
    rows.append([Fraction(1)] + [Fraction(0)] * (len(names) - 1))  # the first is 1
    right_side = [Fraction(0)] * (len(rows) - 1) + [Fraction(1)]
    matrix = [[*row, b] for row, b in zip(rows, right_side, strict=True)]
    for column in range(len(names)):
        pivot = next(r for r in range(column, len(matrix)) if matrix[r][column] != 0)  # unique, or StopIteration
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        matrix[column] = [entry / matrix[column][column] for entry in matrix[column]]
        for r in range(len(matrix)):
            if r != column:
                factor = matrix[r][column]
                matrix[r] = [entry - factor * base for entry, base in zip(matrix[r], matrix[column], strict=True)]
    assert all(row[-1] == 0 for row in matrix[len(names) :])
    return tuple(row[-1] for row in matrix[: len(names)])


EQUATION = re.compile(
    r"[A-Z(][A-Za-z0-9()]*(?: \+ [A-Z(][A-Za-z0-9()]*)* -> [A-Z(][A-Za-z0-9()]*(?: \+ [A-Z(][A-Za-z0-9()]*)*"
)


def equation_in(text: str) -> str:
    found = EQUATION.search(text)
    assert found is not None, text
    return found[0]


def balancing(item: QaRecord, final: str) -> bool:
    parts = [re.fullmatch(r"(?:(\d+) )?(\S+)", part) for side in split(final) for part in side]
    counts = [int(part[1] or 1) for part in parts if part is not None]
    found = coefficients(equation_in(item.question))
    names = [name for side in split(equation_in(item.question)) for name in side]
    return (
        [part[2] for part in parts if part is not None] == names
        and math.gcd(*counts) == 1
        and tuple(Fraction(count, counts[0]) for count in counts) == found
    )


def amount_of_product(item: QaRecord, final: str) -> bool:
    equation = equation_in(item.question)
    left, right = split(equation)
    rest = item.question.replace(equation, "")
    named = [name for name in FORMULA.findall(rest) if name in left + right]
    (reactant,) = {name for name in named if name in left}
    (product,) = {name for name in named if name in right}
    by_name = dict(zip(left + right, coefficients(equation), strict=True))
    return amount_in(item) * by_name[product] / by_name[reactant] == Fraction(final)


CHECKS: dict[str, Callable[[QaRecord, str], bool]] = {
    check.__name__: check
    for check in (
        electron_configuration, subshell_electrons, molar_mass, mass_of_amount, mass_share, balancing,
        amount_of_product,
    )
}  # fmt: skip
