"""The figure of `syne data stats`: tokens, lengths and PPL of all sources side by side, a row a source."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_mixers.atomic import publish
from tools.data.stats import PPL_EDGES, SourceStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart also in grey and by colour-blind readers (Okabe and Ito's palette).
COLOURS = {"train": "#0072B2", "validation": "#D55E00", "unknown": "#7f7f7f"}


def draw(found: list[SourceStats], out_png: Path) -> None:
    """Draws the sources into `out_png`, whole or not at all."""
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: that keeps every figure in global state
    from matplotlib.patches import Patch

    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
             "axes.titleweight": "bold", "legend.frameon": False, "font.size": 10,
             "font.sans-serif": ["Noto Sans CJK SC", "WenQuanYi Zen Hei", "DejaVu Sans"]}  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(17, 2.6 + 0.34 * len(found)), layout="constrained")
        tokens, lengths, ppl = figure.subplots(1, 3, sharey=True)
        _draw_tokens(tokens, found)
        _draw_lengths(lengths, found)
        _draw_ppl(figure, ppl, found)
        tokens.set_yticks(range(len(found)), [entry.name for entry in found])
        tokens.set_ylim(len(found) - 0.5, -0.5)
        roles = dict.fromkeys(entry.role for entry in found)
        patches = [Patch(color=COLOURS[role], label=role) for role in roles]
        figure.legend(handles=patches, loc="outside lower left", ncols=len(roles))
        temporary = out_png.with_name(f".{out_png.name}.partial.png")
        figure.savefig(temporary, dpi=110)
    publish(temporary, out_png)


def _draw_tokens(axes: "Axes", found: list[SourceStats]) -> None:
    largest = max(entry.num_tokens for entry in found)
    name, scale = next(
        ((name, scale) for name, scale in (("billions", 1e9), ("millions", 1e6)) if largest >= scale),
        ("thousands", 1e3),
    )
    values = [entry.num_tokens / scale for entry in found]
    axes.barh(range(len(found)), values, height=0.7, color=[COLOURS[entry.role] for entry in found])
    for row, (entry, value) in enumerate(zip(found, values, strict=True)):
        axes.annotate(f"{entry.num_documents:,} documents", (value, row), (4, 0), textcoords="offset points",
                      va="center", fontsize=8, color="#444444")  # fmt: skip
    axes.set(title="Tokens", xlabel=f"tokens, {name}")
    axes.margins(x=0.35)


def _draw_lengths(axes: "Axes", found: list[SourceStats]) -> None:
    for row, entry in enumerate(found):
        if entry.length_quantiles is None:
            continue
        low, first, middle, third, high = (max(1.0, value) for value in entry.length_quantiles)
        axes.plot([low, high], [row, row], color=COLOURS[entry.role], linewidth=1.2)
        axes.plot([first, third], [row, row], color=COLOURS[entry.role], linewidth=6, solid_capstyle="butt")
        axes.plot(middle, row, "o", color="white", markeredgecolor="black", markersize=6)
    axes.set_xscale("log")
    axes.set(title="Document length: 5–95 %, 25–75 %, median", xlabel="tokens per document, EOS included")
    axes.grid(axis="x", alpha=0.25)


def _draw_ppl(figure: "Figure", axes: "Axes", found: list[SourceStats]) -> None:
    axes.set(title="PPL of documents", xlabel="PPL (exp of mean NLL per token)")
    if not any(entry.num_scored for entry in found):
        axes.text(
            0.5, 0.5, "no scores: run syne data score-ppl", transform=axes.transAxes, ha="center", color="#444444"
        )
        axes.set_xticks([])
        return
    shares = np.full((len(found), len(PPL_EDGES) - 1), np.nan)
    for row, entry in enumerate(found):
        if entry.num_scored and entry.ppl_histogram is not None:
            shares[row] = np.array(entry.ppl_histogram) / entry.num_scored
    shares[shares == 0] = np.nan  # left out: no document at all
    filled = np.flatnonzero(~np.isnan(shares).all(axis=0))
    mesh = axes.pcolormesh(PPL_EDGES, np.arange(len(found) + 1) - 0.5, 100 * shares, cmap="Blues", vmin=0)
    for row, entry in enumerate(found):
        if entry.ppl_quantiles is not None:
            axes.plot(entry.ppl_quantiles[2], row, "o", color="white", markeredgecolor="black", markersize=6)
        elif entry.ppl_histogram is None:
            axes.text(PPL_EDGES[filled[0]], row, " no scores", va="center", color="#444444", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(PPL_EDGES[filled[0]], PPL_EDGES[filled[-1] + 1])
    figure.colorbar(mesh, ax=axes, label="% of the source's documents per bin; dot: median")
