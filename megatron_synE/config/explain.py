"""What pydantic found wrong, in the words of the configuration file: key, fault, value, nearest name."""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from megatron_synE.config.schema import RunConfig

_LONGEST_VALUE = 60
_NO_KEY = re.compile(r"\[key\]$|(list|dict)\[")
"""What pydantic puts among the keys: that one is at fault itself, which part of a union was tried."""


def explain_error(error: Mapping[str, Any], root: type = RunConfig) -> str:
    """One line `section.key: what is wrong (value)` for one entry of ValidationError.errors(). root: its schema."""
    loc: tuple[str | int, ...] = tuple(part for part in error["loc"] if not _NO_KEY.match(str(part)))
    key = ".".join(map(str, loc)) or "the file"
    kind = error["type"]
    value = error.get("input")
    if kind == "unexpected_keyword_argument":
        return f"{key}: unknown key; {_suggestion(loc, root)}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{key}: missing; it has no default"
    if kind in ("dataclass_type", "dataclass_exact_type"):
        section = section_at(loc, root)
        names = ", ".join(field_names(section)) if section is not None else ""
        return f"{key}: expected a section with keys such as {names} {_shown(value)}".rstrip()
    if kind == "int_type" and isinstance(value, float):
        return f"{key}: must be a whole number {_shown(value)}"
    if kind == "literal_error":
        return f"{key}: must be one of {error['ctx']['expected']} {_shown(value)}{_nearest_value(error)}"
    if kind == "string_pattern_mismatch":
        return f"{key}: letters, digits, '.', '_' and '-' only, and no leading '.' or '-' {_shown(value)}"
    if not error["msg"].startswith("Input should "):
        return f"{key}: {error['msg']} {_shown(value)}"
    message = error["msg"].removeprefix("Input should be ").removeprefix("Input should ")
    words = (
        message.replace("valid array", "list, e.g. [a, b]")
        .replace("valid object", "section")
        .replace("a valid integer", "an integer")
        .replace("a valid ", "a ")
    )
    return f"{key}: must be {words} {_shown(value)}"


def section_at(loc: tuple[str | int, ...], root: type = RunConfig) -> type | None:
    """The schema dataclass that describes the value at `loc`, or None where there is none."""
    current: Any = root
    for part in loc:
        if isinstance(part, int):
            arguments = typing.get_args(current)
            current = arguments[0] if arguments else None
        elif _is_section(current):
            current = _present(typing.get_type_hints(current).get("source" if part == "from" else part))
        else:
            return None
    return current if _is_section(current) else None


def _present(hint: Any) -> Any:
    """X of `X | None`, else the hint itself."""
    arguments = [argument for argument in typing.get_args(hint) if argument is not type(None)]
    return arguments[0] if isinstance(hint, types.UnionType) and len(arguments) == 1 else hint


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def field_names(section: type) -> list[str]:
    """The keys of one section as they are written in a file."""
    names = list(typing.get_type_hints(section))
    return ["from" if section.__name__ == "InitSection" and name == "source" else name for name in names]


def all_keys(root: type = RunConfig) -> list[str]:
    """Every `section.key` of the file, stages without their position."""
    return [key for name, hint in typing.get_type_hints(root).items() for key in _keys(name, hint)]


def _keys(key: str, hint: Any) -> list[str]:
    if not _is_section(hint):
        return [key]
    inner = typing.get_type_hints(hint)
    # written names: init.from stands for the field `source`
    named = zip(field_names(hint), inner.values(), strict=True)
    return [found for name, below in named for found in _keys(f"{key}.{name}", below)]


def _suggestion(loc: tuple[str | int, ...], root: type) -> str:
    wrong = str(loc[-1])
    section = section_at(loc[:-1], root)
    names = field_names(section) if section is not None else []
    if near := difflib.get_close_matches(wrong, names, n=1, cutoff=0.6):
        return f"did you mean {'.'.join(map(str, (*loc[:-1], near[0])))}?"
    elsewhere = {key.rpartition(".")[2]: key for key in all_keys(root)}
    if near := difflib.get_close_matches(wrong, list(elsewhere), n=1, cutoff=0.75):
        return f"did you mean {elsewhere[near[0]]}?"
    return f"known here: {', '.join(names)}"


def _nearest_value(error: Mapping[str, Any]) -> str:
    choices = [choice.strip("'") for choice in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
    near = difflib.get_close_matches(str(error.get("input")), choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return f"({text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + '...'})"
