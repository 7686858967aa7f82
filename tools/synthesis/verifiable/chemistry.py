"""Molar masses, mass shares, electron configurations, balanced equations and amounts in them."""

from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

from tools.synthesis.verifiable.elements import atoms, elements, molar_mass
from tools.synthesis.verifiable.reactions import Sides, balance, equation, reactions
from tools.synthesis.verifiable.topic import Choices, Topic, Values, over, plain
from tools.synthesis.verifiable.wording import words

COMPOUNDS = (
    "H2O", "H2O2", "NH3", "CH4", "CO", "CO2", "NO", "NO2", "N2O", "SO2", "SO3", "HCl", "HBr", "HF", "H2S", "HNO3",
    "H2SO4", "H3PO4", "H2CO3", "HClO4", "NaCl", "NaOH", "NaHCO3", "Na2CO3", "Na2SO4", "NaNO3", "Na2S2O3", "NaClO",
    "KCl", "KBr", "KI", "KOH", "KNO3", "K2CO3", "KMnO4", "K2Cr2O7", "KClO3", "KAl(SO4)2·12H2O", "CaO", "Ca(OH)2",
    "CaCO3", "CaCl2", "CaSO4", "CaSO4·2H2O", "Ca3(PO4)2", "CaF2", "Ca(NO3)2", "MgO", "Mg(OH)2", "MgCO3", "MgCl2",
    "MgSO4", "MgSO4·7H2O", "Al2O3", "Al(OH)3", "AlCl3", "Al2(SO4)3", "SiO2", "SiC", "SiCl4", "P4O10", "PCl3", "PCl5",
    "Fe2O3", "Fe3O4", "FeO", "FeS2", "FeCl2", "FeCl3", "FeSO4·7H2O", "Fe(OH)3", "Fe2(SO4)3", "CuO", "Cu2O", "CuSO4",
    "CuSO4·5H2O", "Cu(NO3)2", "Cu2(OH)2CO3", "ZnO", "ZnS", "ZnCl2", "ZnSO4", "AgNO3", "AgCl", "AgBr", "BaSO4", "BaCl2",
    "Ba(OH)2", "BaCO3", "PbO2", "PbSO4", "Pb(NO3)2", "MnO2", "MnSO4", "CrCl3", "Cr2O3", "TiO2", "TiCl4", "WO3", "HgO",
    "NH4Cl", "NH4NO3", "(NH4)2SO4", "(NH4)2CO3", "NH4HCO3", "C2H6", "C2H4", "C2H2", "C3H8", "C4H10", "C6H6", "C7H8",
    "CH3OH", "C2H5OH", "C3H8O3", "CH3COOH", "C6H12O6", "C12H22O11", "CO(NH2)2",
    "C6H8O7", "C9H8O4", "C8H10N4O2",
    "CHCl3", "CCl4",
)  # fmt: skip
PERCENT = Decimal("0.01")


def topics() -> list[Topic]:
    """All topics of the kind. Errors: ConfigError if the facts of the elements are not installed."""
    table = list(elements().values())
    subshells = [(element.symbol, shell) for element in table for shell, _ in element.configuration]
    shares = [(formula, symbol) for formula in COMPOUNDS for symbol in atoms(formula) if len(atoms(formula)) > 1]
    mass = Choices(formula=COMPOUNDS, quarters=range(1, 121))
    pairs = [(sides, reactant, product) for sides in reactions() for reactant in sides[0] for product in sides[1]]
    amounts = Choices(pair=pairs, halves=range(1, 61))
    return [
        _worded("electron_configuration", Choices(symbol=[element.symbol for element in table]), _configuration),
        _worded("subshell_electrons", Choices(pair=subshells), lambda language, pair: _subshell(language, *pair)),
        over("molar_mass", Choices(formula=COMPOUNDS), _molar_mass, discipline="chemistry"),
        over("mass_of_amount", mass, _mass_of_amount, discipline="chemistry"),
        _worded("mass_share", Choices(pair=shares), lambda language, pair: _mass_share(language, *pair)),
        over("balancing", Choices(sides=reactions()), _balancing, discipline="chemistry"),
        over("amount_of_product", amounts, lambda pair, halves: _amount(halves, *pair), discipline="chemistry"),
    ]


def _worded(name: str, choices: Choices, make: Callable[..., Values]) -> Topic:
    """A topic that needs names: make(language, a, b, ...)."""
    return Topic(name, "chemistry", choices.size, lambda index, language: make(language, *choices[index]))


def _name(symbol: str, language: str) -> str:
    element = elements()[symbol]
    names = words(language, "elements")
    return names[element.number - 1] if names else element.name.lower()


def _configuration(language: str, symbol: str) -> Values:
    element = elements()[symbol]
    full = " ".join(f"{shell}{count}" for shell, count in element.configuration)
    return {
        "name": _name(symbol, language),
        "symbol": symbol,
        "number": str(element.number),
        "short": element.short_configuration,
        "sum": " + ".join(str(count) for _, count in element.configuration),
        "final": full,
    }


def _subshell(language: str, symbol: str, shell: str) -> Values:
    element = elements()[symbol]
    return {
        "name": _name(symbol, language),
        "symbol": symbol,
        "number": str(element.number),
        "shell": shell,
        "full": " ".join(f"{name}{count}" for name, count in element.configuration),
        "final": str(dict(element.configuration)[shell]),
    }


def _mass_steps(formula: str) -> str:
    return " + ".join(
        f"{count} × {elements()[symbol].mass}" if count > 1 else str(elements()[symbol].mass)
        for symbol, count in atoms(formula).items()
    )


def _molar_mass(formula: str) -> Values:
    return {
        "formula": formula,
        "masses": ", ".join(f"{symbol} {elements()[symbol].mass}" for symbol in atoms(formula)),
        "atoms": ", ".join(f"{symbol}: {count}" for symbol, count in atoms(formula).items()),
        "sum": _mass_steps(formula),
        "final": str(molar_mass(formula)),
    }


def _mass_of_amount(formula: str, quarters: int) -> Values:
    amount = Decimal(quarters) / 4
    return _molar_mass(formula) | {
        "molar_mass": str(molar_mass(formula)),
        "amount": plain(amount),
        "final": plain(amount * molar_mass(formula)),
    }


def _mass_share(language: str, formula: str, symbol: str) -> Values:
    part = elements()[symbol].mass * atoms(formula)[symbol]
    share = (100 * part / molar_mass(formula)).quantize(PERCENT, ROUND_HALF_UP)
    return _molar_mass(formula) | {
        "name": _name(symbol, language),
        "symbol": symbol,
        "count": str(atoms(formula)[symbol]),
        "mass": str(elements()[symbol].mass),
        "part": str(part),
        "molar_mass": str(molar_mass(formula)),
        "final": str(share),
    }


def _counts(sides: Sides) -> str:
    """One line an element: how many atoms stand on each side of the balanced equation."""
    coefficients = balance(sides)
    left, right = sides
    lines = []
    for symbol in dict.fromkeys(symbol for formula in left for symbol in atoms(formula)):
        terms = [
            f"{number} × {atoms(formula)[symbol]}"
            for number, formula in zip(coefficients, left + right, strict=True)
            if atoms(formula)[symbol]
        ]
        cut = sum(symbol in atoms(formula) for formula in left)
        total = sum(n * atoms(formula)[symbol] for n, formula in zip(coefficients, left, strict=False))
        lines.append(f"{symbol}: {' + '.join(terms[:cut])} = {total} = {' + '.join(terms[cut:])}")
    return "\n".join(lines)


def _balancing(sides: Sides) -> Values:
    coefficients = balance(sides)
    return {
        "equation": equation(sides),
        "elements": ", ".join(dict.fromkeys(symbol for formula in sides[0] for symbol in atoms(formula))),
        "coefficients": ", ".join(map(str, coefficients)),
        "counts": _counts(sides),
        "final": equation(sides, coefficients),
    }


def _amount(halves: int, sides: Sides, reactant: str, product: str) -> Values:
    coefficients = dict(zip(sides[0] + sides[1], balance(sides), strict=True))
    amount = Fraction(halves, 2)
    result = amount * coefficients[product] / coefficients[reactant]
    return {
        "equation": equation(sides),
        "balanced": equation(sides, balance(sides)),
        "reactant": reactant,
        "product": product,
        "amount": plain(Decimal(halves) / 2),
        "by": str(coefficients[reactant]),
        "to": str(coefficients[product]),
        "final": str(result),
    }
