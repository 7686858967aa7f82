"""`syne`: parse, call one function, return its exit code. Nothing heavy is imported before a command runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_mixers.errors import ConfigError, UserError

INTERRUPTED = 130  # what a shell reports for SIGINT


def _example(*lines: str) -> str:
    # \b keeps the lines as they are, so that they can be pasted.
    return "\b\nExample:\n  " + " \\\n    ".join(lines)


app = typer.Typer(
    name="syne",
    help="Continual pre-training of Llama-3 on Megatron-Core: from raw pages and an HF checkpoint to an adapted one.",
    epilog=_example("syne doctor"),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    help="Turn raw text into tokenised, described data.",
    epilog=_example("syne data preprocess --help"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")

Config = Annotated[Path, typer.Option("--config", help="The run's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Values that win over the file, e.g. optimizer.lr=1e-4", show_default=False
    ),
]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Local processes; default: one per GPU, or one.", show_default=False)
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (docs/exit_codes.md). A user's mistake is one message, no traceback."""
    try:
        code = typer.main.get_command(app)(args=arguments, prog_name="syne", standalone_mode=True)
    except SystemExit as finished:
        code = finished.code
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return code if isinstance(code, int) else 0


@app.command(epilog=_example("syne doctor"))
def doctor() -> None:
    """What is installed, which implementations will be used and why, and whether a collective works."""
    from tools.doctor import run_doctor

    raise typer.Exit(run_doctor())


@app.command(
    epilog=_example(
        "syne plan --config examples/llama3_8b/run_paper.yaml --nodes 16 --no-data",
        "init.from=random init.path=null model.preset=llama3_8b",
    )
)
def plan(
    config: Config,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a machine.")] = 8,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Processes on one machine, in place of nodes and GPUs.")
    ] = None,
    data: Annotated[bool, typer.Option("--data/--no-data", help="Read the manifests.")] = True,
    output_format: Annotated[str, typer.Option("--format", help="text or json.")] = "text",
) -> None:
    """Resolve and check a run without starting it; prints every fault."""
    from tools.plan import print_plan

    print_plan(
        config,
        overrides or [],
        world_size=nproc or nodes * gpus_per_node,
        device=None if nproc else "cuda",
        reads_data=data,
        output_format=_choice("--format", output_format),
    )


@app.command(epilog=_example("syne train --config examples/llama3_8b/run_recommended.yaml --dry-run"))
def train(
    config: Config,
    overrides: Overrides = None,
    nproc: Processes = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be run, and stop.")] = False,
) -> None:
    """Train, or go on where the run folder stands. Under torchrun or srun a rank; alone it starts its own ranks."""
    if dry_run:
        from megatron_synE.runtime.launch import default_nproc
        from tools.plan import print_plan

        world_size = nproc or default_nproc("auto")
        print_plan(config, overrides or [], world_size=world_size, device=None, reads_data=True, output_format="text")
        return
    from megatron_synE.train import main as train_main

    raise typer.Exit(train_main(config, overrides or [], nproc))


def _choice(option: str, value: str) -> Literal["text", "json"]:
    match value:
        case "text" | "json":
            return value
        case _:
            raise ConfigError(f"{option}={value}: use text or json")
