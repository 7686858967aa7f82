"""`syne report` and `syne watch`: the commands' options. Nothing heavy is imported before a command runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tools.cli_options import example, takes

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder (run.dir).")]


def register(app: typer.Typer) -> None:
    app.command(epilog=example("syne report runs/quickstart/bilingual runs/quickstart/chinese_only --samples 5"))(
        report
    )
    app.command(epilog=example("syne watch runs/quickstart/bilingual"))(watch)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    runs: Annotated[tuple[Path, ...], typer.Argument(metavar="RUN...", help="Run folders (run.dir), side by side.")]
    out: Annotated[Path | None, typer.Option(help="The file to write; default: report.html or report.md here.")] = None
    is_markdown: Annotated[bool, typer.Option("--markdown", help="Markdown, its figures as SVG files beside it.")] = (
        False
    )
    evaluations: Annotated[
        tuple[Path, ...],
        typer.Option("--eval", help="Also results of `syne eval` elsewhere: the base model's."),
    ] = ()
    samples: Annotated[int, typer.Option(min=0, help="So many samples of the text that each run has read.")] = 0
    steps: Annotated[str | None, typer.Option(help="Of these steps, A:B, both included; default: all.")] = None
    tokenizer: Annotated[Path | None, typer.Option(help="Of the data; default: the one in the checkpoint.")] = None


@takes(ReportOptions)
def report(options: ReportOptions) -> None:
    """One self-contained HTML page: what the runs did, read, cost and became."""
    from tools.report.command import write_report

    typer.echo(write_report(options))


def watch(
    run: RunFolder,
    once: Annotated[bool, typer.Option("--once", help="Print how it stands, and leave.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the folder.")] = 2.0,
    patience: Annotated[
        float, typer.Option(min=0.0, help="Seconds without anybody who writes before it leaves an unfinished run.")
    ] = 60.0,
) -> None:
    """The same live in a terminal; ends with the run, or with Ctrl-C."""
    from tools.report.watch import watch_run

    raise typer.Exit(watch_run(run, once=once, interval_seconds=interval, patience_seconds=patience))
