"""How many pairs are wrong, from a judge that errs: Rogan and Gladen's estimate with an interval.

Source: Rogan and Gladen, American Journal of Epidemiology 107 (1978), 71: rate = (apparent + specificity - 1) /
(sensitivity + specificity - 1). The interval holds the middle 95 % of draws of all three shares from their posteriors
under Jeffreys' prior, so that counts of 0 and n keep their uncertainty; a bootstrap would call them certain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_DRAWS = 20_000
LEAST_INFORMATION = 0.1  # of sensitivity + specificity - 1, ours: below, a verdict says next to nothing


@dataclass(frozen=True)
class Count:
    """`hits` of `total`."""

    hits: int
    total: int

    @property
    def share(self) -> float:
        return self.hits / self.total if self.total else 0.0

    def draws(self, random: np.random.Generator) -> npt.NDArray[np.float64]:
        return random.beta(self.hits + 0.5, self.total - self.hits + 0.5, NUM_DRAWS)


@dataclass(frozen=True)
class Calibration:
    """What the judge said of pairs that are known to be wrong, and of those known to be right."""

    found_wrong: Count
    """Of the wrong ones called wrong: sensitivity."""
    found_right: Count
    """Of the right ones called right: specificity."""

    @property
    def information(self) -> float:
        """1 of a judge that never errs, 0 of one that guesses."""
        return self.found_wrong.share + self.found_right.share - 1


@dataclass(frozen=True)
class Rate:
    """Share of wrong pairs with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


def wrong_rates(
    called_wrong: Mapping[str, Count], sizes: Mapping[str, int], calibration: Calibration | None, *, seed: int
) -> tuple[dict[str, Rate], Rate]:
    """(by stratum, of all together, each stratum counting by its size). calibration None: the verdicts are the truth.

    All strata share the judge's draws: its errors do not average out over them.
    """
    random = np.random.default_rng(seed)
    weights = {name: sizes[name] / sum(sizes[name] for name in called_wrong) for name in called_wrong}
    if calibration is None:
        sensitivity = specificity = np.ones(NUM_DRAWS)
        exact = (1.0, 1.0)
    else:
        sensitivity, specificity = (c.draws(random) for c in (calibration.found_wrong, calibration.found_right))
        exact = (calibration.found_wrong.share, calibration.found_right.share)
    rates: dict[str, Rate] = {}
    all_draws, all_value = np.zeros(NUM_DRAWS), 0.0
    for name in sorted(called_wrong):
        draws = _corrected(called_wrong[name].draws(random), sensitivity, specificity)
        value = float(_corrected(np.array(called_wrong[name].share), np.array(exact[0]), np.array(exact[1])))
        rates[name] = _rate(value, draws)
        all_draws += weights[name] * draws
        all_value += weights[name] * value
    return rates, _rate(all_value, all_draws)


def _corrected(
    apparent: npt.NDArray[np.float64], sensitivity: npt.NDArray[np.float64], specificity: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Where a drawn judge only guesses, nothing is known: the worst is taken."""
    information = sensitivity + specificity - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        corrected = (apparent + specificity - 1) / information
    return np.clip(np.where(information > 0, corrected, 1.0), 0.0, 1.0)


def _rate(value: float, draws: npt.NDArray[np.float64]) -> Rate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Rate(value, min(float(low), value), max(float(high), value))
