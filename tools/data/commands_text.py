"""`syne data`: commands on documents. Nothing heavy is imported before a command runs."""

from typing import Annotated

import typer

from tools.cli_options import example, log_to_stderr, takes
from tools.data.app import data_app
from tools.data.options import CleanOptions, DecontaminateOptions, FetchOptions
from tools.data.slurm_options import with_slurm_options


@data_app.command(
    epilog=example(
        "syne data clean --input 'pages/*.parquet' --out cleaned --language zh --workers 2",
    )
)
@with_slurm_options
@takes(CleanOptions)
def clean(options: CleanOptions) -> None:
    """Drop repetitive, too short or long, foreign and duplicate documents; each is kept with its reason."""
    from tools.data.clean import clean as run_clean
    from tools.data.selection import table

    log_to_stderr()
    typer.echo(table(run_clean(options)))


@data_app.command(
    epilog=example(
        "syne data decontaminate --input 'cleaned/*.jsonl.zst' --benchmarks 'benchmarks/*.jsonl' --out decontaminated",
        "--remove --workers 2",
    )
)
@with_slurm_options
@takes(DecontaminateOptions)
def decontaminate(options: DecontaminateOptions) -> None:
    """Report the documents that share n-grams with benchmarks; with --remove, write the others."""
    from tools.data.decontaminate import benchmark_table
    from tools.data.decontaminate import decontaminate as run_decontaminate
    from tools.data.selection import table

    log_to_stderr()
    report, found = run_decontaminate(options)
    typer.echo(f"{table(report)}\n{benchmark_table(found)}")


@data_app.command(epilog=example("syne data fetch llama-3-syne --slice cn_web --max-files 2 --out pages"))
@takes(FetchOptions)
def fetch(
    options: FetchOptions,
    list_only: Annotated[bool, typer.Option("--list", help="Show files and sizes, fetch none.")] = False,
) -> None:
    """Bring published data here; a call that was cut goes on where it stood."""
    from tools.data.fetch import fetch as run_fetch
    from tools.data.fetch import list_files

    log_to_stderr()
    if list_only:
        for remote in list_files(options):
            typer.echo(f"{'?' if remote.size_bytes is None else remote.size_bytes:>15}  {remote.path}")
        return
    for path in run_fetch(options):
        typer.echo(str(path))
