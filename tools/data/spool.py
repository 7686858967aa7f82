"""An external shuffle: workers write sorted runs of tokenised documents, merging them gives one order for any workers.

Every document has a 64-bit key, a hash of (seed, text, place in the input). A run holds some 32 MB of text sorted by
(topic, key); a merge takes one range of keys after the other from all runs, so memory is bounded at any size.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_mixers.errors import DataError
from megatron_synE.data.indexed import TOKEN_DTYPES, IndexedWriter, WrittenPair
from megatron_synE.data.tokenizers import Tokenizer
from tools.data.labels import is_label
from tools.data.readers import BadRecord, InputTask, Record, read_task

RUN_BYTES = 32 << 20
BATCH_BYTES = 1 << 20
MERGE_TOKENS = 16 << 20  # in memory at once while merging: about 200 MB with the copies

META = np.dtype([("key", "<u8"), ("high", "<u8"), ("low", "<u8"), ("length", "<i4"), ("text_bytes", "<i4")])
"""One document: shuffle key, the two halves of its content hash, tokens with EOS, bytes of its text."""

Tokens = npt.NDArray[np.integer]
Meta = npt.NDArray[np.void]


@dataclass(frozen=True, kw_only=True)
class RunSegment:
    """The documents of one topic inside one run, sorted by key."""

    path: Path
    """Tokens; the META records lie beside it with suffix .meta."""
    first_document: int
    num_documents: int
    first_token: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What became of one task."""

    num_lines: int
    num_records: int
    """Lines that are not blank."""
    bad: tuple[tuple[int, str], ...]
    """(line inside the task, reason)."""
    segments: tuple[tuple[str, RunSegment], ...]
    """(topic, segment)."""


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What every task of a call has in common."""

    spool: Path
    dtype: Literal["uint16", "int32"]
    text_key: str
    topic_key: str | None
    topic: str
    """Used where there is no topic key."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class MergedTopic:
    """The final files of one topic, still in the spool."""

    train: WrittenPair | None
    train_text_bytes: int
    held_out: WrittenPair | None
    held_out_text_bytes: int
    num_duplicates_removed: int
    """Training documents left out because a held-out document has the same text."""
    held_out_digests: tuple[int, ...]
    """Content hashes of the documents that are not trained on."""


def content_digest(text: bytes) -> int:
    """128 bits of blake2b: decides what is held out and which texts are the same."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "big")


def tokenise_task(
    task: InputTask, task_index: int, *, tokenizer: Tokenizer, settings: TaskSettings, on_bytes: Callable[[int], None]
) -> TaskResult:
    """Read, check and tokenise one task into sorted runs in the spool."""
    writer = _RunWriter(task, task_index, tokenizer, settings)
    bad: list[tuple[int, str]] = []
    num_lines = num_records = 0
    for record in read_task(task, text_key=settings.text_key, topic_key=settings.topic_key, on_bytes=on_bytes):
        num_lines += 1
        if record is None:
            continue
        num_records += 1
        if isinstance(record, BadRecord):
            bad.append((record.line, record.reason))
        elif record.topic is not None and not is_label(record.topic):
            bad.append((record.line, f"{settings.topic_key} {record.topic[:40]!r} cannot be part of a source name"))
        else:
            writer.add(record)
    writer.flush()
    return TaskResult(num_lines=num_lines, num_records=num_records, bad=tuple(bad), segments=tuple(writer.segments))


def smallest_digests(segments: list[RunSegment], count: int, *, without: Mapping[int, str]) -> list[int]:
    """The `count` smallest different content hashes of a topic that are not in `without`."""
    chosen: list[int] = []
    for segment in segments:
        meta = _meta(segment)
        order = np.lexsort((meta["low"], meta["high"]))
        # copies of one text lie together: look at enough of the order to find `count` different ones
        found: list[int] = []
        for high, low in zip(meta["high"][order].tolist(), meta["low"][order].tolist(), strict=True):
            digest = high << 64 | low
            if digest not in without and (not found or found[-1] != digest):
                found.append(digest)
                if len(found) == count:
                    break
        chosen = sorted({*chosen, *found})[:count]
    return chosen


def merge_topic(
    topic: str,
    segments: list[RunSegment],
    *,
    train_prefix: Path,
    held_out_prefix: Path | None,
    held_out: Mapping[int, str],
    keep_digests: bool,
    dtype: Literal["uint16", "int32"],
    on_tokens: Callable[[int], None],
) -> MergedTopic:
    """Write the documents of a topic in key order; those of `held_out` go to their own files, copies of them nowhere.

    held_out: content hash -> the topic that holds it out ("" for one of an earlier call).
    keep_digests: the whole topic is held out, so the hashes of all its documents are wanted.
    """
    train = IndexedWriter(train_prefix, dtype=dtype)
    kept = IndexedWriter(held_out_prefix, dtype=dtype) if held_out_prefix is not None else None
    bytes_of = {"train": 0, "kept": 0}
    emitted: set[int] = set()
    removed = 0
    highs = np.array(sorted({digest >> 64 for digest in held_out}), dtype=np.uint64)
    with train:
        if kept is not None:
            kept.__enter__()
        try:
            for meta, starts, tokens in _key_ranges(segments, dtype):
                is_train = np.ones(len(meta), dtype=bool)
                for row in np.flatnonzero(np.isin(meta["high"], highs)).tolist():
                    digest = int(meta["high"][row]) << 64 | int(meta["low"][row])
                    owner = held_out.get(digest)
                    if owner is None:
                        continue
                    is_train[row] = False
                    if kept is not None and owner == topic and digest not in emitted:
                        length = int(meta["length"][row])
                        kept.add_document(tokens[starts[row] : starts[row] + length])
                        bytes_of["kept"] += int(meta["text_bytes"][row])
                        emitted.add(digest)
                    else:
                        removed += 1
                rows = np.flatnonzero(is_train)
                if keep_digests:
                    pairs = zip(meta["high"][rows].tolist(), meta["low"][rows].tolist(), strict=True)
                    emitted.update(high << 64 | low for high, low in pairs)
                lengths = meta["length"][rows]
                train.add_documents(gather(tokens, starts[rows], lengths), lengths)
                bytes_of["train"] += int(meta["text_bytes"][rows].sum(dtype=np.int64))
                on_tokens(len(tokens))
        except BaseException as error:
            if kept is not None:
                kept.__exit__(type(error), error, None)
            raise
        if kept is not None:
            kept.__exit__(None, None, None)
    return MergedTopic(
        train=train.written,
        train_text_bytes=bytes_of["train"],
        held_out=kept.written if kept is not None else None,
        held_out_text_bytes=bytes_of["kept"],
        num_duplicates_removed=removed,
        held_out_digests=tuple(sorted(emitted)),
    )


def gather(tokens: Tokens, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32]) -> Tokens:
    """The pieces [start, start + length) of a flat array, one after the other."""
    if not len(starts):
        return tokens[:0]
    # one slice a document: an array of places would cost eight bytes a token, twice
    stops = starts + lengths
    return np.concatenate([tokens[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)])


@dataclass
class _RunWriter:
    """Collects documents of a task and writes a run whenever enough are there."""

    task: InputTask
    task_index: int
    tokenizer: Tokenizer
    settings: TaskSettings
    segments: list[tuple[str, RunSegment]] = field(default_factory=list)
    num_runs: int = 0

    def __post_init__(self) -> None:
        self._texts: list[str] = []
        self._batch_bytes = 0
        self._start_run()

    def add(self, record: Record) -> None:
        raw = record.text.encode()
        place = f"{self.settings.seed}:{self.task.file_index}:{self.task.start}:{record.line}:".encode()
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        key = hashlib.blake2b(place + digest, digest_size=8).digest()
        self._rows.append((key, digest, len(raw)))
        self._topics.append(self.settings.topic if record.topic is None else record.topic)
        self._texts.append(record.text)
        self._batch_bytes += len(raw)
        if self._batch_bytes >= BATCH_BYTES:
            self._tokenise()
            if self._run_bytes >= RUN_BYTES:
                self.flush()

    def flush(self) -> None:
        """Write what is collected as one run."""
        self._tokenise()
        if self._rows:
            self._write_run()
        self._start_run()

    def _start_run(self) -> None:
        self._rows: list[tuple[bytes, bytes, int]] = []
        self._topics: list[str] = []
        self._ids: list[npt.NDArray[np.integer]] = []
        self._lengths: list[npt.NDArray[np.int64]] = []
        self._run_bytes = 0

    def _tokenise(self) -> None:
        if not self._texts:
            return
        ids, offsets = self.tokenizer.encode_ordinary_flat(self._texts)
        self._ids.append(with_eos(ids, offsets, self.tokenizer.eos_id).astype(TOKEN_DTYPES[self.settings.dtype]))
        self._lengths.append(np.diff(offsets) + 1)
        self._run_bytes += self._batch_bytes
        self._texts, self._batch_bytes = [], 0

    def _write_run(self) -> None:
        tokens, lengths = np.concatenate(self._ids), np.concatenate(self._lengths)
        if int(lengths.max()) > np.iinfo(np.int32).max:
            raise DataError(f"{self.task.path}: a document has {int(lengths.max())} tokens; the index holds 2**31-1")
        meta = np.zeros(len(lengths), dtype=META)
        meta["key"] = np.frombuffer(b"".join(row[0] for row in self._rows), dtype=">u8")
        halves = np.frombuffer(b"".join(row[1] for row in self._rows), dtype=">u8").reshape(-1, 2)
        meta["high"], meta["low"] = halves[:, 0], halves[:, 1]
        meta["length"], meta["text_bytes"] = lengths, [row[2] for row in self._rows]
        names, topic_index = np.unique(np.array(self._topics), return_inverse=True)
        order = np.lexsort((meta["low"], meta["high"], meta["key"], topic_index))
        starts = np.cumsum(lengths) - lengths
        path = self.settings.spool / f"{self.task_index:07d}-{self.num_runs:05d}.tokens"
        gather(tokens, starts[order], meta["length"][order]).tofile(path)
        meta[order].tofile(path.with_suffix(".meta"))
        counts = np.bincount(topic_index, minlength=len(names))
        token_counts = np.bincount(topic_index, weights=lengths, minlength=len(names)).astype(np.int64)
        document, token = 0, 0
        for name, count, num_tokens in zip(names.tolist(), counts.tolist(), token_counts.tolist(), strict=True):
            segment = RunSegment(
                path=path, first_document=document, num_documents=count, first_token=token, num_tokens=num_tokens
            )
            self.segments.append((name, segment))
            document, token = document + count, token + num_tokens
        self.num_runs += 1


def with_eos(ids: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], eos_id: int) -> npt.NDArray[np.int32]:
    """Each of the texts followed by EOS."""
    result = np.full(len(ids) + len(offsets) - 1, eos_id, dtype=np.int32)
    is_text = np.ones(len(result), dtype=bool)
    is_text[offsets[1:] + np.arange(len(offsets) - 1)] = False
    result[is_text] = ids
    return result


def _meta(segment: RunSegment) -> Meta:
    return np.memmap(
        segment.path.with_suffix(".meta"),
        dtype=META,
        mode="r",
        offset=segment.first_document * META.itemsize,
        shape=(segment.num_documents,),
    )


def _key_ranges(
    segments: list[RunSegment], dtype: Literal["uint16", "int32"]
) -> Iterator[tuple[Meta, npt.NDArray[np.int64], Tokens]]:
    """(records in key order, where each begins in the tokens, tokens) of one range of keys after the other."""
    token_dtype = np.dtype(TOKEN_DTYPES[dtype])
    num_ranges = max(1, -(-sum(segment.num_tokens for segment in segments) // MERGE_TOKENS))
    documents, token_places = [0] * len(segments), [segment.first_token for segment in segments]
    for number in range(1, num_ranges + 1):
        limit = (1 << 64) * number // num_ranges  # keys below it; the last range takes all that is left
        metas, tokens = [], []
        for index, segment in enumerate(segments):
            meta = _meta(segment)
            stop = len(meta) if number == num_ranges else int(np.searchsorted(meta["key"], np.uint64(limit)))
            part = np.array(meta[documents[index] : stop])
            count = int(part["length"].sum(dtype=np.int64))
            metas.append(part)
            offset = token_places[index] * token_dtype.itemsize
            tokens.append(np.fromfile(segment.path, dtype=token_dtype, count=count, offset=offset))
            documents[index], token_places[index] = stop, token_places[index] + count
        merged = np.concatenate(metas)
        starts = np.cumsum(merged["length"], dtype=np.int64) - merged["length"]
        order = np.lexsort((merged["low"], merged["high"], merged["key"]))
        yield merged[order], starts[order], np.concatenate(tokens)
