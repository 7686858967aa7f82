"""Chemical equations: families of reactions that really run, and a list; balanced by integer linear algebra."""

from functools import cache
from math import gcd

from sympy import Matrix, ilcm

from data_mixers.errors import ConfigError
from tools.synthesis.verifiable.elements import atoms

Sides = tuple[tuple[str, ...], tuple[str, ...]]

# Charges of the ions; no pair of them oxidises the other in the reactions below.
METALS = {"Li": 1, "Na": 1, "K": 1, "Mg": 2, "Ca": 2, "Sr": 2, "Ba": 2, "Zn": 2, "Al": 3}
ACIDS = {"F": 1, "Cl": 1, "Br": 1, "NO3": 1, "ClO4": 1, "SO4": 2, "PO4": 3}
CARBONATE_METALS = ("Li", "Na", "K", "Mg", "Ca", "Sr", "Ba", "Zn")
LONGEST_CHAIN = 24

LISTED = """
N2 + H2 -> NH3
H2 + O2 -> H2O
NH3 + O2 -> NO + H2O
NO + O2 -> NO2
NO2 + H2O -> HNO3 + NO
SO2 + O2 -> SO3
P4 + O2 -> P4O10
P4O10 + H2O -> H3PO4
Fe + O2 -> Fe3O4
Fe + H2O -> Fe3O4 + H2
Fe2O3 + CO -> Fe + CO2
Fe2O3 + Al -> Al2O3 + Fe
Fe + Cl2 -> FeCl3
Fe + CuSO4 -> FeSO4 + Cu
FeS2 + O2 -> Fe2O3 + SO2
FeCl3 + Cu -> FeCl2 + CuCl2
Fe(OH)2 + O2 + H2O -> Fe(OH)3
ZnS + O2 -> ZnO + SO2
PbS + O2 -> PbO + SO2
Cu2S + O2 -> Cu2O + SO2
CuO + H2 -> Cu + H2O
CuO + C -> Cu + CO2
Cu + HNO3 -> Cu(NO3)2 + NO + H2O
Cu + AgNO3 -> Cu(NO3)2 + Ag
Cu + H2SO4 -> CuSO4 + SO2 + H2O
Al + CuSO4 -> Al2(SO4)3 + Cu
Al + NaOH + H2O -> NaAl(OH)4 + H2
Al2O3 + NaOH + H2O -> NaAl(OH)4
Al4C3 + H2O -> Al(OH)3 + CH4
CaC2 + H2O -> Ca(OH)2 + C2H2
Mg3N2 + H2O -> Mg(OH)2 + NH3
Na + H2O -> NaOH + H2
K + H2O -> KOH + H2
Ca + H2O -> Ca(OH)2 + H2
Na2O2 + H2O -> NaOH + O2
Na2O2 + CO2 -> Na2CO3 + O2
Cl2 + NaOH -> NaCl + NaClO + H2O
Cl2 + NaBr -> NaCl + Br2
Br2 + KI -> KBr + I2
MnO2 + HCl -> MnCl2 + Cl2 + H2O
KMnO4 + HCl -> KCl + MnCl2 + Cl2 + H2O
K2Cr2O7 + HCl -> KCl + CrCl3 + Cl2 + H2O
KMnO4 -> K2MnO4 + MnO2 + O2
KClO3 -> KCl + O2
H2O2 -> H2O + O2
HgO -> Hg + O2
CaCO3 -> CaO + CO2
NaHCO3 -> Na2CO3 + CO2 + H2O
NH4HCO3 -> NH3 + CO2 + H2O
Cu(NO3)2 -> CuO + NO2 + O2
AgNO3 -> Ag + NO2 + O2
Cu2(OH)2CO3 -> CuO + CO2 + H2O
H2S + O2 -> SO2 + H2O
H2S + SO2 -> S + H2O
SiO2 + C -> Si + CO
SiO2 + HF -> SiF4 + H2O
SiCl4 + H2 -> Si + HCl
TiCl4 + Mg -> Ti + MgCl2
WO3 + H2 -> W + H2O
BaCl2 + Na2SO4 -> BaSO4 + NaCl
AgNO3 + CaCl2 -> AgCl + Ca(NO3)2
Pb(NO3)2 + KI -> PbI2 + KNO3
FeCl3 + NaOH -> Fe(OH)3 + NaCl
CuSO4 + NaOH -> Cu(OH)2 + Na2SO4
Ca(OH)2 + Na2CO3 -> CaCO3 + NaOH
NH4Cl + Ca(OH)2 -> CaCl2 + NH3 + H2O
Na2S2O3 + HCl -> NaCl + SO2 + S + H2O
Na2S2O3 + I2 -> Na2S4O6 + NaI
C6H12O6 + O2 -> CO2 + H2O
CO2 + H2O -> C6H12O6 + O2
C12H22O11 + O2 -> CO2 + H2O
C6H6 + O2 -> CO2 + H2O
C3H8O3 + O2 -> CO2 + H2O
CS2 + O2 -> CO2 + SO2
B2H6 + O2 -> B2O3 + H2O
PCl5 + H2O -> H3PO4 + HCl
XeF6 + H2O -> XeO3 + HF
"""


@cache
def reactions() -> tuple[Sides, ...]:
    """All equations, each once: (left, right)."""
    found = _combustions() + _acid_reactions()
    for line in LISTED.strip().splitlines():
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
