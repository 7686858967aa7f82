"""`syne slurm`: write a training job's script, submit it, check the nodes, accept a cluster."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_mixers.errors import ConfigError
from tools.cli_options import Config, Overrides, example

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
    from tools.slurm.job import Environment, Resources, training_job
    from tools.slurm.render import render_export, render_training

    resources = Resources(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_task=cpus_per_task,
        time=time,
        options=_pairs("--sbatch", sbatch, flags=True),
    )
    environment = Environment(
        python=python,
        container=container,
        image=image,
        mounts=tuple(mount or ()),
        variables=_pairs("--env", env, flags=False),
    )
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
