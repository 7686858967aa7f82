"""What commands of several groups share: how an example is shown, options of a dataclass, a run's file."""

import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin, get_type_hints

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


def takes(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose options are the annotated fields of a dataclass; its first parameter receives an instance.

    Its other parameters are options as ever, listed after those. A field tuple[x, ...] is an option that may be
    repeated: typer reads a function's signature, and knows it as list[x].
    """
    hints = get_type_hints(kind, include_extras=True)
    taken = {field.name: field.default for field in fields(kind) if get_origin(hints[field.name]) is Annotated}
    repeated = {name for name in taken if get_args(get_args(hints[name])[0])[1:] == (...,)}
    for name in repeated:
        row, option = get_args(hints[name])
        hints[name] = Annotated[GenericAlias(list, get_args(row)[:1]), option]
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if default is MISSING else default,
            annotation=hints[name],
        )
        for name, default in taken.items()
    ]

    def of(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_options(**given: Any) -> None:
            values = {name: given.pop(name) for name in taken}
            values |= {name: tuple(values[name] or ()) for name in repeated}
            command(kind(**values), **given)

        own = list(inspect.signature(command).parameters.values())[1:]
        with_options.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined]
        with_options.__annotations__ = {each.name: each.annotation for each in (*parameters, *own)}
        return with_options

    return of


def log_to_stderr() -> None:
    """Log lines as they are, without a prefix: for commands that a person watches."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
