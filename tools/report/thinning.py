"""A curve of any length as a few hundred stretches that keep every extreme: mean, lowest and highest value of each."""

from dataclasses import dataclass

import numpy as np

from tools.report.metrics_file import Numbers

STRETCHES = 360
"""Ours: about one for each pixel column of a figure on a telephone."""


@dataclass(frozen=True)
class Curve:
    """Values at ascending x; of a curve that was thinned, with what its stretches held."""

    x: Numbers
    y: Numbers
    """The value, or the mean of the stretch."""
    low: Numbers
    high: Numbers

    @property
    def is_thinned(self) -> bool:
        return bool((self.low != self.high).any())

    @property
    def is_empty(self) -> bool:
        return not len(self.x)


def thinned(x: Numbers, y: Numbers, *, stretches: int = STRETCHES) -> Curve:
    """The finite values of a curve, in at most `stretches` pieces of equally many points; x is each piece's last.

    Values that are not finite, or stand at no x, are left out.
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) <= stretches:
        return Curve(x, y, y, y)
    begins = np.arange(stretches) * len(x) // stretches
    ends = np.append(begins[1:], len(x))
    return Curve(
        x[ends - 1],
        np.add.reduceat(y, begins) / (ends - begins),
        np.minimum.reduceat(y, begins),
        np.maximum.reduceat(y, begins),
    )
