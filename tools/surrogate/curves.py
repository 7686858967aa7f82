"""`syne surrogate curves`: learning curves and a transfer matrix fitted from studies, for `syne mix simulate`.

    loss_i(n) = floor_i + (start_i + shock_i - floor_i) (1 + (n_i + sum_j w_ij n_j) / scale_i) ** -exponent_i
n_j are tokens read of topic j since the start, start_i the loss before the first step, which is measured, shock_i by
how much another mixture and a re-warmed rate raise it before it falls (2403.08763; fitted, at least 0); w_ij, from 0 to
1, is what a token of topic j is worth to topic i. Tokens outside these topics have a worth of their own, which the
simulation leaves out. Each resample of the runs gives one world, so the worlds differ by what the studies leave open.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError
from tools.mix_simulate import CURVES_VERSION, Curves
from tools.surrogate.outcome import Measured, topic_of
from tools.surrogate.run import open_study

Array = NDArray[np.float64]
LEAST_RUNS_A_TOPIC = 2
EXPONENTS = (0.05, 2.0)
MOST_SHOCK = 0.5  # nats
FLOOR_SHARES = (0.2, 0.98)  # of the lowest loss seen: a floor far below what was read is no finding of the fit


@dataclass(frozen=True, kw_only=True)
class Runs:
    """All validations of all runs, of the topics of one source."""

    topics: tuple[str, ...]
    start: Array
    """[topics] loss before the first step."""
    read: Array
    """[points, topics] tokens since the start."""
    others: Array
    """[points] tokens of anything else."""
    losses: Array
    """[points, topics]."""
    run: NDArray[np.int64]
    """[points] which run a point is of."""


def curves_of(folders: Sequence[Path], *, language: str, source: str, worlds: int) -> tuple[Curves, Array]:
    """The curves, and the root mean square error of each topic's fit in nats.

    Errors: ConfigError if the studies begin with different losses, or hold too few runs to tell topics apart.
    """
    runs = gathered([m for folder in folders for m in open_study(folder).measured], f"{language}/{source}/")
    count = int(runs.run.max()) + 1
    if count < LEAST_RUNS_A_TOPIC * len(runs.topics):
        raise ConfigError(
            f"{count} runs cannot tell {len(runs.topics)} topics apart; a study needs {LEAST_RUNS_A_TOPIC} runs a "
            "topic, with other shares of the topics (examples/surrogate/small/transfer.yaml)"
        )
    fits = [fit_topic(runs, index, np.ones(len(runs.run))) for index in range(len(runs.topics))]
    errors = np.array([np.sqrt(np.mean((_curve(fit, runs, i) - runs.losses[:, i]) ** 2)) for i, fit in enumerate(fits)])
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(worlds):
        weight = np.bincount(random.integers(0, count, count), minlength=count).astype(float)[runs.run]
        drawn.append([fit_topic(runs, index, weight) for index in range(len(runs.topics))])
    plans = runs.read[runs.read.sum(axis=1) > 0]
    planned = plans[-1] / plans[-1].sum()  # of the last run that read of them: any of them is a plan
    stacked = {
        name: np.array([[getattr(fit, name) for fit in world] for world in drawn])
        for name in ("floor", "reducible", "exponent", "scale")
    }
    curves = Curves(
        topics=runs.topics, transfer=np.array([[fit.worth for fit in world] for world in drawn]),
        planned=np.tile(planned, (worlds, 1)), tokens=float(runs.read.sum(axis=1).max()), **stacked,
    )  # fmt: skip
    return curves, errors


@dataclass(frozen=True, kw_only=True)
class TopicFit:
    floor: float
    reducible: float
    exponent: float
    scale: float
    """Effective tokens."""
    worth: Array
    """[topics], 1 for itself."""
    other: float
    """Worth of a token outside the topics."""


def fit_topic(runs: Runs, index: int, weight: Array) -> TopicFit:
    """Weighted least squares of one topic's curve. weight: [points]."""
    count, start, lowest = len(runs.topics), float(runs.start[index]), float(runs.losses[:, index].min())
    own = runs.read[:, index]
    far = np.delete(runs.read, index, axis=1)
    tokens = float(np.median(own[own > 0]))
    root = np.sqrt(weight)

    def unpacked(theta: Array) -> TopicFit:
        worth = np.insert(theta[5:], index, 1.0)
        floor = float(theta[0]) * lowest
        return TopicFit(
            floor=floor, reducible=start + float(theta[4]) - floor, exponent=float(theta[1]),
            scale=float(np.exp(theta[2])), worth=worth, other=float(theta[3]),
        )  # fmt: skip

    def residuals(theta: Array) -> Array:
        error: Array = root * (_curve(unpacked(theta), runs, index) - runs.losses[:, index])
        # Where nothing was read of a topic its worth is free: a weak pull to 0 keeps it from wandering.
        return np.concatenate([error, 1e-3 * theta[3:]])

    centre = np.concatenate([[0.8, 0.4, np.log(tokens), 0.1, 0.02], np.full(far.shape[1], 0.1)])
    low = np.concatenate([[FLOOR_SHARES[0], EXPONENTS[0], np.log(tokens / 1e3), 0.0, 0.0], np.zeros(count - 1)])
    high = np.concatenate([[FLOOR_SHARES[1], EXPONENTS[1], np.log(tokens * 1e3), 1.0, MOST_SHOCK], np.ones(count - 1)])
    found = optimize.least_squares(residuals, centre, bounds=(low, high), max_nfev=400)
    return unpacked(found.x)


def report(curves: Curves, errors: Array) -> str:
    """Markdown: medians over worlds, with the middle 90 % of each worth."""
    lines = [
        f"{len(curves.floor)} worlds from runs of up to {curves.tokens:,.0f} tokens of these topics; a curve is off by "
        f"{errors.mean():.4f} nats (root mean square), the worst one by {errors.max():.4f}.",
        "",
        "Worth to the row's topic of a token of the column's [middle 90 % of the worlds]:",
        "",
        f"| | {' | '.join(curves.topics)} | floor | exponent |",
        "|---|" + "---|" * (len(curves.topics) + 2),
    ]
    for index, topic in enumerate(curves.topics):
        cells = []
        for other in range(len(curves.topics)):
            values = curves.transfer[:, index, other]
            low, high = np.quantile(values, [0.05, 0.95])
            cells.append("1" if other == index else f"{np.median(values):.2f} [{low:.2f}, {high:.2f}]")
        floor, exponent = np.median(curves.floor[:, index]), np.median(curves.exponent[:, index])
        lines.append(f"| {topic} | {' | '.join(cells)} | {floor:.2f} | {exponent:.2f} |")
    middle = np.median(curves.exponent, axis=0)
    if ((middle < 1.02 * EXPONENTS[0]) | (middle > 0.98 * EXPONENTS[1])).any():
        lines += [
            "",
            f"Exponents of {EXPONENTS[0]:g} and {EXPONENTS[1]:g} are the ends of what is tried: over these tokens such "
            "curves are nearly straight, and their floors say nothing.",
        ]
    return "\n".join(lines) + "\n"


def write_curves(curves: Curves, file: Path) -> None:
    """The file of `syne mix simulate --curves`."""
    content = {"schema_version": CURVES_VERSION, **curves.to_json()}
    write_atomic(file, json.dumps(content, indent=1, allow_nan=False).encode())


def _curve(fit: TopicFit, runs: Runs, index: int) -> Array:
    effective = runs.read @ fit.worth + fit.other * runs.others
    curve: Array = fit.floor + fit.reducible * (1 + effective / fit.scale) ** -fit.exponent
    return curve


def gathered(measured: Sequence[Measured], prefix: str) -> Runs:
    """The validations behind the first step, of the topics below `prefix` that some run has read of.

    Errors: ConfigError if the runs did not validate the same sets, began at different losses, or read one topic alone.
    """
    sets = {topic_of(name): name for name in measured[0].final if name.startswith(prefix)}
    for m in measured:
        if missing := [name for name in sets.values() if any(name not in point.nll for point in m.curve)]:
            raise ConfigError(
                f"{m.arm}, seed {m.seed}: did not validate {missing[0]}, which another run of the studies did"
            )
        if len(m.curve) < 2:
            raise ConfigError(f"{m.arm}, seed {m.seed}: one validation is no curve; lower validation.interval_tokens")
    topics = [topic for topic in sorted(sets) if any(point.read.get(topic) for m in measured for point in m.curve)]
    if len(topics) < 2:
        raise ConfigError(
            f"{prefix}: the studies hold {len(topics)} topics that are read and validated; two are needed"
        )
    starts = np.array([[m.curve[0].nll[sets[topic]] for topic in topics] for m in measured])
    if float(np.ptp(starts, axis=0).max()) > 1e-3:
        raise ConfigError("the studies begin at different losses; curves need runs from one starting model")
    rows = [(number, point) for number, m in enumerate(measured) for point in m.curve[1:]]
    read = np.array([[point.read.get(topic, 0) for topic in topics] for _, point in rows], dtype=np.float64)
    everything = np.array([sum(point.read.values()) for _, point in rows], dtype=np.float64)
    return Runs(
        topics=tuple(topics),
        start=starts.mean(axis=0),
        read=read,
        others=everything - read.sum(axis=1),
        losses=np.array([[point.nll[sets[topic]] for topic in topics] for _, point in rows]),
        run=np.array([number for number, _ in rows]),
    )
