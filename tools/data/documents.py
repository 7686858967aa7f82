"""Documents in, documents out: what `clean` and `label-topics` read, and the .jsonl.zst files they write.

A document is a JSON object with its text under one key; every other key is kept. `id` is the document's own where it
has one, else the place in its file, and goes with it through all stages into the token files' sidecar.
"""

import base64
import filecmp
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import zstandard

from data_mixers.atomic import publish, temporary_path
from tools.data.readers import BadRecord, InputTask, Record, read_task

ID_KEY, TOPIC_KEY, CONFIDENCE_KEY = "id", "topic", "topic_confidence"
MAX_DEPTH = 200  # orjson reads 1,024 levels and writes 254
_LARGEST_FLOAT = 2**53
_NAMES = (int, str)  # a union would be made anew for every document
_OUTPUT = re.compile(r"\d{7}-(?P<source>.+)\.jsonl\.zst")
COMPRESSION_LEVEL = 3  # of zstd: one core writes some 300 MB/s of text with it


@dataclass(frozen=True, slots=True)
class Document:
    id: str
    line: int
    """Counted from 1 inside the task."""
    text: str
    fields: dict[str, Any]
    """All keys, text and id included."""
    place: int
    """As in readers.Record."""


def source_of_file(path: Path) -> str:
    """The source in the name of a file that these tools have written, else the name of the file's folder."""
    found = _OUTPUT.fullmatch(path.name)
    return found["source"] if found else path.resolve().parent.name or "root"


def output_name(task: InputTask, index: int) -> str:
    """Of a task's documents: its number, so that names sort in input order, and the source, for later stages' globs."""
    return f"{index:07d}-{source_of_file(task.path)[:60]}.jsonl.zst"


def own_id(fields: dict[str, Any]) -> str:
    """Empty for a document without one: it is named "<file name>:<place>", place as in readers.Record.

    A float is an id up to 2**53: from there on several integers are one float, and those beyond 64 bits are read so.
    """
    own = fields.get(ID_KEY)
    if isinstance(own, float):
        return str(own) if abs(own) < _LARGEST_FLOAT else ""
    return str(own) if isinstance(own, _NAMES) else ""


def read_lines(
    task: InputTask, *, text_key: str | tuple[str, ...], on_bytes: Callable[[int], None]
) -> Iterator[Document | BadRecord | None]:
    """Every line of a task in order, as a document or with the reason why it is none; None for a blank one.

    text_key: as in readers.read_task.
    """
    for record in read_task(task, text_key=text_key, topic_key=None, on_bytes=on_bytes, other_columns=None):
        yield None if record is None else _document_of(record, task)


class TaskDocuments:
    """The documents of a task in their order; those who iterate have its lines counted, and those that are none kept.

    text_key: as in readers.read_task. prepare: adds keys to a document, or says that it is none.
    """

    def __init__(
        self,
        task: InputTask,
        *,
        text_key: str | tuple[str, ...],
        on_bytes: Callable[[int], None] = lambda _: None,
        prepare: Callable[[Document], Document | BadRecord] | None = None,
    ) -> None:
        self._found, self._prepare = read_lines(task, text_key=text_key, on_bytes=on_bytes), prepare
        self.num_lines = 0
        self.bad: list[tuple[int, str]] = []
        """(line counted from 1 inside the task, reason)."""

    def __iter__(self) -> Iterator[Document]:
        for found in self._found:
            self.num_lines += 1
            if self._prepare is not None and isinstance(found, Document):
                found = self._prepare(found)
            if isinstance(found, BadRecord):
                self.bad.append((found.line, found.reason))
            elif found is not None:
                yield found


def _document_of(record: Record | BadRecord, task: InputTask) -> Document | BadRecord:
    """A record of the task with its id, or why it cannot be kept whole."""
    if isinstance(record, BadRecord):
        return record
    if _is_deeper(record.fields, MAX_DEPTH):
        return BadRecord(record.line, f"nested deeper than {MAX_DEPTH}")
    name = own_id(record.fields) or f"{task.path.name}:{record.place}"
    return Document(name, record.line, record.text, record.fields | {ID_KEY: name}, record.place)


def _is_deeper(value: Any, limit: int) -> bool:
    layer = [value]
    for _ in range(limit):
        children = [child for item in layer for child in (item.values() if isinstance(item, dict) else item)]
        layer = [child for child in children if isinstance(child, dict | list | tuple)]
        if not layer:
            return False
    return True


def _plain(value: object) -> str:
    """What parquet knows and JSON does not: decimals, bytes, spans of time."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


class DocumentWriter:
    """Writes documents as .jsonl.zst or .jsonl under a temporary name; the file appears, synced, if all went well.

    A file that has the same bytes already keeps its time of change: by that a later step knows its input again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_documents = 0
        self._temporary = temporary_path(path)  # an older copy of a requeued array element may still write its own

    def __enter__(self) -> "DocumentWriter":
        self._stream: BinaryIO = self._temporary.open("wb")
        if self.path.suffix == ".zst":
            self._stream = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).stream_writer(self._stream)
        return self

    def write(self, fields: dict[str, Any]) -> None:
        self._stream.write(orjson.dumps(fields, default=_plain, option=orjson.OPT_APPEND_NEWLINE))
        self.num_documents += 1

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is not None:
                with suppress(OSError, zstandard.ZstdError):  # what ended the block is told
                    self._stream.close()
                return
            self._stream.close()
            filecmp.clear_cache()  # it goes by times of change, which may be too coarse for two writes on end
            if not (self.path.exists() and filecmp.cmp(self._temporary, self.path, shallow=False)):
                publish(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)
