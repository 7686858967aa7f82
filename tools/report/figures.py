"""Curves, stacks, bars and intervals as small SVG drawings, by matplotlib.

They are as wide as a telephone, so that their letters stay readable there; a page puts several beside each other. What
the colours mean stands beside a drawing (content.LegendEntry), not in it.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tools.report.content import Figure, LegendEntry, printable
from tools.report.metrics_file import Numbers
from tools.report.numbers import short, tick
from tools.report.svg import cleaned
from tools.report.thinning import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart also in grey and by colour-blind readers (Okabe and Ito's palette).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6BB1")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
GREY = "#767676"
WIDTH, HEIGHT = 5.0, 3.1
"""Inches; an SVG's unit is 1/72 of one."""
TOKENS = "tokens read"
_STYLE = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "font.size": 11,
    "axes.labelsize": 11, "xtick.labelsize": 10.5, "ytick.labelsize": 10.5,
    # A topic may be called a$b$, which is no formula.
    "text.parse_math": False,
    # Letters stay letters: smaller, found by a search, and any reader's fonts show every language.
    "svg.fonttype": "none", "svg.hashsalt": "report",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Line:
    label: str
    curve: Curve
    stroke: int
    """Which of the 32 there are: the colours in turn, each round of them with another dash."""
    has_markers: bool = False

    @property
    def colour(self) -> str:
        return colour_of(self.stroke)

    @property
    def dash(self) -> tuple[float, ...]:
        return DASHES[self.stroke // len(PALETTE) % len(DASHES)]


@dataclass(frozen=True, kw_only=True)
class Interval:
    row: str
    """What is measured."""
    label: str
    """Of what; the legend says its colour."""
    value: float
    low: float
    high: float
    colour: str


def colour_of(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def area_colour_of(index: int) -> str:
    """An area has no stroke to tell it from the eighth before it: every second round of colours is half as strong."""
    colour = colour_of(index)
    if index // len(PALETTE) % 2 == 0:
        return colour
    return "#" + "".join(f"{(int(colour[at : at + 2], 16) + 255) // 2:02X}" for at in (1, 3, 5))


def lines(
    title: str,
    drawn: Sequence[Line],
    *,
    y_label: str,
    stages: Sequence[float] = (),
    may_be_log: bool = True,
    from_zero: bool = False,
    zero_line: bool = False,
) -> list[Figure]:
    """Curves over tokens in one figure; none if there is nothing to draw.

    stages: x at which another stage begins. The light band of a thinned curve spans every value in it.
    """
    drawn = [line for line in drawn if not line.curve.is_empty]
    if not drawn:
        return []
    low = min(float(line.curve.low.min()) for line in drawn)
    high = max(float(line.curve.high.max()) for line in drawn)
    is_log = may_be_log and not from_zero and low > 0 and high > 8 * low

    def draw(axes: "Axes") -> None:
        for line in drawn:
            _draw_line(axes, line)
        for x in stages:
            axes.axvline(x, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
        if zero_line:
            axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set(xlabel=TOKENS, ylabel=y_label)
        axes.xaxis.set_major_formatter(tick)
        if is_log:
            _log_scale(axes, low, high)
        else:
            axes.yaxis.set_major_formatter(tick)
            if from_zero:
                axes.set_ylim(bottom=0)

    legend = [
        LegendEntry(label=line.label, colour=line.colour, dash=" ".join(f"{part:g}" for part in line.dash))
        for line in drawn
        if len(drawn) > 1 or line.label
    ]
    return [Figure(title=title, alt=_told(title, drawn, y_label), svg=_svg(draw), legend=legend)]


def lines_of_runs(
    title: str,
    labels: Mapping[str, str],
    curves: Mapping[str, Mapping[str, Curve]],
    *,
    y_label: str,
    stages: Sequence[float] = (),
    may_be_log: bool = True,
) -> list[Figure]:
    """Curves of each run by what they measure, in so many figures that no two lines of one look alike.

    One run: all in one, up to 32. Several: eight things a figure, a colour for each, a dash for each run. More runs
    than there are dashes: a figure for each thing.
    labels: of what is measured, in order. stages: shown for one run alone.
    """
    names = list(labels)
    most = len(PALETTE) if len(curves) <= len(DASHES) else 1
    if len(curves) == 1:
        most *= len(DASHES)
    parts = [names[begin : begin + most] for begin in range(0, len(names), most)]
    figures = []
    for number, part in enumerate(parts, start=1):
        drawn = [
            Line(label=labels[name] if len(curves) == 1 else f"{labels[name]}, {run}", curve=of_run[name],
                 stroke=run_index * most + index, has_markers=True)
            for run_index, (run, of_run) in enumerate(curves.items())
            for index, name in enumerate(part) if name in of_run
        ]  # fmt: skip
        numbered = f"{title} ({number} of {len(parts)})" if len(parts) > 1 else title
        figures += lines(
            numbered, drawn, y_label=y_label, stages=stages if len(curves) == 1 else (), may_be_log=may_be_log
        )
    return figures


def stack(
    title: str,
    edges: Numbers,
    areas: Sequence[tuple[str, str, Numbers]],
    *,
    stages: Sequence[float],
    planned_from: float,
) -> list[Figure]:
    """Shares of the tokens over tokens, one above the other; none if there are none.

    areas: (label, colour, its share in each stretch between two edges).
    planned_from: x from which on they are a plan, drawn lighter.
    """
    if not areas or len(edges) < 2:
        return []

    def draw(axes: "Axes") -> None:
        base = np.zeros(len(edges) - 1)
        is_read = edges[1:] <= planned_from
        for _, colour, shares in areas:
            top = base + shares
            for part, alpha in ((is_read, 1.0), (~is_read, 0.4)):
                for begin, end in _runs(part):
                    across = slice(begin, end)
                    axes.fill_between(
                        edges[begin : end + 1], np.append(base[across], base[end - 1]),
                        np.append(top[across], top[end - 1]), step="post", color=colour, alpha=alpha, linewidth=0,
                    )  # fmt: skip
            base = top
        for x in stages:
            axes.axvline(x, color="white", linewidth=1.2, linestyle=(0, (1, 2)))
        axes.set(xlabel=TOKENS, ylabel="share of tokens", ylim=(0, 1), xlim=(edges[0], edges[-1]))
        axes.xaxis.set_major_formatter(tick)
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        axes.grid(False)

    told = "; ".join(f"{label} {shares[0]:.1%} at first, {shares[-1]:.1%} at last" for label, _, shares in areas)
    legend = [LegendEntry(label=label, colour=colour, kind="area") for label, colour, _ in reversed(areas)]
    return [Figure(title=title, alt=f"{title}: {told}.", svg=_svg(draw), legend=legend)]


def bars(title: str, rows: Sequence[str], parts: Sequence[tuple[str, str, Sequence[float]]], *, x_label: str) -> Figure:
    """A bar a row, of parts (label, colour, a value per row) one after the other."""

    def draw(axes: "Axes") -> None:
        left = np.zeros(len(rows))
        for _, colour, values in parts:
            axes.barh(range(len(rows)), values, left=left, color=colour, height=0.6)
            left += np.array(values)
        _row_axis(axes, rows, x_label)
        axes.grid(False, axis="y")

    told = "; ".join(
        f"{row}: " + ", ".join(f"{label} {values[index]:.3g}" for label, _, values in parts)
        for index, row in enumerate(rows)
    )
    legend = [LegendEntry(label=label, colour=colour, kind="area") for label, colour, _ in parts]
    svg = _svg(draw, height=0.9 + 0.4 * len(rows))
    return Figure(title=title, alt=f"{title}, {x_label}: {told}.", svg=svg, legend=legend)


def intervals(title: str, found: Sequence[Interval], *, x_label: str) -> list[Figure]:
    """A row for each thing measured, a point with its interval for each of what was measured; none of nothing."""
    if not found:
        return []
    rows = list(dict.fromkeys(interval.row for interval in found))
    labels = list(dict.fromkeys(interval.label for interval in found))

    def draw(axes: "Axes") -> None:
        for interval in found:
            offset = 0.5 * ((labels.index(interval.label) + 0.5) / len(labels) - 0.5)
            y = rows.index(interval.row) + offset
            axes.plot([interval.low, interval.high], [y, y], color=interval.colour, linewidth=1.6)
            axes.plot(interval.value, y, "o", color=interval.colour, markersize=4)
        _row_axis(axes, rows, x_label)

    told = "; ".join(f"{i.row} {i.label} {i.value:.4g}" for i in found)
    colours = {interval.label: interval.colour for interval in found}
    legend = [LegendEntry(label=label, colour=colours[label]) for label in labels]
    svg = _svg(draw, height=0.9 + 0.34 * len(rows))
    return [Figure(title=title, alt=f"{title}, {x_label}: {told}.", svg=svg, legend=legend)]


def _row_axis(axes: "Axes", rows: Sequence[str], x_label: str) -> None:
    axes.set_yticks(range(len(rows)), [_cut(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set(xlabel=x_label)
    axes.xaxis.set_major_formatter(tick)


def _draw_line(axes: "Axes", line: Line) -> None:
    curve = line.curve
    if curve.is_thinned:
        axes.fill_between(curve.x, curve.low, curve.high, color=line.colour, alpha=0.22, linewidth=0)
    style = (0, line.dash) if line.dash else "-"
    few = line.has_markers and len(curve.x) <= 60
    marker = "o" if few or len(curve.x) == 1 else ""
    axes.plot(curve.x, curve.y, color=line.colour, linestyle=style, marker=marker, markersize=2.6, linewidth=1.3)


def _log_scale(axes: "Axes", low: float, high: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    subs = (1.0,) if high > 1e3 * low else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(tick)  # matplotlib's own writes powers in its mathematics


def _runs(flags: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """(begin, end) of every run of true flags."""
    bounds = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(int), [0]))))
    yield from zip(bounds[::2].tolist(), bounds[1::2].tolist(), strict=True)


def _told(title: str, drawn: Sequence[Line], y_label: str) -> str:
    parts = []
    for line in drawn:
        curve = line.curve
        name = f"{line.label}: " if line.label else ""
        parts.append(
            f"{name}{tick(float(curve.y[0]))} at first, {tick(float(curve.y[-1]))} at last, between "
            f"{tick(float(curve.low.min()))} and {tick(float(curve.high.max()))}"
        )
    first = min(float(line.curve.x[0]) for line in drawn)
    last = max(float(line.curve.x[-1]) for line in drawn)
    return f"{title} in {y_label}, from {short(first)} to {short(last)} {TOKENS}. {'; '.join(parts)}."


def _cut(text: str, most: int = 22) -> str:
    text = printable(text)  # a drawing that is no XML could not be read again
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _svg(draw: Callable[["Axes"], None], *, height: float = HEIGHT) -> str:
    import matplotlib
    from matplotlib.figure import Figure as Canvas  # not pyplot: that keeps every figure in global state

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # only its width is guessed
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        draw(canvas.subplots())
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return cleaned(buffer.getvalue())
