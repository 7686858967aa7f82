"""Facts of the elements from the data file of the package mendeleev, and chemical formulas read with them.

The file (SQLite) is read directly: importing the package would need pandas, SQLAlchemy, pint and others for a table
of 118 rows. `pip install --no-deps mendeleev` is all that is needed.
"""

import importlib.util
import re
import sqlite3
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path

from data_mixers.errors import ConfigError, DataError

LAST_SURE = 102  # of heavier elements the ground state is predicted, not measured
MASS_DIGITS = Decimal("0.001")  # ours: what tables in school books print at most
INSTALL = "pip install --no-deps mendeleev"


@dataclass(frozen=True)
class Element:
    number: int
    symbol: str
    name: str
    """English."""
    mass: Decimal
    """Standard atomic weight, g/mol, to three decimals."""
    configuration: tuple[tuple[str, int], ...]
    """(subshell, electrons) of the neutral atom's ground state, innermost first."""
    short_configuration: str
    """With the noble gas before it in brackets: [Ar] 3d6 4s2."""


def data_file() -> Path:
    """The package's table. Errors: ConfigError with the cure where it is not installed."""
    found = importlib.util.find_spec("mendeleev")  # finds, does not import
    for folder in found.submodule_search_locations or () if found is not None else ():
        if (Path(folder) / "elements.db").is_file():
            return Path(folder) / "elements.db"
    raise ConfigError(f"the facts about the elements are the package mendeleev's, which is not installed: {INSTALL}")


@cache
def elements() -> dict[str, Element]:
    """By symbol, hydrogen to nobelium. Errors: ConfigError, DataError naming the file."""
    path = data_file()
    try:
        with sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True) as connection:
            rows = connection.execute(
                "SELECT atomic_number, symbol, name, atomic_weight, electronic_configuration FROM elements"
                " WHERE atomic_number <= ? ORDER BY atomic_number", (LAST_SURE,),
            ).fetchall()  # fmt: skip
    except sqlite3.Error as error:
        raise DataError(f"{path} cannot be read ({error}); {INSTALL} --force-reinstall") from error
    configurations: dict[str, tuple[tuple[str, int], ...]] = {}
    found = {}
    for number, symbol, name, weight, configuration in rows:
        core, _, outer = configuration.rpartition("] ")
        subshells = tuple((part[:2], int(part[2:] or 1)) for part in outer.split())
        configurations[symbol] = configurations.get(core.removeprefix("["), ()) + subshells
        shown = " ".join(f"{shell}{count}" for shell, count in subshells)
        found[symbol] = Element(
            number=number, symbol=symbol, name=name, mass=Decimal(repr(weight)).quantize(MASS_DIGITS),
            configuration=configurations[symbol], short_configuration=f"{core}] {shown}" if core else shown,
        )  # fmt: skip
    return found


_TOKEN = re.compile(r"([A-Z][a-z]?)(\d*)|(\()|\)(\d*)")


@cache
def atoms(formula: str) -> Counter[str]:
    """How many atoms of each element: Ca(OH)2, CuSO4·5H2O. Errors: ConfigError if it is no formula."""
    total: Counter[str] = Counter()
    for part in formula.split("·"):
        times, rest = re.fullmatch(r"(\d*)(.*)", part).groups()  # type: ignore[union-attr]  # matches any text
        for symbol, count in _group(rest, formula).items():
            total[symbol] += count * int(times or 1)
    return total


def _group(text: str, formula: str) -> Counter[str]:
    stack: list[Counter[str]] = [Counter()]
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None or (token[4] is not None and len(stack) == 1):
            raise ConfigError(f"{formula!r} is no chemical formula (at {text[position:]!r})")
        if token[1]:
            stack[-1][token[1]] += int(token[2] or 1)
        elif token[3]:
            stack.append(Counter())
        else:
            inner = stack.pop()
            for symbol, count in inner.items():
                stack[-1][symbol] += count * int(token[4] or 1)
        position = token.end()
    if len(stack) > 1:
        raise ConfigError(f"{formula!r} is no chemical formula: a bracket is open")
    return stack[0]


def molar_mass(formula: str) -> Decimal:
    """In g/mol, the exact sum of the rounded atomic masses."""
    table = elements()
    return sum((table[symbol].mass * count for symbol, count in atoms(formula).items()), Decimal(0))
