"""One figure of a run: training loss, held-out text per set, learning rate, and what was read."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_mixers.errors import DataError
from tools.report.numbers import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
# Colours by language, told apart also in grey and by colour-blind readers (Okabe and Ito's palette).
LANGUAGE_COLOURS = {"zh": "#D55E00", "en": "#0072B2", "code": "#009E73", "synthetic": "#CC79A7"}
OTHER_COLOUR = "#7f7f7f"
LINE_STYLES = ("-", "--", "-.", ":", (0, (1, 1)), (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))


def plot(metrics_jsonl: Path, out_png: Path) -> None:
    """Draws `metrics_jsonl` into `out_png`, whole or not at all. A quantity that the rows lack leaves its panel empty.

    Errors: DataError when the file is missing or holds no row.
    """
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: that keeps every figure in global state

    rows = metrics_rows(metrics_jsonl)
    train = [row for row in rows if row.get("kind") == "train"]
    validation = [row for row in rows if row.get("kind") == "validation"]
    style = {"axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False,
             "axes.titlelocation": "left", "axes.titleweight": "bold", "legend.frameon": False,
             "font.size": 10}  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(15, 9.5), layout="constrained")
        axes = figure.subplots(2, 2)
        _draw_loss(axes[0][0], train)
        _draw_validation(axes[0][1], validation)
        _draw_learning_rate(axes[1][0], train)
        _draw_mixture(axes[1][1], train)
        for axis in axes.flat:
            axis.xaxis.set_major_formatter(lambda tokens, _: short(tokens))
            axis.set_xlim(left=0)
            axis.set_xlabel("tokens read")
            if not axis.has_data():
                axis.text(0.5, 0.5, "not in the metrics", transform=axis.transAxes, ha="center", color=OTHER_COLOUR)
        temporary = out_png.with_name(f"{out_png.name}.partial")
        figure.savefig(temporary, dpi=110, format="png")
    temporary.rename(out_png)


def metrics_rows(path: Path) -> list[Row]:
    """The file's rows; a last line cut off by a kill is left out."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; train first")
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as fault:
            if number < len(lines):
                raise DataError(f"{path}, line {number}: not JSON ({fault})") from fault
    if not rows:
        raise DataError(f"{path}: holds no row; train first")
    return rows


def _series(rows: list[Row], key: str) -> tuple[list[float], list[float]]:
    """Tokens read and the finite values of `key`, of the rows that have both."""
    pairs = [(row["consumed_tokens"], row[key]) for row in rows if _has(row, "consumed_tokens") and _has(row, key)]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _has(row: Row, key: str) -> bool:
    return isinstance(row.get(key), int | float) and math.isfinite(row[key])


def _draw_loss(axis: "Axes", train: list[Row]) -> None:
    tokens, losses = _series(train, "lm_loss")
    axis.set_title("Training loss")
    axis.set_ylabel("nats per token")
    if not tokens:
        return
    axis.plot(tokens, losses, color=OTHER_COLOUR, alpha=0.45, linewidth=1, label="each step")
    smooth = _smoothed(losses, span=max(1, len(losses) // 15))
    axis.plot(tokens, smooth, color="black", linewidth=2, label="smoothed")
    axis.legend(loc="upper right")


def _smoothed(values: list[float], *, span: int) -> list[float]:
    """Mean of each value and its neighbours up to `span` to either side."""
    return [sum(part) / len(part) for i in range(len(values)) for part in [values[max(0, i - span) : i + span + 1]]]


def _draw_validation(axis: "Axes", validation: list[Row]) -> None:
    """Bits per byte, so that languages share one scale; the legend gives both ends."""
    axis.set_title("Held-out text")
    axis.set_ylabel("bits per byte")
    by_set: dict[str, list[Row]] = defaultdict(list)
    for row in validation:
        by_set[str(row.get("set", "?"))].append(row)
    num_of_language: dict[str, int] = defaultdict(int)
    for name in sorted(by_set, key=_by_language):
        tokens, bits = _series(by_set[name], "bits_per_byte")
        if not tokens:
            continue
        language = name.split("/")[0]
        style = LINE_STYLES[num_of_language[language] % len(LINE_STYLES)]
        num_of_language[language] += 1
        label = f"{name}  {bits[0]:.2f} → {bits[-1]:.2f}"
        colour = LANGUAGE_COLOURS.get(language, OTHER_COLOUR)
        axis.plot(tokens, bits, color=colour, linestyle=style, marker="o", markersize=3.5, linewidth=1.4, label=label)
    if num_of_language:
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, handlelength=3)


def _draw_learning_rate(axis: "Axes", train: list[Row]) -> None:
    tokens, rates = _series(train, "learning_rate")
    axis.set_title("Learning rate")
    if not tokens:
        return
    axis.plot(tokens, rates, color="black", linewidth=2)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axis.set_ylim(bottom=0)
    tokens, norms = _series(train, "grad_norm")
    if tokens:
        right = axis.twinx()
        right.plot(tokens, norms, color="#E69F00", linewidth=1, alpha=0.8)
        right.set_ylabel("gradient norm (before clipping)", color="#B07700")
        right.set_ylim(bottom=0)
        right.grid(False)


def _draw_mixture(axis: "Axes", train: list[Row]) -> None:
    """Cumulative samples by source, stacked, one hue a language."""
    axis.set_title("Mixture: read so far, by source")
    axis.set_ylabel("samples")
    key = "samples_by_source"
    rows = [row for row in train if isinstance(row.get(key), dict) and _has(row, "consumed_tokens")]
    sources = sorted({source for row in rows for source in row[key]}, key=_by_language)
    amounts = [[row[key].get(source, 0) for row in rows] for source in sources]
    if not sources:
        return
    total = max(sum(series[-1] for series in amounts), 1)
    labels = [f"{source}  {series[-1] / total:.1%}" for source, series in zip(sources, amounts, strict=True)]
    axis.stackplot([row["consumed_tokens"] for row in rows], amounts, labels=labels, colors=_shades(sources), lw=0.5,
                   edgecolor="white")  # fmt: skip
    axis.yaxis.set_major_formatter(lambda amount, _: short(amount))
    handles, names = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)


def _shades(sources: list[str]) -> list[tuple[float, float, float]]:
    """One hue a language, lighter from source to source."""
    from matplotlib.colors import to_rgb

    shades = []
    for source in sources:
        same = [other for other in sources if other.split("/")[0] == source.split("/")[0]]
        white = 0.65 * same.index(source) / len(same)
        red, green, blue = to_rgb(LANGUAGE_COLOURS.get(source.split("/")[0], OTHER_COLOUR))
        shades.append((red + (1 - red) * white, green + (1 - green) * white, blue + (1 - blue) * white))
    return shades


def _by_language(name: str) -> tuple[int, str]:
    languages = list(LANGUAGE_COLOURS)
    language = name.split("/")[0]
    return (languages.index(language) if language in languages else len(languages), name)
