"""`syne watch`: a run in a terminal, redrawn as it goes on; over ssh, on narrow terminals, and without colour."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from megatron_synE.exit_codes import FINISHED, NO_PROGRESS
from tools.report.content import printable
from tools.report.held_out import by_set, short_name
from tools.report.history import phase_told
from tools.report.live import Life, MetricsTail
from tools.report.metrics_file import Numbers, number, words
from tools.report.numbers import duration, fixed, percent, short
from tools.report.overview import current_stage, fixed_rate, median
from tools.report.run_record import METRICS, RunRecord, read_run
from tools.report.speed import budget
from tools.report.thinning import thinned

MOST_SETS = 24
RECENT_STEPS = 50
"""The time left is told from the median of so many steps."""
BARS = "▁▂▃▄▅▆▇█"


def watch_run(
    folder: Path,
    *,
    once: bool,
    interval_seconds: float,
    patience_seconds: float,
    console: Console | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Show the run until it ends. Returns an exit code: NO_PROGRESS where nobody goes on with it.

    Errors: DataError if there is no such folder. Ctrl-C leaves quietly.
    """
    console = console or Console()
    run, tail, life = read_run(folder, is_watched=True), MetricsTail(folder / METRICS), Life(folder, clock=clock)
    tail.look()
    life.look()
    run = replace(run, metrics=tail.metrics, holder=life.holder)
    if once:
        console.print(shown(run, width=console.width, state=_state(run, life)))
        return FINISHED
    try:
        with Live(console=console, auto_refresh=False, screen=False, vertical_overflow="crop") as live:
            while True:
                live.update(shown(run, width=console.width, state=_state(run, life)), refresh=True)
                if run.is_finished and not life.is_alive:
                    return FINISHED
                if not run.is_finished and life.silent_seconds > patience_seconds:
                    break
                sleep(interval_seconds)
                tail.look()
                life.look()
                # The small files once more: decisions change schedule.json, a start changes all.
                run = replace(read_run(folder, is_watched=True), metrics=tail.metrics, holder=life.holder)
    except KeyboardInterrupt:
        return FINISHED
    finally:
        tail.close()
    console.print(
        f"nobody has written to {folder} for {duration(life.silent_seconds)} and the run is not finished; "
        "its log says why it ended, and the same command goes on with it"
    )
    return NO_PROGRESS


def _state(run: RunRecord, life: Life) -> str:
    if run.is_finished:
        return "finished"
    if life.is_alive:
        return f"running: {life.holder}"
    return "nobody writes to it" if run.metrics.num_steps else "not begun"


def shown(run: RunRecord, *, width: int, state: str) -> RenderableType:
    """Everything as it stands, no wider than `width`."""
    parts: list[RenderableType] = [_plain(f"{run.name}  {state}", style="bold")]
    planned = run.num_iterations
    if planned:
        parts.append(_plain(_bar(run.iteration / planned, min(width, 80))))
    parts += [_facts(run, width), *_losses(run, width), *_sets(run), *_news(run)]
    parts += [
        _plain(f"! {text}", style="yellow") for text in run.missing if run.metrics.num_steps or "step" not in text
    ]
    return Group(*parts)


def _plain(text: str, *, style: str = "") -> Text:
    """No markup in it, whatever a run is called."""
    return Text(printable(text), style=style, overflow="fold")


def _bar(share: float, width: int) -> str:
    """Told apart also without colour."""
    full = round(min(1.0, share) * (width - 7))
    return f"{'█' * full}{'░' * (width - 7 - full)} {percent(share, 0):>6}"


def _facts(run: RunRecord, width: int) -> RenderableType:
    metrics, planned = run.metrics, run.num_iterations
    of = f" / {planned:,}" if planned is not None else ""
    spent = budget(run)
    facts = [
        ("step", f"{run.iteration:,}{of}"),
        ("tokens", short(metrics.last("consumed_tokens") or 0.0)),
        ("stage", current_stage(run) or "–"),
        ("left", duration(seconds_left(run))),
        ("loss", fixed(metrics.last("lm_loss"), 4)),
        ("learning rate", fixed_rate(metrics.last("learning_rate"))),
        ("gradient norm", fixed(metrics.last("grad_norm"), 3)),
        ("tokens/s", fixed(metrics.last("tokens_per_second"))),
        ("MFU", percent(metrics.last("mfu"))),
        ("goodput", percent(metrics.last("goodput"))),
        ("validating", duration(spent.validate) if spent else "–"),
        ("saving", duration(spent.save) if spent else "–"),
    ]
    columns = 1 if width < 60 else 2 if width < 110 else 4
    table = Table.grid(padding=(0, 2))
    rows = -(-len(facts) // columns)
    for row in range(rows):
        cells = [facts[index] for index in range(row, len(facts), rows)]
        table.add_row(*(Text.assemble((f"{label} ", "dim"), value, overflow="fold") for label, value in cells))
    return table


def seconds_left(run: RunRecord) -> float | None:
    """By the median of the last steps, without validations and saves; None where the plan is not known."""
    seconds = median(run.metrics.column("step_seconds")[-RECENT_STEPS:])
    return (
        None if run.num_iterations is None or seconds is None else seconds * max(0, run.num_iterations - run.iteration)
    )


def _losses(run: RunRecord, width: int) -> list[RenderableType]:
    """The training loss as one line of bars, first step to last."""
    curve = thinned(
        run.metrics.column("consumed_tokens"), run.metrics.column("lm_loss"), stretches=max(8, min(width - 26, 72))
    )
    if len(curve.x) < 2:
        return []
    return [_plain(f"loss {curve.y[0]:.3f} {sparkline(curve.y)} {curve.y[-1]:.3f}")]


def sparkline(values: Numbers) -> str:
    """A bar a value, between the lowest and the highest."""
    low, high = float(values.min()), float(values.max())
    places = np.zeros(len(values)) if high == low else (values - low) / (high - low) * (len(BARS) - 1)
    return "".join(BARS[int(place)] for place in places.round())


def _sets(run: RunRecord) -> list[RenderableType]:
    found = by_set(run)
    if not found:
        return []
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("held out", overflow="fold")
    for name in ("PPL first", "last", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, rows in sorted(found.items())[:MOST_SETS]:
        first, last = number(rows[0], "ppl"), number(rows[-1], "ppl")
        change = last / first - 1 if first and last else None
        table.add_row(Text(printable(short_name(name))), fixed(first, 2), fixed(last, 2), percent(change))
    more = [_plain(f"and {len(found) - MOST_SETS} more sets", style="dim")] if len(found) > MOST_SETS else []
    return [table, *more]


def _news(run: RunRecord) -> list[RenderableType]:
    """The last decision, what the guard says, what was left out."""
    told: list[RenderableType] = []
    consumed = run.metrics.last("consumed_samples") or 0.0
    if run.schedule is not None:
        begun = [phase for phase in run.schedule.phases if phase.start_sample <= consumed]
        if begun:  # of thousands of phases only the last is told, in each look
            kind, name, reason, moved = phase_told(run, begun[-2] if len(begun) > 1 else None, begun[-1])
            told.append(_plain(f"phase {len(begun)} ({kind}, {name}): {reason}; {moved}"))
    guards = run.metrics.rows["guard"]
    if guards and words(guards[-1], "worse"):
        change = fixed(number(guards[-1], "change"), 4, sign=True)
        worse = " and ".join(words(guards[-1], "worse"))
        told.append(
            _plain(f"guard: {guards[-1].get('set')} is worse in {worse} ({change} nats per token)", style="red")
        )
    for row in run.metrics.rows["recovery"][-3:]:
        left = f"samples {fixed(number(row, 'start_sample'))}:{fixed(number(row, 'stop_sample'))} left out"
        told.append(_plain(f"{row.get('anomaly')} at step {fixed(number(row, 'bad_iteration'))}: {left}", style="red"))
    return told
