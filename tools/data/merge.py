"""The external shuffle, second half: one range of keys is read from all runs, sorted, and written as a token file.

A topic's keys are cut into as many ranges as it needs files; each is a task of its own. Documents that copy a held-out
one, word for word or nearly, are left out and counted.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_mixers.atomic import write_atomic
from data_mixers.errors import DataError
from megatron_synE.data.indexed import TOKEN_DTYPES, IndexedWriter, WrittenPair
from tools.data.near_copies import NearCopies
from tools.data.sidecar import SidecarWriter
from tools.data.spool import META, Meta, RunSegment, Tokens
from tools.data.stage import Report
from tools.data.whole_documents import fill_windows

MERGE_TOKENS = 4 << 20  # in memory at once while merging: about 50 MB with the copies
MERGE_DOCUMENTS = 1 << 18  # likewise: each is some 800 bytes of Python beside its tokens
SHARD_TOKENS = 1 << 27  # of one token file, about: half a GB of int32, so that writing spreads over workers
PACKED_SHARD_TOKENS = 1 << 24  # where documents are packed: a file's documents are read from all over its range
DIGEST_BYTES = 16
READ_BYTES = 64 << 10  # the most of one run's records that is read at once; of all runs together MOST_READ_BYTES
MOST_READ_BYTES = 64 << 20


class Digests:
    def __init__(self, digests: Iterable[int]) -> None:
        self._pairs = {divmod(digest, 1 << 64) for digest in digests}
        self._high = np.array(sorted({high for high, _ in self._pairs}), dtype=np.uint64)

    def contain(self, meta: Meta) -> npt.NDArray[np.bool_]:
        if not len(self._high):
            return np.zeros(len(meta), dtype=bool)
        at = np.searchsorted(self._high, meta["high"])  # np.isin would sort both, for every run
        found: npt.NDArray[np.bool_] = self._high[np.minimum(at, len(self._high) - 1)] == meta["high"]
        for row in np.flatnonzero(found).tolist():
            found[row] = (int(meta["high"][row]), int(meta["low"][row])) in self._pairs
        return found


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One token file to write: the documents of `topic` whose keys lie in one of `num_shards` equal ranges."""

    topic: str
    prefix: Path
    shard: int
    num_shards: int
    num_tokens: int
    """About, for the progress."""


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    runs: Path
    segments: tuple[RunSegment, ...]
    """Of all topics."""
    inputs: tuple[str, ...]
    """Names of the input files."""
    dtype: Literal["uint16", "int32"]
    eos_id: int
    held_out: Path | None
    """File with the content hashes of held-out documents, and near_copies' table beside it; None: none are held out."""
    keep_digests: bool
    """The documents are held out themselves: their content hashes are kept beside them."""
    window: int | None
    """Documents are packed whole into windows of so many tokens; None: they lie end to end."""


@dataclass(frozen=True, kw_only=True)
class MergedShard:
    pair: WrittenPair
    num_documents: int
    """Without fillers."""
    text_bytes: int
    num_filler_tokens: int
    """EOS that fill up windows."""
    num_copies: int = 0
    """Documents left out because a held-out document has the same text (it itself included)."""
    num_near_copies: int = 0

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "MergedShard":
        return cls(**{**content, "pair": WrittenPair(**content["pair"])})


def write_shard(tasks: Sequence[ShardTask], settings: MergeSettings, index: int, on_tokens: Report) -> dict[str, Any]:
    """Write one token file with its sidecar; a MergedShard as JSON."""
    task = tasks[index]
    reader = RunReader(settings.runs, settings.segments, settings.dtype, topic=task.topic)
    sieve = _Sieve(settings.held_out)
    with IndexedWriter(task.prefix, dtype=settings.dtype) as pair, SidecarWriter(task.prefix) as sidecar:
        output = _Output(task.topic, settings, pair, sidecar)
        if settings.window is None:
            for segment_of, meta in reader.ranges(task.shard, task.num_shards):
                tokens = reader.tokens(segment_of, meta)
                kept = sieve.kept(meta, tokens)
                if not kept.all():
                    tokens = tokens[np.repeat(kept, meta["length"])]
                    segment_of, meta = segment_of[kept], meta[kept]
                output.write(meta, tokens, reader.ids(segment_of, meta))
                on_tokens(int(meta["length"].sum(dtype=np.int64)))
        else:
            _write_windows(reader, task, sieve, output, settings.window, on_tokens)
    if settings.keep_digests:
        write_atomic(digests_path(task.prefix), b"".join(output.digests))
    return asdict(replace(output.result(), num_copies=sieve.num_copies, num_near_copies=sieve.num_near_copies))


def write_held_out(
    tasks: Sequence[ShardTask], settings: MergeSettings, digests: Sequence[Sequence[int]], index: int, on_tokens: Report
) -> dict[str, Any]:
    """Write the documents of a topic that have one of digests[index], each text once; a MergedShard as JSON."""
    task = tasks[index]
    reader = RunReader(settings.runs, settings.segments, settings.dtype, topic=task.topic)
    chosen = Digests(digests[index])
    owners, found = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=META)]
    for segment, records in enumerate(reader.metas()):  # not by ranges of keys: each would go through all runs
        rows = np.flatnonzero(chosen.contain(records))
        owners.append(np.full(len(rows), segment))
        found.append(records[rows])
        on_tokens(int(records["length"].sum(dtype=np.int64)))
    segment_of, meta = np.concatenate(owners), np.concatenate(found)
    order = np.lexsort((meta["place"], meta["file"], meta["key"]))
    _, firsts = np.unique(meta[["high", "low"]][order], return_index=True)
    order = order[np.sort(firsts)]
    segment_of, meta = segment_of[order], meta[order]
    pieces = np.cumsum(meta["length"], dtype=np.int64) // reader.tokens_at_once
    with IndexedWriter(task.prefix, dtype=settings.dtype) as pair, SidecarWriter(task.prefix) as sidecar:
        output = _Output(task.topic, settings, pair, sidecar)
        for rows in np.split(np.arange(len(meta)), np.flatnonzero(np.diff(pieces)) + 1):
            of_rows, some = segment_of[rows], meta[rows]
            output.write(some, reader.tokens(of_rows, some), reader.ids(of_rows, some))
    write_atomic(digests_path(task.prefix), b"".join(output.digests))
    return asdict(output.result())


def _write_windows(
    reader: "RunReader", task: ShardTask, sieve: "_Sieve", output: "_Output", window: int, on_tokens: Report
) -> None:
    segments, metas = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=META)]
    for segment_of, meta in reader.ranges(task.shard, task.num_shards):
        kept = sieve.kept(meta, reader.tokens(segment_of, meta))
        segments.append(segment_of[kept])
        metas.append(meta[kept])
    segment_of, meta = np.concatenate(segments), np.concatenate(metas)
    at_once = max(1, reader.tokens_at_once // window)
    for documents, last in fill_windows(meta["length"], window=window, windows_at_once=at_once):
        owners, chosen = segment_of[documents], meta[documents]
        output.write_windows(chosen, reader.tokens(owners, chosen), reader.ids(owners, chosen), last, window)
        on_tokens(len(last) * window)
    if len(meta):
        output.close_windows()


def digests_path(prefix: Path) -> Path:
    """Content hashes of the documents of a held-out token file, 16 bytes each."""
    return Path(f"{prefix}.digests")


def read_digests(path: Path) -> set[int]:
    """The content hashes in a file. Errors: DataError if it is cut off."""
    raw = path.read_bytes()
    if len(raw) % DIGEST_BYTES:
        raise DataError(f"{path} has {len(raw)} bytes, no multiple of {DIGEST_BYTES}: it was cut off; preprocess again")
    return {int.from_bytes(raw[start : start + DIGEST_BYTES], "big") for start in range(0, len(raw), DIGEST_BYTES)}


def _cut_off(path: Path) -> DataError:
    return DataError(f"{path} was cut off; remove it and run the same command again")


class RunReader:
    """The documents of one topic in the runs of a call, by ranges of keys."""

    def __init__(
        self, runs: Path, segments: Sequence[RunSegment], dtype: Literal["uint16", "int32"], *, topic: str
    ) -> None:
        self._segments = [segment for segment in segments if segment.topic == topic]
        self._paths = [runs / segment.file for segment in self._segments]
        self._dtype = np.dtype(TOKEN_DTYPES[dtype])
        self._num_tokens = sum(segment.num_tokens for segment in self._segments)
        self.num_documents = sum(segment.num_documents for segment in self._segments)
        of_documents = MERGE_DOCUMENTS * self._num_tokens // max(1, self.num_documents)  # at their mean length
        self.tokens_at_once = max(1, min(MERGE_TOKENS, of_documents))

    def metas(self) -> Iterator[Meta]:
        """The records of each segment: mapped, or read where they are few, as a mapping keeps its file open."""
        left = MOST_READ_BYTES
        for path, segment in zip(self._paths, self._segments, strict=True):
            size = segment.num_documents * META.itemsize
            if size > min(left, READ_BYTES):
                yield np.memmap(path, dtype=META, mode="r", offset=segment.meta_offset, shape=(segment.num_documents,))
                continue
            left -= size
            found = np.fromfile(path, dtype=META, count=segment.num_documents, offset=segment.meta_offset)
            if len(found) < segment.num_documents:
                raise _cut_off(path)
            yield found

    def ranges(self, shard: int, num_shards: int) -> Iterator[tuple[npt.NDArray[np.int64], Meta]]:
        """(segment of each document, records), both in key order, of consecutive ranges of keys of one shard."""
        num_ranges = max(1, -(-self._num_tokens // num_shards // self.tokens_at_once))
        metas = list(self.metas())
        keys = [np.asarray(meta["key"]) for meta in metas]  # views: a search touches a few pages
        limits = [(1 << 64) * (shard * num_ranges + n) // (num_shards * num_ranges) for n in range(num_ranges + 1)]
        starts = [bisect_left(key, limits[0]) for key in keys]  # the first document whose key is at least the limit
        for limit in limits[1:]:
            stops = [bisect_left(key, limit) for key in keys]
            merged = np.concatenate([meta[a:b] for meta, a, b in zip(metas, starts, stops, strict=True)])
            counts = np.array(stops) - np.array(starts)
            order = np.lexsort((merged["place"], merged["file"], merged["key"]))
            yield np.repeat(np.arange(len(metas)), counts)[order], merged[order]
            starts = stops

    def tokens(self, segment_of: npt.NDArray[np.int64], meta: Meta) -> Tokens:
        """The documents' tokens one after the other.

        Cost: one read per segment, from the first of its documents to the last; in key order they lie side by side.
        """
        if not len(meta):
            return np.zeros(0, dtype=self._dtype)
        starts, lengths = meta["token_start"], meta["length"]
        order = np.argsort(segment_of, kind="stable")
        used, firsts = np.unique(segment_of[order], return_index=True)
        lows = np.minimum.reduceat(starts[order], firsts)
        sizes = np.maximum.reduceat((starts + lengths)[order], firsts) - lows
        loaded = np.empty(int(sizes.sum()), dtype=self._dtype)
        bases = np.cumsum(sizes) - sizes
        for segment, low, base, size in zip(*(c.tolist() for c in (used, lows, bases, sizes)), strict=True):
            with self._paths[segment].open("rb") as stream:
                stream.seek(low * self._dtype.itemsize)
                read = stream.readinto(loaded[base : base + size].data.cast("B"))
            if read != size * self._dtype.itemsize:
                raise _cut_off(self._paths[segment])
        shift = np.zeros(len(self._paths), dtype=np.int64)
        shift[used] = bases - lows
        begins = starts + shift[segment_of]
        # one slice a document: an array of places would cost eight bytes a token, twice
        pieces = [loaded[a:b] for a, b in zip(begins.tolist(), (begins + lengths).tolist(), strict=True)]
        return np.concatenate(pieces)

    def ids(self, segment_of: npt.NDArray[np.int64], meta: Meta) -> list[str]:
        """The documents' own ids; empty for one that has none."""
        names = [""] * len(meta)
        rows = np.flatnonzero(meta["id_bytes"] > 0)
        rows = rows[np.argsort(segment_of[rows], kind="stable")]
        borders = np.flatnonzero(np.diff(segment_of[rows], prepend=-1, append=-1))  # none for no rows at all
        for first, last in pairwise(borders.tolist()):
            of_one = rows[first:last]
            segment = int(segment_of[of_one[0]])
            starts, sizes = meta["id_start"][of_one], meta["id_bytes"][of_one]
            low, high = int(starts.min()), int((starts + sizes).max())
            with self._paths[segment].open("rb") as stream:
                stream.seek(self._segments[segment].id_offset + low)
                raw = stream.read(high - low)
            for row, start, size in zip(of_one.tolist(), (starts - low).tolist(), sizes.tolist(), strict=True):
                names[row] = raw[start : start + size].decode()
        return names


class _Sieve:
    def __init__(self, held_out: Path | None) -> None:
        self.num_copies = self.num_near_copies = 0
        self._digests = Digests(read_digests(held_out)) if held_out is not None else None
        self._near = NearCopies.open(held_out.parent) if held_out is not None else None

    def kept(self, meta: Meta, tokens: Tokens) -> npt.NDArray[np.bool_]:
        if self._digests is None or self._near is None:
            return np.ones(len(meta), dtype=bool)
        copies = self._digests.contain(meta)
        near = self._near.are_near(tokens, meta["length"]) & ~copies
        self.num_copies += int(copies.sum())
        self.num_near_copies += int(near.sum())
        return ~copies & ~near


class _Output:
    """A token file and its sidecar, written alongside."""

    def __init__(self, topic: str, settings: MergeSettings, pair: IndexedWriter, sidecar: SidecarWriter) -> None:
        self._topic, self._inputs, self._pair, self._sidecar = topic, settings.inputs, pair, sidecar
        self._names = [Path(name).name for name in settings.inputs]
        self._eos_id = settings.eos_id
        self._keep_digests = settings.keep_digests
        self.num_documents = self.text_bytes = self.num_filler_tokens = 0
        self.digests: list[bytes] = []

    def result(self) -> MergedShard:
        """What was written, once the files are finished."""
        assert self._pair.written is not None
        return MergedShard(
            pair=self._pair.written,
            num_documents=self.num_documents,
            text_bytes=self.text_bytes,
            num_filler_tokens=self.num_filler_tokens,
        )

    def write(self, meta: Meta, tokens: Tokens, ids: Sequence[str]) -> None:
        self._pair.add_documents(tokens, meta["length"])
        self._describe(meta, ids, meta["length"], None)

    def write_windows(
        self, meta: Meta, tokens: Tokens, ids: Sequence[str], last: npt.NDArray[np.int64], window: int
    ) -> None:
        """Documents window by window; a window that is not full ends in one more document of EOS. last: of each."""
        ends = np.cumsum(meta["length"], dtype=np.int64)
        fillers = window - np.diff(ends[last], prepend=0)
        filled = np.flatnonzero(fillers)
        after = last[filled] + 1
        tokens = np.insert(tokens, np.repeat(ends[last[filled]], fillers[filled]), self._eos_id)
        lengths = np.insert(meta["length"], after, fillers[filled])
        self._pair.add_documents(tokens, lengths)
        self._describe(meta, ids, lengths, set((after + np.arange(len(after))).tolist()))
        self.num_filler_tokens += int(fillers.sum())

    def close_windows(self) -> None:
        """One EOS more: the label of the last token of the last window."""
        self._pair.add_document(np.array([self._eos_id]))
        self._describe(np.zeros(0, dtype=META), [], np.ones(1, dtype=np.int32), {0})
        self.num_filler_tokens += 1

    def _describe(
        self, meta: Meta, ids: Sequence[str], lengths: npt.NDArray[np.int32], fillers: set[int] | None
    ) -> None:
        """Sidecar rows; those of fillers have neither id nor text."""
        files, places = meta["file"].tolist(), meta["place"].tolist()
        rows: dict[str, Any] = {
            "id": [own or f"{self._names[f]}:{place}" for own, f, place in zip(ids, files, places, strict=True)],
            "file": [self._inputs[file] for file in files],
            "place": meta["place"],
            "topic_confidence": meta["confidence"],
            "text_bytes": meta["text_bytes"],
        }
        if fillers:
            for column, values in rows.items():
                real = iter(values if isinstance(values, list) else values.tolist())
                empty = 0 if column == "text_bytes" else None
                rows[column] = [empty if row in fillers else next(real) for row in range(len(lengths))]
        self._sidecar.write(**rows, topic=[self._topic] * len(lengths), num_tokens=lengths)
        self.num_documents += len(meta)
        self.text_bytes += int(meta["text_bytes"].sum(dtype=np.int64))
        if self._keep_digests:
            self.digests.append(np.stack((meta["high"], meta["low"]), axis=1).astype(">u8").tobytes())
