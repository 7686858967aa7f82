"""Chemical equations: families of reactions that really run, and a list; balanced by integer linear algebra."""

from functools import cache
from math import gcd
from pathlib import Path

from sympy import Matrix, ilcm

from data_mixers.errors import ConfigError
from tools.data.yaml_file import read_yaml
from tools.synthesis.verifiable.elements import atoms

Sides = tuple[tuple[str, ...], tuple[str, ...]]

# Charges of the ions; no pair of them oxidises the other in the reactions below.
METALS = {"Li": 1, "Na": 1, "K": 1, "Mg": 2, "Ca": 2, "Sr": 2, "Ba": 2, "Zn": 2, "Al": 3}
ACIDS = {"F": 1, "Cl": 1, "Br": 1, "NO3": 1, "ClO4": 1, "SO4": 2, "PO4": 3}
CARBONATE_METALS = ("Li", "Na", "K", "Mg", "Ca", "Sr", "Ba", "Zn")
LONGEST_CHAIN = 24
LISTED = Path(__file__).with_name("reactions.yaml")


@cache
def reactions() -> tuple[Sides, ...]:
    """All equations, each once: (left, right)."""
    found = _combustions() + _acid_reactions()
    listed: list[str] = read_yaml(LISTED, list[str])
    for line in listed:
        before, after = line.split(" -> ")
        found.append((tuple(before.split(" + ")), tuple(after.split(" + "))))
    return tuple(found)


@cache
def balance(sides: Sides) -> tuple[int, ...]:
    """The smallest whole coefficients, left then right. Errors: ConfigError if there is not exactly one solution."""
    left, right = sides
    symbols = sorted(set().union(*(atoms(formula) for formula in left)))
    counts = [[atoms(f)[s] for f in left] + [-atoms(f)[s] for f in right] for s in symbols]
    solutions = Matrix(counts).nullspace()
    if len(solutions) != 1:
        raise ConfigError(f"{' + '.join(left)} -> {' + '.join(right)} has {len(solutions)} independent solutions")
    scale = ilcm(*(value.q for value in solutions[0]))
    whole = [int(value * scale) for value in solutions[0]]
    divisor = gcd(*whole)
    coefficients = tuple(value // divisor if whole[0] > 0 else -value // divisor for value in whole)
    if min(coefficients) <= 0:
        raise ConfigError(f"{' + '.join(left)} -> {' + '.join(right)} cannot be balanced")
    return coefficients


def equation(sides: Sides, coefficients: tuple[int, ...] | None = None) -> str:
    """2 H2 + O2 -> 2 H2O, or without coefficients the question."""
    left, right = sides
    numbers = coefficients or (1,) * (len(left) + len(right))
    shown = [f"{n} {f}" if n > 1 else f for n, f in zip(numbers, left + right, strict=True)]
    return " + ".join(shown[: len(left)]) + " -> " + " + ".join(shown[len(left) :])


def _combustions() -> list[Sides]:
    """Alkanes, alkenes, alkynes, alcohols and carboxylic acids in oxygen."""
    found: list[Sides] = []
    for carbons in range(1, LONGEST_CHAIN + 1):
        fuels = [_fuel(carbons, 2 * carbons + 2, 0), _fuel(carbons, 2 * carbons + 2, 1), _fuel(carbons, 2 * carbons, 2)]
        if carbons > 1:
            fuels += [_fuel(carbons, 2 * carbons, 0), _fuel(carbons, 2 * carbons - 2, 0)]
        found += [((fuel, "O2"), ("CO2", "H2O")) for fuel in fuels]
    return found


def _fuel(carbons: int, hydrogens: int, oxygens: int) -> str:
    return "".join(f"{s}{n if n > 1 else ''}" for s, n in (("C", carbons), ("H", hydrogens), ("O", oxygens)) if n)


def _acid_reactions() -> list[Sides]:
    """Of hydroxides, oxides and carbonates."""
    found: list[Sides] = []
    for anion, negative in ACIDS.items():
        acid = f"H{negative if negative > 1 else ''}{anion}"
        for metal, positive in METALS.items():
            salt = compound(metal, positive, anion, negative)
            found.append(((compound(metal, positive, "OH", 1), acid), (salt, "H2O")))
            found.append(((compound(metal, positive, "O", 2), acid), (salt, "H2O")))
            if metal in CARBONATE_METALS:
                found.append(((compound(metal, positive, "CO3", 2), acid), (salt, "CO2", "H2O")))
    return found


def compound(metal: str, positive: int, anion: str, negative: int) -> str:
    """The neutral formula of two ions, groups in brackets where they come more than once."""
    divisor = gcd(positive, negative)
    metals, anions = negative // divisor, positive // divisor
    is_group = sum(letter.isupper() for letter in anion) > 1 or any(letter.isdigit() for letter in anion)
    shown = f"({anion}){anions}" if anions > 1 and is_group else f"{anion}{anions}" if anions > 1 else anion
    return f"{metal}{metals if metals > 1 else ''}{shown}"
