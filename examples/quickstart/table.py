"""The quickstart's one table: PPL and bits per byte of every held-out set, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_mixers.errors import DataError
from examples.quickstart.score import SetScore, pooled

GROUPS = ("Chinese", "English", "code", "QA", "not trained on (retention)")
WHOLE_SOURCE = " \u2020"  # a dagger
LANGUAGES = {"zh": "Chinese", "en": "English", "code": "code", "synthetic": "QA"}


@dataclass(frozen=True)
class Row:
    """A set, or a whole group (`is_total`), before and after each arm of training."""

    group: str
    name: str
    before: SetScore
    after: tuple[SetScore, ...]  # in the order of the arms
    is_total: bool


def show(
    before: Sequence[SetScore], arms: Mapping[str, Sequence[SetScore]], held_out: Mapping[str, str], file: Path
) -> None:
    """The table on the terminal, and in `file`."""
    # Narrower, and set names break over lines.
    console = Console(width=max(Console().width, 90 + 22 * len(arms)))
    console.print(before_after_table(before, arms, held_out))
    file.write_text(before_after_markdown(before, arms, held_out), encoding="utf-8")


def before_after_rows(
    before: Sequence[SetScore], arms: Mapping[str, Sequence[SetScore]], held_out: Mapping[str, str]
) -> list[Row]:
    """Rows by group, each group with the sum of its sets below it.

    held_out: by set name, "documents", "source" or "retention" (as in the corpus report). Retention is a group of its
    own, and a source that was held out whole is marked in the name.
    Errors: DataError when an arm was not scored on the same text.
    """
    by_arm = [{score.name: score for score in scores} for scores in arms.values()]
    for arm, scored in zip(arms, by_arm, strict=True):
        for score in before:
            same = scored.get(score.name)
            if same is None or (same.tokens, same.text_bytes) != (score.tokens, score.text_bytes):
                raise DataError(
                    f"{arm}: {score.name} was not scored on the same text as before training; score it again"
                )
    grouped: dict[str, list[SetScore]] = {group: [] for group in GROUPS}
    for score in before:
        is_retention = held_out[score.name] == "retention"
        grouped[GROUPS[-1] if is_retention else LANGUAGES[score.name.split("/")[0]]].append(score)
    rows = []
    for group, scores in grouped.items():
        for score in scores:
            suffix = WHOLE_SOURCE if held_out[score.name] == "source" else ""
            after = tuple(scored[score.name] for scored in by_arm)
            rows.append(Row(group, score.name + suffix, score, after, is_total=False))
        if len(scores) > 1 and group != GROUPS[-1]:
            after = tuple(pooled(group, [scored[score.name] for score in scores]) for scored in by_arm)
            rows.append(Row(group, f"all {group}", pooled(group, scores), after, is_total=True))
    return rows


def before_after_table(
    before: Sequence[SetScore], arms: Mapping[str, Sequence[SetScore]], held_out: Mapping[str, str]
) -> Table:
    """For the terminal. arms: what was trained -> its scores, as {"2:8, then 1:7:2": [...], "Chinese only": [...]}."""
    rows = before_after_rows(before, arms, held_out)
    table = Table(
        title="Held-out text before and after",
        caption=_caption(before),
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    table.add_column("set", overflow="fold")
    table.add_column("tokens", justify="right")
    for quantity in ("PPL", "bits/byte"):
        table.add_column(f"{quantity}\nbefore", justify="right")
        for arm in arms:
            table.add_column(f"{quantity}\n{arm}", justify="right")
    for index, row in enumerate(rows):
        if index == 0 or rows[index - 1].group != row.group:
            table.add_row(f"[bold]{row.group}[/bold]")
        is_last = index + 1 == len(rows) or rows[index + 1].group != row.group
        cells = [f"  {row.name}", f"{row.before.tokens:,}", f"{row.before.perplexity:.2f}"]
        cells += [_coloured(s.perplexity, row.before.perplexity, 2) for s in row.after]
        cells += [f"{row.before.bits_per_byte:.3f}"]
        cells += [_coloured(s.bits_per_byte, row.before.bits_per_byte, 3) for s in row.after]
        table.add_row(*cells, style="bold" if row.is_total else None, end_section=is_last)
    return table


def before_after_markdown(
    before: Sequence[SetScore], arms: Mapping[str, Sequence[SetScore]], held_out: Mapping[str, str]
) -> str:
    """The same table for a file."""
    columns = [f"{quantity} {when}" for quantity in ("PPL", "bits/byte") for when in ("before", *arms)]
    lines = [f"| set | tokens | {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) + 1)]
    for row in before_after_rows(before, arms, held_out):
        cells = [f"{row.before.tokens:,}", *(f"{score.perplexity:.2f}" for score in (row.before, *row.after))]
        cells += [f"{score.bits_per_byte:.3f}" for score in (row.before, *row.after)]
        mark = "**" if row.is_total else ""
        name = row.name if row.is_total else f"{row.group}: {row.name}"
        lines.append(f"| {mark}{name}{mark} | {' | '.join(f'{mark}{cell}{mark}' for cell in cells)} |")
    return "\n".join([*lines, "", _caption(before), ""])


def _coloured(value: float, before: float, digits: int) -> str:
    """Green where it fell by more than 1 %, red where it rose by more."""
    text = f"{value:.{digits}f}"
    if value < 0.99 * before:
        return f"[green]{text}[/green]"
    return f"[red]{text}[/red]" if value > 1.01 * before else text


def _caption(before: Sequence[SetScore]) -> str:
    tokens = sum(score.tokens for score in before)
    return (
        f"{tokens:,} tokens of text that was never trained on. PPL is exp(mean nats per token) and depends on how the "
        "tokenizer cuts a language; bits per byte compare across languages.\n"
        f"{WHOLE_SOURCE.strip()} a source of which nothing was trained on."
    )
