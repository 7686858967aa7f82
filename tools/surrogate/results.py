"""What a study found, as a table in Markdown, as results.json, and as a figure with error bars."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from data_mixers.atomic import publish, temporary_path, write_atomic
from tools.surrogate.arms import references
from tools.surrogate.noise import Difference, compare
from tools.surrogate.outcome import group_loss, members
from tools.surrogate.run import Finished, num_comparisons

SCHEMA_VERSION = 1  # of results.json
TABLE, RESULTS, FIGURE = "table.md", "results.json", "figure.png"
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm and one group of held-out sets."""

    arm: str
    group: str
    mean: float
    """Over seeds, nats per token."""
    sd: float
    differences: Mapping[str, Difference]
    """Less each reference, paired by seed; itself left out."""


def rows_of(finished: Finished) -> list[Row]:
    """Groups in the order of the study, the primary first; arms in the order of the grid."""
    study, outcome = finished.study, finished.study.outcome
    groups = [outcome.primary, *(group for group in outcome.groups if group != outcome.primary)]
    names = references(study, finished.arms)
    comparisons = num_comparisons(study, finished.arms)
    rows = []
    for group in groups:
        losses = losses_of(finished, group)
        for arm in finished.arms:
            mine = losses[arm.name]
            differences = {
                name: compare(
                    [mine[seed] - losses[name][seed] for seed in study.seeds],
                    level=outcome.level, comparisons=comparisons,
                )
                for name in names
                if name != arm.name
            }  # fmt: skip
            values = list(mine.values())
            sd = float(np.std(values, ddof=1))
            rows.append(Row(arm=arm.name, group=group, mean=float(np.mean(values)), sd=sd, differences=differences))
    return rows


def losses_of(finished: Finished, group: str) -> dict[str, dict[int, float]]:
    """arm -> seed -> mean loss of the group's sets after the last token."""
    losses: dict[str, dict[int, float]] = {arm.name: {} for arm in finished.arms}
    for measured in finished.measured:
        losses[measured.arm][measured.seed] = group_loss(finished.study.outcome, group, measured.final)
    return losses


def table(finished: Finished) -> str:
    """Markdown."""
    study, outcome = finished.study, finished.study.outcome
    names = references(study, finished.arms)
    example = finished.measured[0]
    tokens = sorted({arm.tokens for arm in finished.arms})
    lines = [
        f"**{study.question}** {len(finished.arms)} arms, {len(study.seeds)} seeds, "
        f"{' to '.join(f'{count:,}' for count in dict.fromkeys((tokens[0], tokens[-1])))} tokens an arm.",
        "",
        "Held-out loss after the last token, nats per token, mean over seeds ± their standard deviation; differences "
        f"are paired by seed, with {outcome.level:.0%} intervals (Student's t). **Bold**: zero lies outside also when "
        f"{finished.resolution.comparisons} comparisons share the error.",
        "",
        f"{finished.resolution.sentence(study)}.",
        "",
        "| group | arm | loss | " + " | ".join(f"less {name}" for name in names) + " |",
        "|---|---|---:|" + "---:|" * len(names),
    ]
    for row in rows_of(finished):
        cells = [_cell(row.differences.get(name)) for name in names]
        title = f"{row.group} (primary)" if row.group == outcome.primary else row.group
        lines.append(f"| {title} | {row.arm} | {row.mean:.4f} ± {row.sd:.4f} | {' | '.join(cells)} |")
    lines.append("")
    for group in outcome.groups:
        lines.append(f"{group}: {', '.join(members(outcome, group, list(example.final)))}.")
    return "\n".join(lines) + "\n"


def write_results(finished: Finished, out: Path) -> list[Path]:
    """table.md, results.json (also every job's curve) and figure.png in `out`."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "study": finished.study.name,
        "question": finished.study.question,
        "resolution": asdict(finished.resolution),
        "rows": [asdict(row) for row in rows_of(finished)],
        "jobs": [asdict(measured) for measured in finished.measured],
    }
    write_atomic(out / RESULTS, json.dumps(content, indent=1, allow_nan=False).encode())
    write_atomic(out / TABLE, table(finished).encode())
    draw(finished, out / FIGURE)
    return [out / name for name in (TABLE, RESULTS, FIGURE)]


def draw(finished: Finished, file: Path) -> None:
    """A panel per group: mean over seeds with its interval, and every seed as a dot, less that seed's mean arm.

    What all arms of a seed share is taken out, so that the picture shows what the paired differences see. Taking out
    the mean of k arms also takes a k-th of their own variance, which the intervals give back (Morey 2008).
    """
    from matplotlib.figure import Figure

    study, groups = finished.study, list(finished.study.outcome.groups)
    names = [arm.name for arm in finished.arms]
    labels = [name.replace(",", "\n") for name in names]
    figure = Figure(figsize=(max(3.2, 0.55 * len(names) + 1.6) * len(groups), 3.8))
    axes = figure.subplots(1, len(groups), squeeze=False)
    for axis, group in zip(axes[0], groups, strict=True):
        values = _less_seed(losses_of(finished, group), names, study.seeds)  # [arms, seeds]
        means = values.mean(axis=1)
        half = half_widths(values, study.outcome.level)
        places = np.arange(len(names))
        axis.plot(np.repeat(places, values.shape[1]), values.ravel(), ".", color="0.6", markersize=5, zorder=1)
        axis.errorbar(places, means, yerr=half, fmt="o", color="C0", capsize=4, zorder=2)
        axis.set_xticks(places, labels, rotation=45, ha="right", fontsize=8)
        axis.set_title(group + (" (primary)" if group == study.outcome.primary else ""), fontsize=10)
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("held-out loss, nats per token")
    figure.suptitle(f"{study.name}: {len(study.seeds)} seeds, {study.outcome.level:.0%} intervals", fontsize=11)
    figure.tight_layout()
    temporary = temporary_path(file)
    figure.savefig(temporary, dpi=90, format="png")
    publish(temporary, file)


def half_widths(values: Array, level: float) -> Array:
    """[arms] of the interval of each arm's mean, of [arms, seeds] less each seed's mean."""
    arms, seeds = values.shape
    critical = float(stats.t.ppf(0.5 + level / 2, seeds - 1))
    widths: Array = values.std(axis=1, ddof=1) * np.sqrt(arms / (arms - 1) / seeds) * critical
    return widths


def _less_seed(losses: Mapping[str, Mapping[int, float]], names: Sequence[str], seeds: Sequence[int]) -> Array:
    """[arms, seeds], each seed's mean replaced by the mean of all."""
    values = np.array([[losses[name][seed] for seed in seeds] for name in names])
    centred: Array = values - values.mean(axis=0) + values.mean()
    return centred


def _cell(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    if difference.low == difference.high == 0:
        return "the same runs"
    text = f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    return f"**{text}**" if difference.is_resolved else text
