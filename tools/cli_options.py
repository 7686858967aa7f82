"""What commands of several groups share: how an example is shown, a run's file, values that win over it."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Option("--config", help="The run's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Values that win over the file, e.g. optimizer.lr=1e-4", show_default=False
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")]
OwnFolder = Annotated[Path, typer.Option(help="Folder of this call alone; the same call goes on where it was killed.")]
TextKey = Annotated[str, typer.Option(help="Key of the text.")]
MaxBadShare = Annotated[float, typer.Option(min=0.0, max=1.0, help="Refuse the input above this share of bad lines.")]
MaxBadLines = Annotated[int, typer.Option(min=0, help="So many bad lines are always accepted.")]


def example(*lines: str) -> str:
    """An epilog that can be pasted; `lines` are joined by a backslash and a new line."""
    # \b keeps the lines as they are.
    return "\b\nExample:\n  " + " \\\n    ".join(lines)


def log_to_stderr() -> None:
    """Log lines as they are, without a prefix: for commands that a person watches."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
