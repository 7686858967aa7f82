"""Loss on held-out text, per set: PPL and bits per byte over time, and what they were first and last."""

import math
from collections.abc import Sequence

from tools.report.content import Block, Section, Table, Text
from tools.report.figures import lines_of_runs
from tools.report.metrics_file import Row, column_of, number
from tools.report.numbers import fixed
from tools.report.run_record import RunRecord
from tools.report.thinning import thinned


def held_out(runs: Sequence[RunRecord]) -> Section:
    """Two figures per language (more, where runs stand side by side), a line per topic and run; a table of all sets."""
    found = {run.name: by_set(run) for run in runs}
    names = sorted({name for sets in found.values() for name in sets})
    if not names:
        return Section("Held-out text", [Text("No validation has been reported.")])
    blocks: list[Block] = []
    for language in dict.fromkeys(language_of(name) for name in names):
        labels = {name: short_name(name) for name in names if language_of(name) == language}
        for key, title, unit in (
            ("ppl", "Held-out PPL", "PPL, exp(nats per token)"),
            ("bits_per_byte", "Held-out bits per byte", "bits per UTF-8 byte"),
        ):
            curves = {
                run: {name: thinned(column_of(rows, "consumed_tokens"), column_of(rows, key))
                      for name, rows in sets.items() if name in labels}
                for run, sets in found.items()
            }  # fmt: skip
            stages = runs[0].stage_begins
            blocks += lines_of_runs(f"{title}: {language}", labels, curves, y_label=unit, stages=stages)
    blocks.append(_table(found, names))
    return Section("Held-out text", blocks)


def by_set(run: RunRecord) -> dict[str, list[Row]]:
    """The validation rows of each set, in order."""
    found: dict[str, list[Row]] = {}
    for row in run.metrics.rows["validation"]:
        if isinstance(row.get("set"), str) and number(row, "consumed_tokens") is not None:
            found.setdefault(row["set"], []).append(row)
    return found


def language_of(name: str) -> str:
    return name.split("/", 1)[0]


def short_name(name: str) -> str:
    """Without what held-out sets' names end in."""
    return name.removesuffix("@holdout").removesuffix("@validation")


def last_validation_ppl(run: RunRecord) -> str:
    """exp(mean NLL over the tokens of all sets) at the first validation and at the last."""
    ends = []
    for pick in (0, -1):
        rows = [rows[pick] for rows in by_set(run).values()]
        known = [(nll, tokens) for row in rows if (nll := number(row, "nll")) and (tokens := number(row, "tokens"))]
        total = sum(tokens for _, tokens in known)
        ends.append(math.exp(min(700.0, sum(nll * tokens for nll, tokens in known) / total)) if total > 0 else None)
    return f"{fixed(ends[0], 3)} → {fixed(ends[1], 3)}" if ends[0] is not None else "–"


def _table(found: dict[str, dict[str, list[Row]]], names: Sequence[str]) -> Table:
    many = len(found) > 1
    rows = []
    for name in names:
        for run, sets in found.items():
            if name not in sets:
                continue
            first, last = sets[name][0], sets[name][-1]
            ppl = [number(row, "ppl") for row in (first, last)]
            change = 100 * (ppl[1] / ppl[0] - 1) if ppl[0] and ppl[1] else None
            tokens = number(last, "tokens")
            rows.append(
                [
                    short_name(name), *([run] if many else []), fixed(ppl[0], 3), fixed(ppl[1], 3),
                    fixed(change, 2, sign=True), fixed(number(first, "bits_per_byte"), 4),
                    fixed(number(last, "bits_per_byte"), 4), fixed(tokens, 0), str(len(sets[name])),
                ]
            )  # fmt: skip
    header = ["set", *(["run"] if many else []), "PPL first", "PPL last", "change, %", "bits/byte first",
              "bits/byte last", "tokens", "validations"]  # fmt: skip
    return Table(header=header, rows=rows, num_text_columns=2 if many else 1)
