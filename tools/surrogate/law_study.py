"""`syne surrogate law`: the mixing law of a study, checked at a scale it has not seen, and the best share at the next.

results of a study ─ cells (size, tokens, share) of each held-out set ─ fit without the largest scale ─> prediction
there, beside what was measured ─ fit with it ─> loss and best share at the next scale
The largest scale is the largest model, where the study has several, else the last validation.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_mixers.atomic import publish, temporary_path, write_atomic
from data_mixers.errors import ConfigError
from megatron_synE.checkpoint.hf_mapping import global_tensors
from megatron_synE.config.derive import resolve_architecture
from megatron_synE.config.load import load_config
from tools.surrogate.arms import Arm
from tools.surrogate.law import Array, Cells, Law, fit_law, interval, share_losses
from tools.surrogate.outcome import group_loss, members
from tools.surrogate.run import Finished, open_study
from tools.surrogate.study import Study

RESAMPLES = 200
LEVEL = 0.9  # of every interval
GRID = 81  # shares that are tried, from the least to the largest of the study


@dataclass(frozen=True, kw_only=True)
class Check:
    """One held-out set, arm and validation at the scale that was left out."""

    set: str
    share: float
    tokens: float
    measured: float
    predicted: float
    low: float
    high: float

    @property
    def is_inside(self) -> bool:
        return self.low <= self.measured <= self.high


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The best share of synthetic text at a scale, for the mean of all groups."""

    tokens: float
    share: float
    low: float
    high: float
    spread_of_losses: float
    """Loss of the worst share of the grid less that of the best, nats: how much the choice matters."""


@dataclass(frozen=True, kw_only=True)
class LawReport:
    """What the law of a study says."""

    checks: tuple[Check, ...]
    left_out: str
    forecasts: tuple[Forecast, ...]
    """Where it was measured at most, then at the next scale."""
    measured_best: float
    """The arm with the least mean loss at the largest scale."""
    laws: dict[str, Law]


def law_of(folder: Path, *, tokens: float | None = None, resamples: int = RESAMPLES) -> LawReport:
    """tokens: of the next scale; None: twice the largest. Errors: ConfigError if the study has no synthetic_share."""
    finished = open_study(folder)
    if "synthetic_share" not in finished.study.grid:
        raise ConfigError(f"{folder}: a mixing law needs the factor synthetic_share in the grid of the study")
    sizes = {arm.name: size_of(finished.study, arm) for arm in finished.arms}
    _check_factors(folder, finished, sizes)
    sets = list(dict.fromkeys(s for g in finished.study.outcome.groups for s in _members(finished, g)))
    _check_shares(folder, finished, sets, sizes)
    cells = {name: cells_of(finished, name, sizes) for name in sets}
    first = cells[sets[0]]
    several = len(np.unique(first.size)) > 1
    scale = first.size if several else first.tokens
    if len(np.unique(scale)) < 3:
        what = "models" if several else "validations after the first step"
        raise ConfigError(
            f"{folder}: a law needs three {what}, two to fit and one to check; lower validation.interval_tokens"
        )
    is_last = scale == scale.max()
    checks = []
    for name in sets:
        law = fit_law(cells[name].where(~is_last), resamples=resamples)
        checks += _checked(name, law, cells[name].where(is_last))
    laws = {name: fit_law(cells[name], resamples=resamples) for name in sets}
    largest = float(first.tokens.max())
    forecasts = [_forecast(finished, laws, sizes, at) for at in (largest, tokens or 2 * largest)]
    return LawReport(
        checks=tuple(checks),
        left_out=f"size {scale.max():,.0f}" if several else f"{largest:,.0f} tokens",
        forecasts=tuple(forecasts),
        measured_best=_measured_best(finished, sizes),
        laws=laws,
    )


def _check_factors(folder: Path, finished: Finished, sizes: dict[str, float]) -> None:
    """Errors: ConfigError if two arms differ in what the law does not know: their losses would be one cell's."""
    known: dict[tuple[float, float], str] = {}
    for arm in finished.arms:
        cell = (sizes[arm.name], float(arm.levels["synthetic_share"]))
        if (other := known.setdefault(cell, arm.name)) != arm.name:
            raise ConfigError(
                f"{folder}: the mixing law knows size, tokens and share alone, and the arms {other} and {arm.name} "
                "differ in something else; fit it to a study whose grid has synthetic_share and model sizes only"
            )
    if len(tokens := sorted({arm.tokens for arm in finished.arms})) > 1:
        raise ConfigError(
            f"{folder}: its arms read {', '.join(f'{count:,}' for count in tokens)} tokens; the mixing law is fitted "
            "to arms of one length, whose validations give the smaller counts"
        )


def _check_shares(folder: Path, finished: Finished, sets: Sequence[str], sizes: dict[str, float]) -> None:
    """Errors: ConfigError for a set whose language has one share in several arms: their losses would be one cell's."""
    for name in sets:
        language = name.split("/")[0]
        places = {(sizes[arm.name], share_of(finished.study, arm, language)) for arm in finished.arms}
        if len(places) < len(finished.arms):
            raise ConfigError(
                f"{folder}: the mixing law of {name} needs a share of {language} that differs between the arms, and "
                "theirs does not: synthetic text takes nothing from what is not read. Take the set out of "
                f"outcome.groups in {folder / 'study.yaml'}, which leaves the study's runs as they are"
            )


def cells_of(finished: Finished, name: str, sizes: dict[str, float]) -> Cells:
    """The cells of one held-out set: every validation after the first step of every arm."""
    language = name.split("/")[0]
    shares = {arm.name: share_of(finished.study, arm, language) for arm in finished.arms}
    rows: dict[tuple[float, float, float], list[float]] = {}
    for measured in finished.measured:
        start = measured.curve[0].consumed_tokens
        for point in measured.curve[1:]:
            key = (sizes[measured.arm], float(point.consumed_tokens - start), shares[measured.arm])
            rows.setdefault(key, []).append(point.nll[name])
    keys = sorted(rows)
    return Cells(
        size=np.array([key[0] for key in keys]),
        tokens=np.array([key[1] for key in keys]),
        share=np.array([key[2] for key in keys]),
        losses=np.array([rows[key] for key in keys]),
    )


def share_of(study: Study, arm: Arm, language: str) -> float:
    """Of a language, in the stage whose synthetic share the study sets."""
    stage = load_config(study.base, list(arm.overrides)).resolved.data.stages[study.synthetic.stage]
    return float(stage.languages.get(language, 0.0))


def size_of(study: Study, arm: Arm) -> float:
    """Parameters outside the embeddings."""
    architecture, _ = resolve_architecture(load_config(study.base, list(arm.overrides)).resolved)
    return float(sum(math.prod(s) for key, s in global_tensors(architecture).items() if key.startswith("decoder.")))


def report(found: LawReport) -> str:
    """Markdown."""
    inside = sum(check.is_inside for check in found.checks)
    errors = [abs(check.predicted - check.measured) for check in found.checks]
    lines = [
        f"Fitted without {found.left_out}, then compared with what was measured there: {inside} of {len(found.checks)} "
        f"losses lie in their {LEVEL:.0%} interval; mean absolute error {np.mean(errors):.4f} nats, largest "
        f"{np.max(errors):.4f}.",
        "",
        "| held-out set | share of its language | tokens | measured | predicted | interval | inside |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for check in found.checks:
        lines.append(
            f"| {check.set} | {check.share:.3f} | {check.tokens:,.0f} | {check.measured:.4f} | {check.predicted:.4f} | "
            f"[{check.low:.4f}, {check.high:.4f}] | {'yes' if check.is_inside else 'no'} |"
        )
    lines.append("")
    for number, forecast in enumerate(found.forecasts):
        where = "the largest scale measured" if number == 0 else "the next scale"
        lines.append(
            f"Best share of synthetic text at {forecast.tokens:,.0f} tokens ({where}), by the mean of all groups: "
            f"{forecast.share:.3f} [{forecast.low:.3f}, {forecast.high:.3f}]; the worst share of the range costs "
            f"{forecast.spread_of_losses:.4f} nats more."
        )
    lines.append(f"The arm measured best at the largest scale has {found.measured_best:g}.")
    return "\n".join(lines) + "\n"


def write_law(found: LawReport, folder: Path) -> list[Path]:
    """law.md, law.json and law.png in the study's folder."""
    content = {
        "left_out": found.left_out,
        "checks": [vars(check) for check in found.checks],
        "forecasts": [vars(forecast) for forecast in found.forecasts],
        "measured_best": found.measured_best,
        "laws": {name: law.best() | {"misfit": law.misfit} for name, law in found.laws.items()},
    }
    write_atomic(folder / "law.json", json.dumps(content, indent=1, allow_nan=False).encode())
    write_atomic(folder / "law.md", report(found).encode())
    _draw(found, folder / "law.png")
    return [folder / name for name in ("law.md", "law.json", "law.png")]


def _members(finished: Finished, group: str) -> list[str]:
    return members(finished.study.outcome, group, list(finished.measured[0].final))


def _checked(name: str, law: Law, cells: Cells) -> list[Check]:
    drawn = law.predict(cells.size, cells.tokens, cells.share)
    random = np.random.default_rng(0)
    count = cells.losses.shape[1]
    checks = []
    for index, losses in enumerate(cells.losses):
        # What was measured is a mean of few seeds, and the law fits as well as it fits: both belong to the interval.
        noise = math.hypot(float(losses.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0, law.misfit)
        low, high = interval(drawn[1:, index] + noise * random.standard_normal(len(drawn) - 1), LEVEL)
        checks.append(
            Check(set=name, share=float(cells.share[index]), tokens=float(cells.tokens[index]),
                  measured=float(losses.mean()), predicted=float(drawn[0, index]), low=low, high=high)
        )  # fmt: skip
    return checks


def _forecast(finished: Finished, laws: dict[str, Law], sizes: dict[str, float], tokens: float) -> Forecast:
    study = finished.study
    levels = [float(level) for level in study.grid["synthetic_share"]]
    grid = np.linspace(min(levels), max(levels), GRID)
    weighted, of_share = [], []
    for group in study.outcome.groups:
        names = _members(finished, group)
        for name in names:
            weighted.append((laws[name], 1 / len(names)))  # groups count alike, and sets alike inside a group
            of_share.append(_along(finished, name.split("/")[0], grid))
    losses = share_losses(weighted, of_share, size=max(sizes.values()), tokens=tokens)
    best = grid[losses.argmin(axis=1)]
    low, high = interval(best[1:], LEVEL)
    spread = float(losses[0].max() - losses[0].min())
    return Forecast(tokens=tokens, share=float(best[0]), low=low, high=high, spread_of_losses=spread)


def _along(finished: Finished, language: str, grid: NDArray[np.float64]) -> Array:
    """The language's share where that of synthetic text is each of the grid: a straight line between the arms."""
    study = finished.study
    synthetic = np.array([share_of(study, arm, study.synthetic.language) for arm in finished.arms])
    own = np.array([share_of(study, arm, language) for arm in finished.arms])
    order = np.argsort(synthetic)
    along: Array = np.interp(grid, synthetic[order], own[order])
    return along


def _measured_best(finished: Finished, sizes: dict[str, float]) -> float:
    outcome, largest = finished.study.outcome, max(sizes.values())

    def loss(arm: Arm) -> float:
        final = [measured.final for measured in finished.measured if measured.arm == arm.name]
        return statistics.fmean(group_loss(outcome, group, nll) for nll in final for group in outcome.groups)

    best = min((arm for arm in finished.arms if sizes[arm.name] == largest), key=loss)
    return float(best.levels["synthetic_share"])


def curves_of(found: LawReport, name: str) -> dict[float, list[Check]]:
    """Tokens -> the checks of a held-out set by share: a curve for each validation of the scale that was left out."""
    curves: dict[float, list[Check]] = {}
    for check in sorted(found.checks, key=lambda check: (check.tokens, check.share)):
        if check.set == name:
            curves.setdefault(check.tokens, []).append(check)
    return curves


def _draw(found: LawReport, file: Path) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(check.set for check in found.checks))
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3 * columns, 2.5 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        for number, (tokens, checks) in enumerate(curves_of(found, name).items()):
            shares, color = [check.share for check in checks], f"C{number}"
            axis.fill_between(shares, [c.low for c in checks], [c.high for c in checks], color=color, alpha=0.15)
            axis.plot(shares, [c.predicted for c in checks], "-", color=color, label=f"{tokens:,.0f} tokens")
            axis.plot(shares, [c.measured for c in checks], "o", color=color, markersize=4)
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    axes[0][0].legend(fontsize=7, loc="lower left")
    figure.supxlabel("share of the set's language", fontsize=9)
    figure.supylabel("held-out loss, nats per token", fontsize=9)
    title = f"law fitted without {found.left_out}: lines predicted, with {LEVEL:.0%} intervals; dots measured"
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0.015, 0, 1, 1))  # what is left free for the label of all rows
    temporary = temporary_path(file)
    figure.savefig(temporary, dpi=80, format="png")
    publish(temporary, file)
