"""Input files (.jsonl, .gz, .zst, .parquet) cut into tasks, and tasks read as records or reasons why a line is none."""

import glob
import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from data_mixers.errors import ConfigError, DataError

Kind = Literal["jsonl", "gz", "zst", "parquet"]
CHUNK_BYTES = 32 << 20  # of one plain file per task: enough tasks to balance, few enough runs to merge
UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class InputTask:
    """A piece of one input file that is read by one worker."""

    file_index: int
    path: Path
    kind: Kind
    start: int
    """First byte (jsonl) or row group (parquet)."""
    stop: int
    size_bytes: int
    """Its part of the file, for progress."""


@dataclass(frozen=True, slots=True)
class Record:
    """One document."""

    line: int
    """Counted from 1 inside the task: line, or row of a parquet file."""
    place: int
    """Where it begins in its file: byte of a plain file, else line or row counted from 1."""
    text: str
    topic: str | None
    """The value of the topic key, if one is asked for."""
    fields: dict[str, Any]
    """All keys of the line, or the columns that were asked for."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A line that is no document."""

    line: int
    reason: str


def find_inputs(patterns: tuple[str, ...], *, option: str = "--input") -> list[Path]:
    """The files behind names and globs, sorted, each once. Errors: ConfigError for a pattern without a file."""
    found: set[Path] = set()
    for pattern in patterns:
        matches = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207  # absolute patterns
        files = [path for path in matches if path.is_file()]
        if not files:
            raise ConfigError(f"{option} {pattern} matches no file")
        found.update(files)
    return sorted(found)


def plan_tasks(paths: list[Path], *, chunk_bytes: int = CHUNK_BYTES) -> list[InputTask]:
    """The tasks of all files in order; they do not depend on the number of workers."""
    tasks = []
    for file_index, path in enumerate(paths):
        kind, size = _kind(path), path.stat().st_size
        if kind == "jsonl":
            cuts = [(start, min(start + chunk_bytes, size)) for start in range(0, size, chunk_bytes)]
        elif kind == "parquet":
            cuts = [(group, group + 1) for group in range(_num_row_groups(path))]
        else:
            cuts = [(0, size)]
        tasks += [
            InputTask(
                file_index=file_index,
                path=path,
                kind=kind,
                start=start,
                stop=stop,
                size_bytes=stop - start if kind != "parquet" else size // len(cuts),
            )
            for start, stop in cuts
        ]
    return tasks


def read_task(
    task: InputTask,
    *,
    text_key: str,
    topic_key: str | None,
    on_bytes: Callable[[int], None],
    all_columns: bool = False,
) -> Iterator[Record | BadRecord | None]:
    """Every line of a task, as a document or with the reason why it is none; None for a blank line.

    on_bytes: told how many bytes of the input have been read since the last call.
    all_columns: of a parquet file, not only text and topic; other files hold whole lines anyway.
    Errors: DataError naming the file if it is damaged as a whole (cut off, not the format its name says).
    """
    if task.kind == "parquet":
        yield from _read_parquet(
            task, text_key=text_key, topic_key=topic_key, on_bytes=on_bytes, all_columns=all_columns
        )
        return
    try:
        for number, (place, line) in enumerate(_lines(task, on_bytes), start=1):
            blank = not line or line.isspace()
            yield None if blank else _parse(line, number, place, text_key=text_key, topic_key=topic_key)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{task.path} is damaged ({error}); compress or copy it again") from error


def _kind(path: Path) -> Kind:
    kinds: dict[str, Kind] = {
        ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".gz": "gz", ".zst": "zst", ".parquet": "parquet",
    }  # fmt: skip
    if path.suffix not in kinds:
        raise ConfigError(f"--input {path} has an unknown suffix; known: {', '.join(kinds)}")
    return kinds[path.suffix]


def _lines(task: InputTask, on_bytes: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    """(place, line) of the lines that begin inside the task, whole; a line belongs to the task of its first byte."""
    with task.path.open("rb") as raw:
        if task.kind == "jsonl":
            yield from _byte_range(raw, task, on_bytes)
            return
        before = 0
        for number, line in enumerate(_decompressed(raw, task), start=1):
            yield number, line.removeprefix(UTF8_BOM) if number == 1 else line
            if raw.tell() != before:
                on_bytes(raw.tell() - before)
                before = raw.tell()


def _byte_range(raw: BufferedReader, task: InputTask, on_bytes: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    position = task.start
    if task.start:
        raw.seek(task.start - 1)
        position += len(raw.readline()) - 1  # the rest of a line that began in the task before
    pending = 0
    while position < task.stop:
        line = raw.readline()
        if not line:
            break
        yield position, line.removeprefix(UTF8_BOM) if position == 0 else line
        position += len(line)
        pending += len(line)
        if pending >= 1 << 20:
            on_bytes(pending)
            pending = 0
    on_bytes(pending)


def _decompressed(raw: BufferedReader, task: InputTask) -> Iterator[bytes]:
    if task.kind == "gz":
        with gzip.open(raw, "rb") as stream:
            yield from stream
        return
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False) as reader:
            yield from _split_lines(reader)
    except zstandard.ZstdError as error:
        raise DataError(f"{task.path} is damaged ({error}); compress or copy it again") from error


def _split_lines(reader: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while chunk := reader.read(1 << 20):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _parse(line: bytes, number: int, place: int, *, text_key: str, topic_key: str | None) -> Record | BadRecord:
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError as decode_error:
            return BadRecord(number, f"invalid UTF-8 at byte {decode_error.start} of the line")
        return BadRecord(number, f"broken JSON: {error}")
    if not isinstance(content, dict):
        return BadRecord(number, "not a JSON object")
    if text_key not in content:
        return BadRecord(number, f"missing key {text_key}")
    if topic_key is not None and topic_key not in content:
        return BadRecord(number, f"missing key {topic_key}")
    return _check(content, number, place, text_key, topic_key)


def _check(
    content: dict[str, Any], number: int, place: int, text_key: str, topic_key: str | None
) -> Record | BadRecord:
    text, topic = content[text_key], content[topic_key] if topic_key is not None else None
    if not isinstance(text, str):
        return BadRecord(number, f"{text_key} is not text")
    if not text or text.isspace():
        return BadRecord(number, f"{text_key} is empty")
    if "\x00" in text:
        return BadRecord(number, f"{text_key} holds a NUL character")
    if topic is not None and not isinstance(topic, str):
        return BadRecord(number, f"{topic_key} is not text")
    if topic_key is not None and topic is None:
        return BadRecord(number, f"{topic_key} is empty")
    return Record(number, place, text, topic, content)


def _read_parquet(
    task: InputTask, *, text_key: str, topic_key: str | None, on_bytes: Callable[[int], None], all_columns: bool
) -> Iterator[Record | BadRecord]:
    import pyarrow
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(task.path)
    needed = [text_key] if topic_key is None else [text_key, topic_key]
    for column in needed:
        if column not in file.schema_arrow.names:
            raise DataError(f"{task.path} has no column {column}; it has {', '.join(file.schema_arrow.names)}")
    first_row = sum(file.metadata.row_group(group).num_rows for group in range(task.start))
    number = 0
    try:
        columns = None if all_columns else needed
        for batch in file.iter_batches(batch_size=1024, row_groups=[task.start], columns=columns):
            for content in batch.to_pylist():
                number += 1
                yield _check(content, number, first_row + number, text_key, topic_key)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{task.path} is damaged in row group {task.start}: {error}") from error
    on_bytes(task.size_bytes)


def _num_row_groups(path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.ParquetFile(path).num_row_groups)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error
