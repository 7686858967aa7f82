"""`syne slurm`: write a training job's script, submit it, check the nodes, accept a cluster."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_mixers.errors import ConfigError
from tools.cli_options import Config, Overrides, example, log_to_stderr

if TYPE_CHECKING:
    from tools.slurm.job import Environment, Resources

ACCEPTANCE = Path("runs/acceptance.json")

slurm_app = typer.Typer(
    help="A run on a Slurm cluster, over as many jobs' wall times as it needs.",
    epilog=example("syne slurm render --config examples/llama3_8b/run_recommended.yaml --nodes 16"),
    no_args_is_help=True,
    rich_markup_mode=None,
)


@slurm_app.callback()
def _group() -> None:
    """Makes this a group also while it has one command."""


Nodes = Annotated[int, typer.Option(min=1, help="Machines.")]
MinNodes = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Go on with as few when nodes are lost, with the same global batch; default: wait for all.",
        show_default=False,
    ),
]
GpusPerNode = Annotated[int, typer.Option(min=1, help="GPUs, so ranks, of a machine; with device=cpu its ranks.")]
CpusPerTask = Annotated[
    int | None, typer.Option(min=1, help="Cores of a rank; default: whole nodes, shared out.", show_default=False)
]
Time = Annotated[str, typer.Option(help="Wall time of one slice; a run takes as many as it needs.")]
Sbatch = Annotated[
    list[str] | None,
    typer.Option("--sbatch", metavar="KEY=VALUE", help="More for sbatch, e.g. account=lab; may be repeated."),
]
Python = Annotated[str, typer.Option(help="The interpreter on the nodes, or in the container.")]
ContainerOption = Annotated[Literal["none", "pyxis", "apptainer"], typer.Option(help="How a rank gets its software.")]
Image = Annotated[str | None, typer.Option(help="Of the container.", show_default=False)]
Mount = Annotated[
    list[str] | None, typer.Option("--mount", metavar="FROM:TO", help="Beside the working folder; may be repeated.")
]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="KEY=VALUE", help="More variables, e.g. NCCL_SOCKET_IFNAME=ib0; may be repeated."),
]
Retries = Annotated[int, typer.Option(min=0, help="Restarts in a row without a new checkpoint.")]
Preflight = Annotated[bool, typer.Option("--preflight/--no-preflight", help="Check the nodes before training.")]
Lead = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65535,
        help="Seconds between the signal to save and the wall time; default: 2 measured saves, a step, a validation "
        "batch.",
        show_default=False,
    ),
]
AcceptanceFile = Annotated[Path, typer.Option("--acceptance", help="The report of `syne slurm acceptance`.")]
Job = Annotated[Literal["train", "export"], typer.Option(help="export: <run.dir>/hf from the newest checkpoint.")]


@slurm_app.command(
    epilog=example(
        "syne slurm render --config examples/llama3_8b/run_recommended.yaml --nodes 16",
        "--time 12:00:00 --sbatch partition=h100",
    )
)
def render(
    config: Config,
    overrides: Overrides = None,
    nodes: Nodes = 1,
    min_nodes: MinNodes = None,
    gpus_per_node: GpusPerNode = 8,
    cpus_per_task: CpusPerTask = None,
    time: Time = "1-00:00:00",
    sbatch: Sbatch = None,
    python: Python = "python",
    container: ContainerOption = "none",
    image: Image = None,
    mount: Mount = None,
    env: Env = None,
    retries: Retries = 3,
    preflight: Preflight = True,
    lead: Lead = None,
    job: Job = "train",
    out: Annotated[Path | None, typer.Option(help="Where to write it; default: shown.", show_default=False)] = None,
) -> None:
    """Write the job script of a run; `sbatch FILE` starts it, and it goes on by itself until the run is finished."""
    from data_mixers.atomic import write_atomic
    from tools.slurm.job import training_job
    from tools.slurm.render import render_export, render_training

    resources = _resources(nodes, gpus_per_node, cpus_per_task, time, sbatch, min_nodes=min_nodes)
    environment = _environment(python, container, image, mount, env)
    made = training_job(
        config,
        tuple(overrides or ()),
        resources,
        environment,
        retries=retries,
        preflight=preflight,
        lead_seconds=lead,
    )
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
def submit(
    config: Config,
    overrides: Overrides = None,
    nodes: Nodes = 1,
    min_nodes: MinNodes = None,
    gpus_per_node: GpusPerNode = 8,
    cpus_per_task: CpusPerTask = None,
    time: Time = "1-00:00:00",
    sbatch: Sbatch = None,
    python: Python = sys.executable,
    container: ContainerOption = "none",
    image: Image = None,
    mount: Mount = None,
    env: Env = None,
    retries: Retries = 3,
    preflight: Preflight = True,
    lead: Lead = None,
    export: Annotated[bool, typer.Option("--export/--no-export", help="Then convert it to Hugging Face.")] = True,
    evaluate: Annotated[
        list[str] | None,
        typer.Option("--eval", metavar="SUITE", help="Then evaluate it: probe, paper, ...; may be repeated."),
    ] = None,
    eval_data: Annotated[
        Path | None, typer.Option(help="Folder of the data sets, for --eval.", show_default=False)
    ] = None,
    eval_run_code: Annotated[
        bool, typer.Option("--eval-run-code", help="Allow --eval to run what the model writes, in the sandbox.")
    ] = False,
    acceptance: AcceptanceFile = ACCEPTANCE,
) -> None:
    """Submit a run, its conversion and its evaluation, each behind the one before; prints the jobs' ids."""
    from tools.slurm.job import Evaluation, training_job
    from tools.slurm.submit import submit as submit_run

    log_to_stderr()
    made = training_job(
        config,
        tuple(overrides or ()),
        _resources(nodes, gpus_per_node, cpus_per_task, time, sbatch, min_nodes=min_nodes),
        _environment(python, container, image, mount, env),
        retries=retries,
        preflight=preflight,
        lead_seconds=lead,
    )
    evaluation = Evaluation(suites=tuple(evaluate), data=eval_data, runs_code=eval_run_code) if evaluate else None
    jobs = submit_run(made, ["syne", *_typed()], acceptance=acceptance, export=export, evaluation=evaluation)
    typer.echo("\n".join(jobs))


@slurm_app.command(epilog=example("syne slurm preflight --config runs/quickstart/bilingual.yaml"))
def preflight(config: Config, overrides: Overrides = None) -> None:
    """Check the nodes this runs on, as one rank under srun or torchrun; job scripts do it before they train."""
    from tools.slurm.preflight import run_preflight

    raise typer.Exit(run_preflight(config, overrides or []))


@slurm_app.command(epilog=example("syne slurm acceptance --nodes 2 --time 30:00"))
def acceptance(
    nodes: Annotated[int, typer.Option(min=1, max=2, help="Machines.")] = 1,
    gpus_per_node: GpusPerNode = 8,
    cpus_per_task: CpusPerTask = None,
    time: Time = "30:00",
    sbatch: Sbatch = None,
    python: Python = sys.executable,
    container: ContainerOption = "none",
    image: Image = None,
    mount: Mount = None,
    env: Env = None,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="cpu: over gloo, to try the script.")] = "cuda",
    only: Annotated[
        list[str] | None, typer.Option(help="Layouts by name, e.g. tp2_sp; may be repeated. Default: all.")
    ] = None,
    report: AcceptanceFile = ACCEPTANCE,
    out: Annotated[Path | None, typer.Option(help="Write the script there and submit nothing.")] = None,
) -> None:
    """Submit the one job that says whether this cluster and this software train as they should."""
    from data_mixers.atomic import write_atomic
    from tools.slurm import scheduler
    from tools.slurm.acceptance_layouts import LAYOUTS
    from tools.slurm.render import render_acceptance

    if report.is_dir() or not report.name:
        raise ConfigError(f"--acceptance {report}: is a folder; name the JSON file that the report is to be")
    names = [layout.name for layout in LAYOUTS]
    if unknown := [name for name in only or () if name not in names]:
        raise ConfigError(f"--only {unknown[0]!r}: no such layout; there are {', '.join(names)}")
    text = render_acceptance(
        report,
        _resources(nodes, gpus_per_node, cpus_per_task, time, sbatch),
        _environment(python, container, image, mount, env),
        device=device,
        only=only or (),
        command=["syne", *_typed()],
    )
    script = out or report.with_suffix(".sbatch")
    script.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(script, text.encode())
    if out is None:
        typer.echo(scheduler.submit(script))


def _resources(
    nodes: int,
    gpus_per_node: int,
    cpus_per_task: int | None,
    time: str,
    sbatch: list[str] | None,
    *,
    min_nodes: int | None = None,
) -> "Resources":
    from tools.slurm.job import Resources

    return Resources(
        nodes=nodes,
        min_nodes=min_nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_task=cpus_per_task,
        time=time,
        options=_pairs("--sbatch", sbatch, flags=True),
    )


def _environment(
    python: str,
    container: Literal["none", "pyxis", "apptainer"],
    image: str | None,
    mount: list[str] | None,
    env: list[str] | None,
) -> "Environment":
    from tools.slurm.job import Environment

    variables = _pairs("--env", env, flags=False)
    return Environment(python=python, container=container, image=image, mounts=tuple(mount or ()), variables=variables)


def _typed() -> list[str]:
    """The command line without where its output went: the same again writes the same script."""
    words = list(sys.argv[1:])
    if "--out" in words:
        del words[(at := words.index("--out")) : at + 2]
    return [word for word in words if not word.startswith("--out=")]


def _pairs(option: str, texts: list[str] | None, *, flags: bool) -> dict[str, str]:
    pairs = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals and not flags:
            raise ConfigError(f"{option} {text!r}: give KEY=VALUE")
        pairs[name] = value
    return pairs
