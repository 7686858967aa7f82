"""JSON to frozen dataclasses without forgiveness: unknown, missing and mistyped keys are named."""

import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
Fault = Callable[[str], Exception]


def parse(cls: type[T], value: object, *, where: str, fault: Fault) -> T:
    """An instance of the dataclass `cls` from parsed JSON.

    where: prefix of the key in messages. fault: makes the exception, e.g. DataError.
    Errors: whatever `fault` makes, with the full key path, for an unknown, missing or mistyped key.
    """
    if not isinstance(value, Mapping):
        raise fault(f"{where} is {_kind(value)}, not an object with the keys of a {cls.__name__}")
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # callers pass dataclasses only
    unknown = sorted(set(value) - set(names))
    missing = [name for name in names if name not in value]
    if unknown or missing:
        found = [f"unknown key {where}.{name}" for name in unknown] + [
            f"missing key {where}.{name}" for name in missing
        ]
        raise fault("; ".join(found))
    return cls(**{name: _value(hints[name], value[name], where=f"{where}.{name}", fault=fault) for name in names})


def _value(hint: Any, value: object, *, where: str, fault: Fault) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        choices = [choice for choice in get_args(hint) if choice is not type(None)]
        return None if value is None else _value(choices[0], value, where=where, fault=fault)
    if origin is Literal:
        if value not in get_args(hint):
            raise fault(f"{where} is {value!r}; it must be one of {', '.join(map(repr, get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise fault(f"{where} is {_kind(value)}, not a list")
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise fault(f"{where} has {len(value)} items, not {len(kinds)}")
        return tuple(
            _value(kind, item, where=f"{where}[{index}]", fault=fault)
            for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if is_dataclass(hint):
        return parse(hint, value, where=where, fault=fault)  # type: ignore[arg-type]
    if not isinstance(value, hint) or isinstance(value, bool):
        raise fault(f"{where} is {_kind(value)}, not {hint.__name__}")
    return value


def _kind(value: object) -> str:
    return "null" if value is None else f"{value!r} ({type(value).__name__})"
