"""Data files in YAML or JSON, read into strict dataclasses: rules, prompts, catalogues, key lists."""

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from data_mixers.errors import ConfigError
from data_mixers.file_version import KEY, check_version

SCHEMA_VERSION = 1  # of all of them; a file may leave it out
STRICT = ConfigDict(extra="forbid", strict=True)

T = TypeVar("T")


def read_yaml(path: Path, kind: type[T]) -> T:
    """An instance of `kind`, a pydantic dataclass or a type of them.

    Errors: ConfigError with a line for every fault.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if isinstance(content, dict) and KEY in content:
        cure = "use the version of the program that it was written for"
        check_version(content, understood=SCHEMA_VERSION, file=path, cure=cure, fault=ConfigError)
        del content[KEY]
    return _checked(path, kind, json.dumps(content, default=str))


def read_json(path: Path, kind: type[T]) -> T:
    """The same of a file in JSON."""
    try:
        return _checked(path, kind, path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _checked(path: Path, kind: type[T], content: str | bytes) -> T:
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        ]
        raise ConfigError("\n  ".join([f"{path} does not fit:", *faults])) from error
