"""`syne report` and `syne watch`: the commands' options. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

from data_mixers.errors import ConfigError
from tools.cli_options import example

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder (run.dir).")]


def register(app: typer.Typer) -> None:
    app.command(epilog=example("syne report runs/quickstart/bilingual runs/quickstart/chinese_only --samples 5"))(
        report
    )
    app.command(epilog=example("syne watch runs/quickstart/bilingual"))(watch)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders (run.dir), side by side.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; default: report.html or report.md here.", show_default=False)
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Markdown, its figures as SVG files beside it.")
    ] = False,
    evaluations: Annotated[
        list[Path] | None,
        typer.Option("--eval", help="Also results of `syne eval` elsewhere: the base model's.", show_default=False),
    ] = None,
    num_samples: Annotated[
        int, typer.Option("--samples", min=0, help="So many samples of the text that each run has read.")
    ] = 0,
    steps: Annotated[
        str | None, typer.Option(help="Of these steps, A:B, both included; default: all.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Of the data; default: the one in the checkpoint.", show_default=False)
    ] = None,
) -> None:
    """One self-contained HTML page: what the runs did, read, cost and became."""
    from tools.report.command import ReportOptions, write_report
    from tools.report.samples import SampleOptions, parse_steps

    first, last = parse_steps(steps)
    if steps is not None and not num_samples:
        raise ConfigError(f"--steps {steps} says of which steps samples are shown; say how many with --samples")
    shown = SampleOptions(num=num_samples, first_step=first, last_step=last, tokenizer=tokenizer)
    options = ReportOptions(
        runs=tuple(runs),
        out=out or Path("report.md" if as_markdown else "report.html"),
        is_markdown=as_markdown,
        evaluations=tuple(evaluations or ()),
        samples=shown if num_samples else None,
    )
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
