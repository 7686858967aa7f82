"""What commands of several groups share: how an example is shown, options of a dataclass, a run's file."""

import argparse
import codecs
import inspect
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from enum import StrEnum
from functools import wraps
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from data_mixers.atomic import write_atomic
from data_mixers.errors import UserError

Config = Annotated[Path, typer.Option("--config", help="The run's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values that win over the file, e.g. optimizer.lr=1e-4"),
]
Workers = Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")]
OwnFolder = Annotated[Path, typer.Option(help="Folder of this call alone; the same call goes on where it was killed.")]
TextKey = Annotated[str, typer.Option(help="Key of the text.")]
MaxBadShare = Annotated[float, typer.Option(min=0.0, max=1.0, help="Refuse the input above this share of bad lines.")]
MaxBadLines = Annotated[int, typer.Option(min=0, help="So many bad lines are always accepted.")]
_BY_NAME = inspect.Parameter.KEYWORD_ONLY


def example(*lines: str) -> str:
    """An epilog that can be pasted; `lines` are joined by a backslash and a new line."""
    # \b keeps the lines as they are.
    return "\b\nExample:\n  " + " \\\n    ".join(lines)


def takes(*kinds: type[Any], **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose options are the annotated fields of dataclasses; its first parameters receive one of each.

    Its other parameters are options as ever: listed before those where they must be given, else after them. defaults:
    of this command, in place of a field's own. A field tuple[x, ...] is an option that may be repeated: typer reads a
    function's signature, and knows it as list[x]. A field that is annotated with a function is what that function makes
    of options of its own, its parameters.
    """
    parameters: list[inspect.Parameter] = []
    repeated: list[str] = []
    made: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {}
    taken: list[list[str]] = []

    def option(name: str, annotation: Any, default: Any) -> None:
        parameters.append(inspect.Parameter(name, _BY_NAME, default=default, annotation=annotation))

    for kind in kinds:
        hints = get_type_hints(kind, include_extras=True)
        annotated = [field for field in fields(kind) if get_origin(hints[field.name]) is Annotated]
        taken.append([field.name for field in annotated])
        for field in annotated:
            row, said = get_args(hints[field.name])
            if inspect.isfunction(said):
                own = get_type_hints(said, include_extras=True)
                made[field.name] = said, tuple(inspect.signature(said).parameters)
                for name, parameter in inspect.signature(said).parameters.items():
                    option(name, own[name], parameter.default)
                continue
            if get_args(row)[1:] == (...,):
                repeated.append(field.name)
                item, _ = get_args(row)
                is_choice = get_origin(item) is Literal  # which typer knows by itself, and not in a list
                item_type = StrEnum(field.name, {name: name for name in get_args(item)}) if is_choice else item
                row = GenericAlias(list, (item_type,))
            default = defaults.get(field.name, field.default)
            option(field.name, Annotated[row, said], inspect.Parameter.empty if default is MISSING else default)

    def of(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_options(**given: Any) -> None:
            for name, (make, names) in made.items():
                given[name] = make(**{own: given.pop(own) for own in names})
            for name in repeated:
                given[name] = tuple(given[name] or ())
            instances = [
                kind(**{name: given.pop(name) for name in names}) for kind, names in zip(kinds, taken, strict=True)
            ]
            command(*instances, **given)

        hints = get_type_hints(command, include_extras=True)
        others = list(inspect.signature(command).parameters.values())[len(kinds) :]
        others = [other.replace(kind=_BY_NAME, annotation=hints[other.name]) for other in others]
        needed = [other for other in others if other.default is inspect.Parameter.empty]
        whole = [*needed, *parameters, *(other for other in others if other not in needed)]
        with_options.__signature__ = inspect.Signature(whole)  # type: ignore[attr-defined]
        with_options.__annotations__ = {each.name: each.annotation for each in whole}
        return with_options

    return of


def page_command(page: Path, render: Callable[[], str], description: str | None) -> None:
    """For a module that makes a page of docs/: print it, or write it in its place."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write docs/{page.name} instead of printing")
    if parser.parse_args().write:
        write_atomic(page, render().encode())
    else:
        sys.stdout.write(render())


@contextmanager
def one_message() -> Iterator[None]:
    """For a module that is called by a job script: a user's mistake is a message and its exit code, as of `syne`."""
    try:
        yield
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from None


def escape_what_stdout_lacks() -> None:
    """A terminal that is not UTF-8 gets JSON's escapes: backslashreplace would make \\xe9, which JSON does not know."""
    codecs.register_error("json_escape", _json_escape)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="json_escape")


def _json_escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def log_to_stderr() -> None:
    """Log lines as they are, without a prefix: for commands that a person watches."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO a line a request
    # At INFO, when it is imported: "using Megatron-FSDP", which nothing here does.
    logging.getLogger("megatron.core").setLevel(logging.WARNING)
