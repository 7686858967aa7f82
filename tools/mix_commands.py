"""`syne mix`: the commands' options. Nothing heavy is imported before a command runs."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from data_mixers.errors import ConfigError
from tools.cli_options import Config, Overrides, example, log_to_stderr, takes
from tools.data.options import EosToken

mix_app = typer.Typer(
    help="Look at what a run reads: its plan, its decisions, what two schedules differ in.",
    epilog=example("syne mix plan --config examples/llama3_8b/run_recommended.yaml"),
    no_args_is_help=True,
    rich_markup_mode=None,
)


@dataclass(frozen=True, kw_only=True)
class DataPathOptions:
    tokenizer: Annotated[Path, typer.Option(help="Of the token files: HF folder, tokenizer.json or tokenizer.model.")]
    out: Annotated[Path, typer.Option(help="Folder for manifest.json and schedule.json; token files are linked.")]
    seq_length: Annotated[int, typer.Option(min=1, help="As Megatron-LM's --seq-length.")]
    tokens: Annotated[float, typer.Option(help="To read with these weights, e.g. 100e9.")]
    data_path: Annotated[
        tuple[str, ...], typer.Argument(metavar="[WEIGHT PREFIX]...", help="As after --data-path.")
    ] = ()
    """Weights and prefixes in turn, or prefixes alone, which weigh by their tokens."""
    data_args_path: Annotated[
        Path | None, typer.Option(help="A file with that list instead, as Megatron-LM's option.")
    ] = None
    from_sample: Annotated[
        int | None,
        typer.Option(min=0, help="Append to OUT's schedule: earlier samples stay as they are."),
    ] = None
    """None: a new schedule."""
    seed: Annotated[int, typer.Option(min=0, help="Of the order of a new schedule.")] = 1234
    max_epochs: Annotated[float, typer.Option(min=0.0, help="Refuse to read a source more often.")] = 4.0
    eos_token: EosToken = None


@mix_app.command("plan", epilog=example("syne mix plan --config runs/quickstart/bilingual.yaml"))
def mix_plan(config: Config, overrides: Overrides = None) -> None:
    """Tokens, share, epochs and PPL quantiles per phase and source, and what is left unread, by topic."""
    from tools.mix import planned_reads, print_reads

    print_reads(*planned_reads(config, overrides or []))


@mix_app.command("diff", epilog=example("syne mix diff runs/a runs/b/schedule.json"))
def mix_diff(
    a: Annotated[Path, typer.Argument(help="A run folder or a schedule.json.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
) -> None:
    """Say in words what two schedules differ in, and from which sample on. Exits 3 if they differ."""
    from data_mixers.schedule import read_schedule
    from data_mixers.schedule_diff import diff

    lines = diff(read_schedule(a), read_schedule(b))
    typer.echo("\n".join(lines) or "equal")
    if lines:
        raise typer.Exit(3)


@mix_app.command("append", epilog=example("syne mix append runs/my-run --skip 1200:1264"))
def mix_append(
    run: Annotated[Path, typer.Argument(help="The folder of a run that is to go on.")],
    skip: Annotated[str | None, typer.Option(help="Samples to leave out, start:stop, not read yet.")] = None,
    stage: Annotated[
        Path | None,
        typer.Option(help="YAML file of one more stage; new data under its `manifests`."),
    ] = None,
) -> None:
    """Check an entry for the future of a run's schedule, and print the override to resume with. Changes nothing."""
    from tools.mix_append import checked_skip, checked_stage

    if (skip is None) == (stage is None):
        raise ConfigError("syne mix append: give either --skip start:stop or --stage FILE.yaml")
    override, lines = checked_stage(run, stage) if stage is not None else checked_skip(run, skip or "")
    typer.echo("\n".join(lines))
    typer.echo(f"resume with: syne train --config {run / 'run_config.yaml'} {shlex.quote(override)}")


@mix_app.command(
    "import-data-path",
    epilog=example(
        "syne mix import-data-path 30 /data/zh_text_document 70 /data/en_text_document",
        "--tokenizer models/Meta-Llama-3-8B --out mix --seq-length 8192 --tokens 100e9",
    ),
)
@takes(DataPathOptions)
def mix_import_data_path(options: DataPathOptions) -> None:
    """A Megatron-LM --data-path list to manifest.json and schedule.json (docs/megatron_lm.md)."""
    from tools.data_path import import_data_path

    log_to_stderr()
    schedule = import_data_path(options)
    for name, weight in schedule.phases[-1].weights:
        typer.echo(f"{name}: {weight / 2**32:.6f}")
    typer.echo(f"{options.out / 'schedule.json'}: {schedule.num_samples} samples of {schedule.seq_length} tokens")


@mix_app.command("replay", epilog=example("syne mix replay runs/quickstart/bilingual"))
def mix_replay(
    run: Annotated[Path, typer.Argument(help="The folder of a run with a controller.")], overrides: Overrides = None
) -> None:
    """Take a run's decisions again from the losses it recorded, and compare. Exits 3 if any differs.

    With KEY=VALUE, e.g. mixture.controller=ado: what other settings would have decided at these losses.
    """
    from tools.mix import print_replayed, replay

    if not print_replayed(replay(run, overrides or [])):
        raise typer.Exit(3)


@mix_app.command("simulate", epilog=example("syne mix simulate --worlds 20 --plot simulated.png"))
def mix_simulate(
    worlds: Annotated[int, typer.Option(min=2, help="Sets of random learning curves.")] = 20,
    tokens: Annotated[
        float | None,
        typer.Option(min=1e4, help="Of one language's web pages; default: 100e9, or as the curves."),
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option(min=1e2, help="Tokens between two decisions; default: a 25th of them."),
    ] = None,
    transfer: Annotated[float, typer.Option(min=0.0, max=0.5, help="Worth of a token to another topic.")] = 0.1,
    label_noise: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of pages with a wrong topic.")] = 0.1,
    confusion: Annotated[
        Path | None, typer.Option(help="report.json of train-classifier: label as that one does, held-out sets too.")
    ] = None,
    language: Annotated[str, typer.Option(help="Whose confusion.")] = "zh",
    curves: Annotated[
        Path | None, typer.Option(help="File of `syne surrogate curves`: its worlds, and its topics.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the shares of the first world as PNG.")] = None,
) -> None:
    """Every controller on the same simulated learning curves, beside equal shares. No measurement of any model."""
    from tools import mix_simulate as simulation

    fitted = None if curves is None else simulation.read_curves(curves)
    if fitted is not None and confusion is not None:
        raise ConfigError("syne mix simulate: --curves and --confusion have topics of their own; give one of them")
    topics_of_study = simulation.TOPICS if fitted is None else len(fitted.topics)
    labels, measured = simulation.uniform_labels(label_noise, topics_of_study), confusion is not None
    tokens = tokens or (100e9 if fitted is None else fitted.tokens)
    interval = interval or tokens / 25
    if fitted is not None:
        beyond = "" if tokens <= fitted.tokens else f"; {tokens:.3g} tokens are an extrapolation of them"
        typer.echo(
            f"curves of {', '.join(fitted.topics)} fitted from runs of {fitted.tokens:.3g} tokens in {curves}{beyond}\n"
        )
    if confusion is not None:
        from tools.data.topic_report import read_confusion

        topics, shares = read_confusion(confusion, language)
        labels = simulation.labels_of_confusion(shares)
        typer.echo(f"{len(topics)} topics of {language} as labelled in {confusion}: {', '.join(topics)}\n")
    found = simulation.simulate(
        worlds=worlds, tokens=tokens, interval=interval, transfer=transfer, labels=labels, holds_out_by_label=measured,
        curves=fitted,
    )  # fmt: skip
    typer.echo(simulation.report(found))
    if plot is not None:
        simulation.plot(found, plot, interval=interval)
        typer.echo(f"\nplot: {plot}")
