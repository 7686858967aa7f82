"""Training loss, learning rate and gradient norm."""

from collections.abc import Sequence

from tools.report.content import Block, Figure, Section, Text
from tools.report.figures import Line, lines
from tools.report.run_record import RunRecord
from tools.report.thinning import thinned


def training(runs: Sequence[RunRecord]) -> Section:
    blocks: list[Block] = [
        *step_figure(runs, "Training loss", "lm_loss", y_label="nats per token"),
        *step_figure(runs, "Learning rate", "learning_rate", y_label="learning rate", from_zero=True),
        *step_figure(runs, "Gradient norm before clipping", "grad_norm", y_label="gradient norm"),
    ]
    if not blocks:
        return Section("Training", [Text("No training step has been reported.")])
    told = (
        "Dotted lines: another stage begins. Where more steps fall on a point of a curve than can be drawn, the line is"
    )
    blocks.append(Text(f"{told} their mean and the band spans all of them."))
    return Section("Training", blocks)


def step_figure(
    runs: Sequence[RunRecord], title: str, column: str, *, y_label: str, scale: float = 1.0, from_zero: bool = False
) -> list[Figure]:
    """One column of the steps' rows over tokens, a line per run; none if no row has it."""
    drawn = [
        Line(
            label=run.name if len(runs) > 1 else "",
            curve=thinned(run.metrics.column("consumed_tokens"), scale * run.metrics.column(column)),
            stroke=index,
        )
        for index, run in enumerate(runs)
    ]
    stages = runs[0].stage_begins if len(runs) == 1 else ()
    return lines(title, drawn, y_label=y_label, stages=stages, from_zero=from_zero)
