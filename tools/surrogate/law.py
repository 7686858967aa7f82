"""A mixing law: held-out loss as a function of model size N, tokens D and a language's share r of them.

    L(N, D, r) = E + A / N^alpha + B r^eta / D^beta + C / (r + eps)^gamma
Source: the D-CPT law (arXiv 2406.01375, equation of L3 with its domain ratio r). N and D are counted in units of the
largest fitted ones, so A, B and C are nats there; the A term is left out where all runs have one size.

Two scales cannot tell a floor from an exponent. So every exponent has a prior, wide and named below, and an interval is
made of fits to resampled seeds whose prior centres are drawn too (randomised maximum a posteriori): what the data leave
open stays open in the interval. How badly the law itself fits is part of the noise of every fit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

Array = NDArray[np.float64]
NAMES = ("E", "A", "B", "C", "alpha", "beta", "eta", "gamma", "eps")
# Centre and standard deviation of the logarithm. alpha and beta: 0.34 and 0.28 of arXiv 2203.15556, which other fits
# put elsewhere by a factor of two; the others are ours: a share of 5 % stops mattering, D-CPT's eta is about one.
PRIORS = {
    "alpha": (math.log(0.34), 0.5),
    "beta": (math.log(0.28), 0.7),
    "eta": (math.log(0.5), 1.0),
    "gamma": (math.log(0.5), 0.7),
    "eps": (math.log(0.05), 1.0),
    "A": (math.log(0.3), 2.0),
    "B": (math.log(0.3), 2.0),
    "C": (math.log(0.1), 2.0),
}
FLOOR_SD = 0.7
LEAST_NOISE = 1e-4  # nats: what fp32 sums and another machine move


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Means over seeds, one cell a combination of size, tokens and share."""

    size: Array
    """[cells] parameters outside the embeddings."""
    tokens: Array
    share: Array
    losses: Array
    """[cells, seeds] nats per token."""

    def where(self, chosen: NDArray[np.bool_]) -> "Cells":
        return Cells(**{name: values[chosen] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fitted law: the best fit first, then one of every resample."""

    parameters: Array
    """[1 + resamples, 9] logarithms, in the order of NAMES."""
    size_unit: float
    tokens_unit: float
    has_size: bool
    misfit: float
    """Root mean square of cell means less the law, nats."""

    def predict(self, size: Array, tokens: Array, share: Array) -> Array:
        """[1 + resamples, points]."""
        args = (size / self.size_unit, tokens / self.tokens_unit, share)
        return np.stack([_loss(theta, *args, has_size=self.has_size) for theta in self.parameters])

    def best(self) -> dict[str, float]:
        """Parameters of the best fit, by name."""
        return {name: math.exp(value) for name, value in zip(NAMES, self.parameters[0].tolist(), strict=True)}


def fit_law(cells: Cells, *, resamples: int, seed: int = 0) -> Law:
    """Fit to the cells and to `resamples` draws of their seeds."""
    random = np.random.default_rng(seed)
    size_unit, tokens_unit = float(cells.size.max()), float(cells.tokens.max())
    has_size = len(np.unique(cells.size)) > 1
    inputs = (cells.size / size_unit, cells.tokens / tokens_unit, cells.share)
    means, count = cells.losses.mean(axis=1), cells.losses.shape[1]
    of_seeds = np.sqrt(cells.losses.var(axis=1, ddof=1).mean() / count) if count > 1 else 0.0
    noise = max(float(of_seeds), LEAST_NOISE)
    centres = _centres(means)
    first = _fit(inputs, means, noise, centres, centres[0], has_size=has_size)
    rest = means - _loss(first, *inputs, has_size=has_size)
    # Cells less parameters; the priors carry what few cells cannot, so at least a third of the cells counts as free.
    free = max(len(means) - (9 if has_size else 7), len(means) / 3)
    misfit = math.sqrt(max(0.0, float(rest @ rest) / free - noise**2))
    noise = math.hypot(noise, misfit)
    best = _fit(inputs, means, noise, centres, first, has_size=has_size)
    found = [best]
    for _ in range(resamples):
        drawn = redrawn(cells.losses, random.integers(0, count, (count,))) + misfit * random.standard_normal(len(means))
        moved = (centres[0] + centres[1] * random.standard_normal(len(NAMES)), centres[1])
        found.append(_fit(inputs, drawn, noise, moved, best, has_size=has_size))
    return Law(
        parameters=np.stack(found), size_unit=size_unit, tokens_unit=tokens_unit, has_size=has_size, misfit=misfit
    )


def redrawn(losses: Array, seeds: NDArray[np.int64]) -> Array:
    """[cells] means over these seeds of [cells, seeds], drawn with replacement, as far out as means of new seeds lie.

    A mean of n that are drawn again varies by (n - 1) / n of what a mean of n new ones does: that is given back.
    """
    means, count = losses.mean(axis=1), losses.shape[1]
    moved = losses[:, seeds].mean(axis=1) - means
    widened: Array = means + moved * math.sqrt(count / max(1, count - 1))
    return widened


def interval(samples: Array, level: float) -> tuple[float, float]:
    """Of draws."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _loss(theta: Array, size: Array, tokens: Array, share: Array, *, has_size: bool) -> Array:
    floor, a, b, c, alpha, beta, eta, gamma, eps = np.exp(theta)
    # A share of 0 to the power eta is 0: what is never read does not get better with tokens.
    loss: Array = floor + b * share**eta / tokens**beta + c / (share + eps) ** gamma
    return loss + a / size**alpha if has_size else loss


def _slopes(theta: Array, size: Array, tokens: Array, share: Array, *, has_size: bool) -> Array:
    """[points, 9] of `_loss` by the logarithm of each parameter; by hand, because a fit takes a tenth of the time."""
    floor, a, b, c, alpha, beta, eta, gamma, eps = np.exp(theta)
    of_size = a / size**alpha if has_size else np.zeros(len(size))
    of_tokens = b * share**eta / tokens**beta
    of_mix = c / (share + eps) ** gamma
    log_share = np.log(np.where(share > 0, share, 1.0))  # at a share of 0 the term is 0 whatever eta is
    return np.stack(
        [
            np.full(len(size), floor), of_size, of_tokens, of_mix,
            -alpha * np.log(size) * of_size, -beta * np.log(tokens) * of_tokens, eta * log_share * of_tokens,
            -gamma * np.log(share + eps) * of_mix, -gamma * eps / (share + eps) * of_mix,
        ],
        axis=1,
    )  # fmt: skip


def _centres(means: Array) -> tuple[Array, Array]:
    """(centre, sd) of the logarithm of each parameter."""
    floor = (math.log(0.8 * float(means.min())), FLOOR_SD)
    pairs = [floor if name == "E" else PRIORS[name] for name in NAMES]
    return np.array([centre for centre, _ in pairs]), np.array([sd for _, sd in pairs])


def _fit(
    inputs: tuple[Array, Array, Array], means: Array, noise: float, priors: tuple[Array, Array], start: Array, *,
    has_size: bool,
) -> Array:  # fmt: skip
    centre, sd = priors

    def residuals(theta: Array) -> Array:
        error = (_loss(theta, *inputs, has_size=has_size) - means) / noise
        return np.concatenate([error, (theta - centre) / sd])

    def slopes(theta: Array) -> Array:
        return np.concatenate([_slopes(theta, *inputs, has_size=has_size) / noise, np.diag(1 / sd)])

    bounded = np.clip(start, centre - 6 * sd, centre + 6 * sd)
    found = optimize.least_squares(residuals, bounded, jac=slopes, method="trf", x_scale=sd, max_nfev=300)
    theta: Array = found.x
    return theta


def share_losses(laws: Sequence[tuple[Law, float]], of_share: Sequence[Array], *, size: float, tokens: float) -> Array:
    """[1 + resamples, shares]: the weighted mean of several sets' laws on a grid of shares.

    laws: of each set, and its weight. of_share: of each set, its own language's share at each point of the grid.
    """
    total = sum(weight for _, weight in laws)
    parts = []
    for (law, weight), shares in zip(laws, of_share, strict=True):
        parts.append(weight / total * law.predict(np.full_like(shares, size), np.full_like(shares, tokens), shares))
    mean: Array = np.sum(parts, axis=0)
    return mean
