"""Benchmark files as items of text: .jsonl, .json (a list of items, or it under a key), .csv, .parquet; .gz, .zst."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_mixers.errors import ConfigError, DataError
from tools.data.lines import UTF8_BOM
from tools.data.readers import KINDS
from tools.data.yaml_file import read_yaml

SUFFIXES = (*KINDS, ".csv")
"""Of the files that are read of a folder of benchmarks."""
KEYS_FILE = Path(__file__).with_name("benchmark_keys.yaml")


@dataclass(frozen=True, kw_only=True)
class Item:
    line: int
    """Counted from 1 in its file: line, row, or place in its list."""
    text: str
    """The texts under its keys, joined by line ends."""
    question: str = ""
    """Of them, those under the keys that hold questions; empty where it has none."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    path: Path
    keys: tuple[str, ...]
    """Which keys hold its text."""
    items: tuple[Item, ...]
    num_without_text: int = 0
    """Its other rows: without text under these keys, or no objects."""


def read_benchmark(path: Path, keys: tuple[str, ...] = ()) -> Benchmark:
    """keys: of the texts, in order; none: those of benchmark_keys.yaml that the file has.

    Errors: ConfigError if the file has none of the keys; DataError if it cannot be read.
    """
    there = [(line, row) for line, row in enumerate(read_rows(path), start=1) if row is not None]
    rows = [(line, row) for line, row in there if isinstance(row, dict)]
    if not rows:
        raise DataError(f"{path} holds no JSON objects")
    present = dict.fromkeys(key for _, row in rows for key in row)
    known: dict[str, list[str]] = read_yaml(KEYS_FILE, dict[str, list[str]])
    wanted = keys or tuple(key for group in known.values() for key in group)
    found = tuple(key for key in wanted if key in present)
    missing = [key for key in keys if key not in present]
    if missing or not found:
        raise ConfigError(
            f"{path} has no key {', '.join(missing) or 'that is known to hold a question or an answer'}; it has "
            f"{', '.join(present)}: name those with text by --benchmark-key"
        )
    asking = tuple(key for key in found if key in known["question"])
    made = (Item(line=line, text=_joined(row, found), question=_joined(row, asking)) for line, row in rows)
    items = tuple(item for item in made if item.text.strip())
    return Benchmark(path=path, keys=found, items=items, num_without_text=len(there) - len(items))


def _joined(row: dict[str, Any], keys: tuple[str, ...]) -> str:
    return "\n".join(text for key in keys for text in _texts(row.get(key)))


def _texts(value: Any) -> Iterator[str]:
    """All strings inside: choices are lists, or dicts of lists, in many sets."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def read_rows(path: Path) -> list[Any]:
    """The items of a benchmark's file, as they are; None for a blank line. Errors: DataError if it cannot be read."""
    import pyarrow.parquet

    kind = path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix
    try:
        if path.suffix == ".parquet":
            rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
            return rows
        # pyarrow unpacks .zst; Python's gzip also takes a .gz that is padded.
        with gzip.open(path) if path.suffix == ".gz" else pyarrow.input_stream(path) as stream:
            raw: bytes = stream.read().removeprefix(UTF8_BOM)
        if kind == ".csv":
            return _table(raw.decode("utf-8-sig"))
        if kind == ".json":
            try:
                return _list_in(orjson.loads(raw))
            except orjson.JSONDecodeError:
                pass  # lines under another name
        return [orjson.loads(line) if line.strip() else None for line in raw.splitlines()]
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:  # pyarrow's and orjson's are ValueErrors
        raise DataError(f"{path} cannot be read as a benchmark: {error}") from error


def _table(text: str) -> list[dict[Any, Any]]:
    """Errors: ValueError for a row with text behind the header's last column: a comma without quotes cut a question."""
    rows: list[dict[Any, Any]] = list(csv.DictReader(io.StringIO(text)))
    for number, row in enumerate(rows, start=1):
        if any(row.pop(None, ())):
            raise ValueError(f"row {number} has more fields than the header; quote what holds a comma")
    return rows


def _list_in(content: Any) -> list[Any]:
    """The longest list of objects: the content itself, or what one of its keys holds."""
    lists = [content] if isinstance(content, list) else list(content.values()) if isinstance(content, dict) else []
    found = [inner for inner in lists if isinstance(inner, list) and any(isinstance(item, dict) for item in inner)]
    return max(found, key=len, default=[content])
