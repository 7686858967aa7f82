"""Token files written anew in another order, in bounded memory: one pass to ranges on disk, one pass over the ranges.

token files ─ blocks ─> a spool per range of the new order ─ each range put in order ─> one token file per bucket
Both passes read and write long runs, so a disk works at its full speed. Sidecars (a row per document) go the same way.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_mixers.atomic import publish, temporary_path
from data_mixers.errors import DataError
from megatron_synE.data.indexed import IndexedFile, IndexedWriter, WrittenPair
from tools.data.scores_file import ScoresOrigin, metadata_of
from tools.data.sidecar import open_rows
from tools.data.sort_order import Ints, Order, Shards
from tools.data.stage import Report

BLOCK_TOKENS = 4 << 20
"""Read at a time, at least: 16 MB of int32."""
BLOCK_DOCUMENTS = 1 << 20  # at most, where a block is larger: their rows are in memory
RANGE_TOKENS = 8 << 20
"""Put in order at a time: 32 MB, twice with the copy."""
Tokens = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    suffix: str
    """After the prefix: ".documents.parquet"."""
    origin: ScoresOrigin | None
    """Of scores: what their metadata says, but for the token file they belong to."""

    def path(self, prefix: Path) -> Path:
        return Path(f"{prefix}{self.suffix}")


Written = tuple[WrittenPair, int | None]
"""A bucket's token file, and the sum of its documents' text_bytes where the sidecar states them."""


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    lengths: Ints
    sidecars: Sequence[Sidecar]
    spool: Path
    """An empty folder on a disk with room for the topic once more."""
    dtype: Literal["uint16", "int32"]
    on_tokens: Report
    """Hears every token twice."""


def redistribute(given: Rewriting, shards: Shards, order: Order, targets: Sequence[Path]) -> list[Written]:
    """Write bucket b of `order` to targets[b]; documents that are not in `order` are left out.

    Memory: one block and one range, 44 bytes per document.
    Errors: DataError for a sidecar that is cut off or of other documents, or a spool that somebody else has changed.
    """
    ranges, first_of_range = _ranges(order, given.lengths)
    range_of = np.full(len(given.lengths), -1, dtype=np.int32)
    range_of[order.documents] = ranges
    _distribute(given, shards, range_of)
    del range_of
    written = []
    for bucket, target in enumerate(targets):
        begin, end = np.searchsorted(order.buckets, [bucket, bucket + 1])
        numbers = range(int(ranges[begin]), int(ranges[end - 1]) + 1)
        written.append(_write_bucket(target, numbers, first_of_range, order, given))
    return written


def _ranges(order: Order, lengths: Ints) -> tuple[npt.NDArray[np.int32], Ints]:
    """(range of each document of the order, ascending; place in the order at which each range begins, closed)."""
    ends = np.cumsum(lengths[order.documents])
    cut = np.zeros(len(order.documents), dtype=bool)
    for bucket in np.unique(order.buckets):
        begin, end = np.searchsorted(order.buckets, [bucket, bucket + 1])
        before = int(ends[begin - 1]) if begin else 0
        pieces = (ends[begin:end] - before - 1) // RANGE_TOKENS
        cut[begin] = True
        cut[begin + 1 : end] |= np.diff(pieces) > 0
    ranges = (np.cumsum(cut) - 1).astype(np.int32)
    return ranges, np.append(np.flatnonzero(cut), len(cut))


def _distribute(given: Rewriting, shards: Shards, range_of: npt.NDArray[np.int32]) -> None:
    # A piece for each block and range costs 0.1 ms and 1 kB: with blocks of one size their number grows as the square.
    most = BLOCK_DOCUMENTS * int(given.lengths.sum()) // max(1, len(given.lengths))
    block_tokens = max(BLOCK_TOKENS, min(4 * len(given.lengths), most))
    document = 0
    for prefix, shard in shards:
        file = IndexedFile(prefix)
        own = given.lengths[document : document + shard.num_documents]
        starts = np.cumsum(own) - own
        rows = [_Rows(sidecar.path(prefix), len(own)) for sidecar in given.sidecars]
        first = 0
        while first < len(own):
            stop = max(first + 1, int(np.searchsorted(starts, starts[first] + block_tokens)))
            # Read, not mapped: pages of a map count as this process's memory for as long as it is open.
            count = int(starts[stop - 1] + own[stop - 1] - starts[first])
            offset = int(starts[first]) * file.dtype.itemsize
            tokens = np.fromfile(file.bin_path, dtype=file.dtype, count=count, offset=offset)
            kinds = range_of[document + first : document + stop]
            by_range = np.argsort(kinds, kind="stable")
            tables = [reader.take(stop - first) for reader in rows]
            borders = np.append(np.flatnonzero(np.diff(kinds[by_range], prepend=-2)), len(by_range))
            for begin, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
                chosen = by_range[begin:end]
                number = int(kinds[chosen[0]])
                if number < 0:
                    continue
                piece = _gather(tokens, starts[first + chosen] - starts[first], own[first + chosen].astype(np.int32))
                with (given.spool / f"{number}.tokens").open("ab") as stream:
                    stream.write(np.ascontiguousarray(piece).data.cast("B") if len(piece) else b"")
                for index, table in enumerate(tables):
                    _append(given.spool / f"{number}.{index}.rows", table.take(pa.array(chosen)))
            given.on_tokens(len(tokens))
            first = stop
        document += shard.num_documents


class _Rows:
    """Rows of a Parquet file from the first on, as many at a time as asked for."""

    def __init__(self, path: Path, num_rows: int) -> None:
        file = open_rows(path, num_rows)
        self._path = path
        self._batches = file.iter_batches()
        self._held = file.schema_arrow.empty_table().replace_schema_metadata(None)

    def take(self, count: int) -> pa.Table:
        try:
            while len(self._held) < count:
                batch = pa.Table.from_batches([next(self._batches)]).replace_schema_metadata(None)
                self._held = pa.concat_tables([self._held, batch])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self._path} is damaged: {error}; make it again") from error
        taken = self._held.slice(0, count)
        self._held = self._held.slice(count).combine_chunks()
        return taken


def _append(path: Path, table: pa.Table) -> None:
    with path.open("ab") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def _read_rows(path: Path) -> pa.Table:
    """Streams one after the other, as `_append` left them."""
    tables = []
    with path.open("rb") as file:
        while file.peek(1):
            tables.append(pa.ipc.open_stream(file).read_all())
    return pa.concat_tables(tables, promote_options="default")


def _write_bucket(target: Path, numbers: range, first_of_range: Ints, order: Order, given: Rewriting) -> Written:
    text_bytes: int | None = None
    lengths, sidecars = given.lengths, given.sidecars
    temporaries = [temporary_path(sidecar.path(target)) for sidecar in sidecars]
    token_writer = IndexedWriter(target, dtype=given.dtype)
    with ExitStack() as stack:
        writers: list[Any] = [None] * len(sidecars)
        with token_writer:
            for number in numbers:
                documents = order.documents[first_of_range[number] : first_of_range[number + 1]]
                arrived = np.argsort(np.argsort(documents))  # they came in the order of their numbers
                in_spool = np.sort(documents)
                path = given.spool / f"{number}.tokens"
                tokens = np.fromfile(path, dtype=np.dtype(given.dtype))
                _check_spool(path, len(tokens), int(lengths[in_spool].sum()))
                starts = np.cumsum(lengths[in_spool]) - lengths[in_spool]
                sizes = lengths[documents].astype(np.int32)
                token_writer.add_documents(_gather(tokens, starts[arrived], sizes), sizes)
                path.unlink()
                for index, sidecar in enumerate(sidecars):
                    rows_path = given.spool / f"{number}.{index}.rows"
                    table = _read_rows(rows_path)
                    _check_spool(rows_path, len(table), len(documents))
                    table = table.take(pa.array(arrived))
                    if writers[index] is None:
                        writers[index] = stack.enter_context(
                            pq.ParquetWriter(temporaries[index], table.schema, compression="zstd")
                        )
                    writers[index].write_table(table)
                    if sidecar.origin is None and "text_bytes" in table.schema.names:
                        text_bytes = (text_bytes or 0) + int(table.column("text_bytes").to_numpy().sum())
                    rows_path.unlink()
                given.on_tokens(len(tokens))
        assert token_writer.written is not None
        for writer, sidecar in zip(writers, sidecars, strict=True):
            if sidecar.origin is not None:
                own = replace(sidecar.origin, bin_sha256=token_writer.written.bin_sha256)
                writer.add_key_value_metadata(metadata_of(own))
    for temporary, sidecar in zip(temporaries, sidecars, strict=True):
        publish(temporary, sidecar.path(target))
    return token_writer.written, text_bytes


def _check_spool(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise DataError(
            f"{path} holds {found} tokens or rows in place of {expected}: another process has changed it; "
            "run the same command again"
        )


def _gather(tokens: Tokens, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32]) -> Tokens:
    """The pieces [start, start + length) of a flat array, one after the other."""
    if not len(starts):
        return tokens[:0]
    # one slice a document: an array of places would cost eight bytes a token, twice
    stops = starts + lengths
    return np.concatenate([tokens[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)])
