"""The forgetting guard: is the watched language worse than at the first validation, and what was done about it."""

from collections.abc import Sequence

from tools.report.content import Block, Section, Table, Text
from tools.report.figures import Line, lines
from tools.report.metrics_file import Row, column_of, number, words
from tools.report.numbers import fixed, percent, short
from tools.report.run_record import RunRecord
from tools.report.thinning import thinned

MOST_ROWS = 60


def guard(runs: Sequence[RunRecord]) -> Section:
    """Change of loss, accuracy of the probe and the share given, over tokens; then when it spoke."""
    watched = [(run, run.metrics.rows["guard"]) for run in runs]
    if not any(rows for _, rows in watched):
        return Section(
            "Forgetting guard", [Text("Nothing of a guarded language was held out, so nothing was watched.")]
        )
    blocks: list[Block] = []
    for title, key, scale, unit in (
        ("Change of held-out loss since the first validation", "change", 1.0, "nats per token (above 0: worse)"),
        ("Accuracy of the probe", "probe_accuracy", 100.0, "% of items right"),
        ("Share above the plan", "rise", 100.0, "% of all tokens"),
    ):
        drawn = [
            Line(label=_label(run, rows, many=len(runs) > 1),
                 curve=thinned(column_of(rows, "consumed_tokens"), scale * column_of(rows, key)),
                 stroke=index, has_markers=True)
            for index, (run, rows) in enumerate(watched)
        ]  # fmt: skip
        blocks += lines(title, drawn, y_label=unit, may_be_log=False, zero_line=key == "change")
    for run, rows in watched:
        blocks += _spoken(run, rows)
    return Section("Forgetting guard", blocks)


def _label(run: RunRecord, rows: Sequence[Row], *, many: bool) -> str:
    languages = sorted({str(row.get("set")) for row in rows})
    return f"{', '.join(languages)}{f', {run.name}' if many else ''}"


def _spoken(run: RunRecord, rows: Sequence[Row]) -> list[Block]:
    """The validations at which something was worse, or the share moved."""
    spoken = [row for row in rows if words(row, "worse") or number(row, "start_sample") is not None]
    if not spoken:
        return (
            [Text(f"{run.name}: at none of {len(rows)} validations was anything worse beyond its noise.")]
            if rows
            else []
        )
    told = [
        [
            str(row.get("set")), ", ".join(words(row, "worse")) or "no longer worse", "; ".join(words(row, "notes")),
            short(number(row, "consumed_tokens") or 0.0), fixed(number(row, "change"), 4, sign=True),
            percent(number(row, "probe_accuracy")), percent(number(row, "rise"), 2),
        ]
        for row in spoken[-MOST_ROWS:]
    ]  # fmt: skip
    header = [f"{run.name}: language", "worse", "notes", "tokens", "change, nats", "probe", "above the plan"]
    blocks: list[Block] = [Table(header=header, rows=told, num_text_columns=3)]
    if len(spoken) > MOST_ROWS:
        blocks.append(Text(f"The last {MOST_ROWS} of {len(spoken)} are shown."))
    return blocks
