"""`syne surrogate`: the commands' options. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

from tools.cli_options import example, log_to_stderr, takes
from tools.data.slurm_options import OnSlurm

surrogate_app = typer.Typer(
    help="A recipe tried on a small model: a grid of settings with seeds, and what its size can and cannot tell.",
    epilog=example("syne surrogate run examples/surrogate/small/share.yaml"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
StudyFile = Annotated[Path, typer.Argument(help="The study's YAML file (docs/surrogate.md).")]
Folder = Annotated[Path, typer.Argument(help="Folder of a study that has been run.")]


@surrogate_app.command("run", epilog=example("syne surrogate run examples/surrogate/small/share.yaml"))
@takes(OnSlurm)
def run(
    slurm: OnSlurm,
    study: StudyFile,
    out: Annotated[Path | None, typer.Option(help="Its folder; default: runs/surrogate/NAME.")] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also if the pilot shows that the question cannot be resolved.")
    ] = False,
) -> None:
    """Every arm with every seed, one after another here or as a SLURM job array; then table.md and figure.png.

    A few runs come first and tell the smallest difference that the study can find. The same command goes on where it
    was cut; a finished run is never done again.
    """
    from tools.surrogate.results import table, write_results
    from tools.surrogate.run import run_study

    log_to_stderr()
    finished, folder = run_study(study, out, array=slurm.array, anyway=anyway)
    written = write_results(finished, folder)
    typer.echo(table(finished))
    typer.echo("\n".join(str(path) for path in written))


@surrogate_app.command("plan", epilog=example("syne surrogate plan examples/surrogate/tinyllama/share.yaml --no-data"))
def plan(
    study: StudyFile,
    data: Annotated[bool, typer.Option("--data/--no-data", help="Read the manifests.")] = True,
    nproc: Annotated[int | None, typer.Option(min=1, help="Processes of a run; default: the study's, or one.")] = None,
) -> None:
    """Check every run of a study without starting any, and list what it takes."""
    from tools.surrogate.run import planned

    typer.echo(planned(study, reads_data=data, world_size=nproc))


@surrogate_app.command("show", epilog=example("syne surrogate show runs/surrogate/share"))
def show(folder: Folder) -> None:
    """The table and figure of a study that has been run, made again from its runs."""
    from tools.surrogate.results import table, write_results
    from tools.surrogate.run import open_study

    finished = open_study(folder)
    written = write_results(finished, folder)
    typer.echo(table(finished))
    typer.echo("\n".join(str(path) for path in written))


@surrogate_app.command("law", epilog=example("syne surrogate law runs/surrogate/share"))
def law(
    folder: Folder,
    tokens: Annotated[
        float | None, typer.Option(min=1.0, help="Of the next scale; default: twice the study's.")
    ] = None,
) -> None:
    """A mixing law from a study of synthetic_share, checked at the scale it left out; the best share at the next."""
    from tools.surrogate.law_study import law_of, report, write_law

    found = law_of(folder, tokens=tokens)
    written = write_law(found, folder)
    typer.echo(report(found))
    typer.echo("\n".join(str(path) for path in written))


@surrogate_app.command(
    "curves", epilog=example("syne surrogate curves runs/surrogate/transfer --language zh --out curves.json")
)
def curves(
    folders: Annotated[list[Path], typer.Argument(help="Folders of studies that read topics in other shares.")],
    out: Annotated[Path, typer.Option(help="File to write, for `syne mix simulate --curves`.")],
    language: Annotated[str, typer.Option(help="Of the topics.")],
    source: Annotated[str, typer.Option(help="Of the topics.")] = "web",
    worlds: Annotated[int, typer.Option(min=2, help="Fits of resampled runs.")] = 30,
) -> None:
    """Learning curves and the worth of topics to each other, fitted from studies, for `syne mix simulate`."""
    from tools.surrogate.curves import curves_of, report, write_curves

    fitted, errors = curves_of(folders, language=language, source=source, worlds=worlds)
    write_curves(fitted, out)
    typer.echo(report(fitted, errors))
    typer.echo(str(out))
