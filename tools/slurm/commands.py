"""`syne slurm`: write a training job's script, submit it, check the nodes, accept a cluster."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError
from tools.cli_options import Config, Overrides, example, log_to_stderr, takes
from tools.slurm.options import Environment, Evaluation, Resources, RunOptions

ACCEPTANCE = Path("runs/acceptance.json")
MOST_ACCEPTANCE_NODES = 2

slurm_app = typer.Typer(
    help="A run on a Slurm cluster, over as many jobs' wall times as it needs.",
    epilog=example("syne slurm render --config examples/llama3_8b/run_recommended.yaml --nodes 16"),
    no_args_is_help=True,
    rich_markup_mode=None,
)


AcceptanceFile = Annotated[Path, typer.Option("--acceptance", help="The report of `syne slurm acceptance`.")]
Job = Annotated[Literal["train", "export"], typer.Option(help="export: <run.dir>/hf from the newest checkpoint.")]


@slurm_app.command(
    epilog=example(
        "syne slurm render --config examples/llama3_8b/run_recommended.yaml --nodes 16",
        "--time 12:00:00 --sbatch partition=h100",
    )
)
@takes(Resources, Environment, RunOptions)
def render(
    resources: Resources,
    environment: Environment,
    options: RunOptions,
    config: Config,
    overrides: Overrides = None,
    job: Job = "train",
    out: Annotated[Path | None, typer.Option(help="Where to write it; default: shown.")] = None,
) -> None:
    """Write the job script of a run; `sbatch FILE` starts it, and it goes on by itself until the run is finished."""
    from tools.slurm.job import training_job
    from tools.slurm.render import render_export, render_training

    made = training_job(config, tuple(overrides or ()), resources, environment, options)
    command = ["syne", *_typed()]
    if job == "export":
        text = render_export(made.config.run.dir, made.config.run.name, resources, environment, command)
    else:
        text = render_training(made, command)
    if out is None:
        sys.stdout.write(text)
    else:
        write_atomic(out, text.encode())


@slurm_app.command(
    epilog=example(
        "syne slurm submit --config examples/llama3_8b/run_recommended.yaml --nodes 16 --time 12:00:00",
        "--eval probe --eval-data data/eval",
    )
)
@takes(Resources, Environment, RunOptions, Evaluation, python=sys.executable)
def submit(
    resources: Resources,
    environment: Environment,
    options: RunOptions,
    evaluation: Evaluation,
    config: Config,
    overrides: Overrides = None,
    export: Annotated[bool, typer.Option("--export/--no-export", help="Then convert it to Hugging Face.")] = True,
    acceptance: AcceptanceFile = ACCEPTANCE,
) -> None:
    """Submit a run, its conversion and its evaluation, each behind the one before; prints the jobs' ids."""
    from tools.slurm.job import training_job
    from tools.slurm.submit import submit as submit_run

    log_to_stderr()
    made = training_job(config, tuple(overrides or ()), resources, environment, options)
    jobs = submit_run(made, ["syne", *_typed()], acceptance=acceptance, export=export, evaluation=evaluation)
    typer.echo("\n".join(jobs))


@slurm_app.command(epilog=example("syne slurm preflight --config runs/quickstart/bilingual.yaml"))
def preflight(config: Config, overrides: Overrides = None) -> None:
    """Check the nodes this runs on, as one rank under srun or torchrun; job scripts do it before they train."""
    from tools.slurm.preflight import run_preflight

    raise typer.Exit(run_preflight(config, overrides or []))


@slurm_app.command(epilog=example("syne slurm acceptance --nodes 2 --time 30:00"))
@takes(Resources, Environment, python=sys.executable, time="30:00")
def acceptance(
    resources: Resources,
    environment: Environment,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="cpu: over gloo, to try the script.")] = "cuda",
    only: Annotated[
        list[str] | None, typer.Option(help="Layouts by name, e.g. tp2_sp; may be repeated. Default: all.")
    ] = None,
    report: AcceptanceFile = ACCEPTANCE,
    out: Annotated[Path | None, typer.Option(help="Write the script there and submit nothing.")] = None,
) -> None:
    """Submit the one job that says whether this cluster and this software train as they should."""
    from tools.slurm import scheduler
    from tools.slurm.acceptance_layouts import LAYOUTS
    from tools.slurm.render import render_acceptance

    if resources.nodes > MOST_ACCEPTANCE_NODES:
        raise ConfigError(f"--nodes {resources.nodes}: an acceptance takes 1 or {MOST_ACCEPTANCE_NODES}")
    if report.is_dir() or not report.name:
        raise ConfigError(f"--acceptance {report}: is a folder; name the JSON file that the report is to be")
    names = [layout.name for layout in LAYOUTS]
    if unknown := [name for name in only or () if name not in names]:
        raise ConfigError(f"--only {unknown[0]!r}: no such layout; there are {', '.join(names)}")
    command = ["syne", *_typed()]
    text = render_acceptance(report, resources, environment, device=device, only=only or (), command=command)
    script = out or report.with_suffix(".sbatch")
    script.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(script, text.encode())
    if out is None:
        typer.echo(scheduler.submit(script))


def _typed() -> list[str]:
    """The command line without where its output went: the same again writes the same script."""
    words = list(sys.argv[1:])
    if "--out" in words:
        del words[(at := words.index("--out")) : at + 2]
    return [word for word in words if not word.startswith("--out=")]
