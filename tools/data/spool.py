"""An external shuffle, first half: every task writes its tokenised documents as runs sorted by (topic, key).

The key is a 64-bit hash of (seed, text, place in the input), so one order comes out of any number of workers and any
cut into tasks. A run holds some 64 MB of text, or 262,144 documents, at most; `merge` takes one range of keys after the
other from all runs.
"""

import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from itertools import compress, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_mixers.atomic import publish, write_atomic
from data_mixers.errors import DataError
from megatron_synE.data.indexed import TOKEN_DTYPES
from megatron_synE.data.tokenizers import Tokenizer, load_tokenizer
from tools.data.documents import CONFIDENCE_KEY, ID_KEY, own_id
from tools.data.labels import is_label
from tools.data.options import PreprocessOptions
from tools.data.quarantine import check_lines
from tools.data.readers import BadRecord, InputTask, Record, read_task

RUN_BYTES = 64 << 20
RUN_DOCUMENTS = 1 << 18  # at most: each is some 300 bytes of Python in memory beside its text
BATCH_BYTES = 4 << 20  # a call of the tokenizer costs about a millisecond beside its text
BATCH_DOCUMENTS = 1 << 14
GATHERED = 1 << 12  # documents put together at once: a few megabytes
_NUMBERS = (int, float)  # a union would be made anew for every document
HOPELESS = 1000  # lines without one document: the input is not what it was taken for

META = np.dtype(
    [
        ("key", "<u8"),
        ("high", "<u8"),  # the two halves of the content hash
        ("low", "<u8"),
        ("place", "<i8"),  # as readers.Record has it
        ("confidence", "<f8"),  # of the topic; NaN: none
        ("token_start", "<i8"),  # in the run
        ("id_start", "<i8"),
        ("length", "<i4"),  # tokens, EOS included
        ("text_bytes", "<i4"),
        ("file", "<i4"),  # which of the call's inputs
        ("id_bytes", "<i4"),  # of the document's own id; 0: it has none
    ]
)
"""One document of a run."""

Tokens = npt.NDArray[np.integer]
Meta = npt.NDArray[np.void]


@dataclass(frozen=True, kw_only=True)
class RunSegment:
    """The documents of one topic inside one run, sorted by key. A run's file: tokens, META records, ids."""

    file: str
    topic: str
    meta_offset: int
    """Byte of the segment's first META record."""
    id_offset: int
    """Byte at which the ids of the whole run begin."""
    num_documents: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What became of one task; the lines that are no documents lie in a file beside the runs."""

    num_lines: int
    num_records: int
    """Lines that are not blank."""
    num_bad: int
    num_too_long: int
    """Documents longer than a window, where documents are kept whole."""
    segments: tuple[RunSegment, ...]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "TaskResult":
        segments = tuple(RunSegment(**segment) for segment in content["segments"])
        return cls(**{**content, "segments": segments})

    def read_bad_lines(self, runs: Path, task: int) -> list[tuple[int, str]]:
        """(line inside the task, reason) of the lines that are no documents."""
        if not self.num_bad and not self.num_too_long:
            return []
        return [(line, reason) for line, reason in json.loads(_bad_lines_path(runs, task).read_bytes())]


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    options: PreprocessOptions
    runs: Path
    engine: Literal["auto", "reference"]
    dtype: Literal["uint16", "int32"]


@cache
def open_tokenizer(path: Path, eos_token: str | None, engine: Literal["auto", "reference"]) -> Tokenizer:
    """One tokenizer for all tasks of a process."""
    return load_tokenizer(path, eos_token=eos_token, engine=engine)


def prepare_tokenizer(path: Path, eos_token: str | None, engine: Literal["auto", "reference"]) -> None:
    """Have its tables built before the first task comes."""
    open_tokenizer(path, eos_token, engine).encode_ordinary_flat(["."])


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Python's collector off: documents make no cycles, and looking through them took a twentieth of the work."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_no_search_for_cycles()
def tokenise_task(
    tasks: Sequence[InputTask], settings: TaskSettings, index: int, on_bytes: Callable[[int], None]
) -> dict[str, Any]:
    """Read, check and tokenise one task into sorted runs; a TaskResult as JSON.

    Errors: DataError for a damaged file, or if none of the first thousand lines is a document; as check_lines.
    """
    task = tasks[index]
    options = settings.options
    tokenizer = open_tokenizer(options.tokenizer, options.eos_token, settings.engine)
    writer = _RunWriter(task, index, tokenizer, settings)
    num_lines = num_records = 0
    for record in read_task(
        task,
        text_key=options.text_key,
        topic_key=options.topic_key,
        on_bytes=on_bytes,
        other_columns=(ID_KEY, CONFIDENCE_KEY),
        max_document_bytes=options.max_document_bytes,
    ):
        num_lines += 1
        if record is None:
            continue
        num_records += 1
        if isinstance(record, BadRecord):
            writer.bad.append((record.line, record.reason))
            if num_records == len(writer.bad) == HOPELESS:
                line, reason = writer.bad[0]
                raise DataError(
                    f"{task.path}: none of {HOPELESS} lines is a document; line {line} of the part from "
                    f"{task.start}: {reason}. Mend the input, or name the right --text-key"
                )
        elif record.topic is not None and not is_label(record.topic):
            reason = f"{options.topic_key} {record.topic[:40]!r} cannot be part of a source name"
            writer.bad.append((record.line, reason))
        else:
            writer.add(record)
    if task.is_whole_file:  # at once: whoever mends it begins anew
        check_lines(task.path, num_records, writer.bad)
    writer.flush()
    if writer.bad:
        write_atomic(_bad_lines_path(settings.runs, index), json.dumps(sorted(writer.bad)).encode())
    return asdict(
        TaskResult(
            num_lines=num_lines,
            num_records=num_records,
            num_bad=len(writer.bad) - writer.num_too_long,
            num_too_long=writer.num_too_long,
            segments=tuple(writer.segments),
        )
    )


def _bad_lines_path(runs: Path, task: int) -> Path:
    return runs / f"{task:07d}.bad.json"


class _RunWriter:
    """Collects documents of a task and writes a run whenever enough are there."""

    def __init__(self, task: InputTask, task_index: int, tokenizer: Tokenizer, settings: TaskSettings) -> None:
        self._task, self._task_index, self._tokenizer = task, task_index, tokenizer
        self._runs, self._options = settings.runs, settings.options
        self.segments: list[RunSegment] = []
        self.bad: list[tuple[int, str]] = []
        self.num_too_long = self._num_runs = 0
        self._dtype = np.dtype(TOKEN_DTYPES[settings.dtype])
        self._eos = np.array([tokenizer.eos_id], dtype=self._dtype)
        self._topics: dict[str, int] = {}
        self._batch: list[tuple[Record, int, bytes]] = []
        self._batch_bytes = 0
        self._start_run()

    def add(self, record: Record) -> None:
        raw = record.text.encode()
        self._batch.append((record, len(raw), sha256(raw).digest()))
        self._batch_bytes += len(raw)
        if self._batch_bytes >= BATCH_BYTES or len(self._batch) >= BATCH_DOCUMENTS:
            self._tokenise()
            if self._run_bytes >= RUN_BYTES or len(self._tokens) >= RUN_DOCUMENTS:
                self.flush()

    def flush(self) -> None:
        """Write what is collected as one run."""
        self._tokenise()
        if self._tokens:
            self._write_run()
        self._start_run()

    def _start_run(self) -> None:
        self._metas: list[Meta] = []  # of each batch, as read
        self._topic_of: list[npt.NDArray[np.int64]] = []  # likewise
        self._ids: list[bytes] = []
        self._tokens: list[Tokens] = []
        self._run_bytes = 0

    def _tokenise(self) -> None:
        if not self._batch:
            return
        records, sizes, digests = zip(*self._batch, strict=True)
        flat, offsets = self._tokenizer.encode_ordinary_flat([record.text for record in records])
        if flat.dtype != self._dtype:
            flat = flat.astype(self._dtype)
        lengths = np.diff(offsets) + 1  # with EOS
        fits = lengths > 1
        if self._options.seq_length is not None:
            fits &= lengths <= self._options.seq_length
        places = offsets.tolist()
        tokens = [flat[start:stop] for start, stop in pairwise(places)]
        if not fits.all():
            for row in np.flatnonzero(~fits).tolist():
                self._refuse(records[row], int(lengths[row]))
            kept = fits.tolist()
            records, sizes, digests, tokens = (
                list(compress(column, kept)) for column in (records, sizes, digests, tokens)
            )
            lengths = lengths[fits]
        if tokens:
            self._describe(records, sizes, digests, lengths)
            self._tokens += tokens
        self._run_bytes += self._batch_bytes
        self._batch, self._batch_bytes = [], 0

    def _refuse(self, record: Record, length: int) -> None:
        if length == 1:
            self.bad.append((record.line, f"{self._options.text_key} gives no token"))
        else:
            self.num_too_long += 1
            reason = f"{length} tokens with EOS, longer than a window of {self._options.seq_length}"
            self.bad.append((record.line, reason))

    def _describe(
        self, records: Sequence[Record], sizes: Sequence[int], digests: Sequence[bytes], lengths: npt.NDArray[np.int64]
    ) -> None:
        """Records of META for a batch, column by column: row by row takes twice the time of parsing the JSON."""
        if int(lengths.max()) > np.iinfo(np.int32).max:
            raise DataError(f"{self._task.path}: a document has 2**31 tokens, more than the index holds")
        ids = [own_id(record.fields).encode() for record in records]
        confidences = [record.fields.get(CONFIDENCE_KEY) for record in records]
        meta = np.zeros(len(records), dtype=META)
        meta["place"] = [record.place for record in records]
        meta["confidence"] = [float(v) if isinstance(v, _NUMBERS) else np.nan for v in confidences]
        meta["length"], meta["text_bytes"] = lengths, sizes
        meta["id_bytes"] = [len(name) for name in ids]
        meta["file"] = self._task.file_index
        halves = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 4)  # a sha256's first 128 bits
        meta["high"], meta["low"] = halves[:, 0], halves[:, 1]
        meta["key"] = _keys(meta, self._options.seed)
        one_topic = self._options.topic or "all"
        topics = [one_topic if record.topic is None else record.topic for record in records]
        numbers = [self._topics.setdefault(topic, len(self._topics)) for topic in topics]
        self._metas.append(meta)
        self._topic_of.append(np.array(numbers))
        self._ids += ids

    def _write_run(self) -> None:
        meta, topic_of = np.concatenate(self._metas), np.concatenate(self._topic_of)
        order = np.lexsort((meta["place"], meta["key"], topic_of))  # by topic's number, then key
        meta, topic_of = meta[order], topic_of[order]
        total = meta["length"].sum(dtype=np.int64)
        meta["token_start"] = np.cumsum(meta["length"], dtype=np.int64) - meta["length"]
        meta["id_start"] = np.cumsum(meta["id_bytes"], dtype=np.int64) - meta["id_bytes"]
        name = f"{self._task_index:07d}-{self._num_runs:05d}.run"
        temporary = self._runs / f".{name}.{os.getpid()}.tmp"
        rows = order.tolist()
        with temporary.open("wb") as stream:
            for start in range(0, len(rows), GATHERED):
                documents = rows[start : start + GATHERED]
                pieces = [self._eos] * (2 * len(documents))
                pieces[::2] = [self._tokens[row] for row in documents]
                stream.write(np.concatenate(pieces).data)
            stream.write(meta.tobytes())
            stream.write(b"".join(self._ids[row] for row in rows))
        publish(temporary, self._runs / name)
        meta_offset = int(total) * self._dtype.itemsize
        id_offset = meta_offset + meta.nbytes
        for topic, number in self._topics.items():
            first, last = np.searchsorted(topic_of, (number, number + 1)).tolist()
            if first < last:
                segment = RunSegment(
                    file=name,
                    topic=topic,
                    meta_offset=meta_offset + first * META.itemsize,
                    id_offset=id_offset,
                    num_documents=last - first,
                    num_tokens=int(meta["length"][first:last].sum(dtype=np.int64)),
                )
                self.segments.append(segment)
        self._num_runs += 1


def _keys(meta: Meta, seed: int) -> npt.NDArray[np.uint64]:
    """A hash of (seed, text, file, place) for each document."""
    base = int.from_bytes(hashlib.blake2b(f"order:{seed}".encode(), digest_size=8).digest(), "little")
    value = np.full(len(meta), base, dtype=np.uint64)
    for part in ("high", "low", "file", "place"):
        value = _mixed(value ^ meta[part].astype(np.uint64))
    return value


def _mixed(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The splitmix64 finaliser (Steele, Lea, Flood 2014), after a step, so that 0 is not a fixed point."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
