"""The difficulty order of one topic: a key per document, ties by id, tails, buckets of equally many tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import ShardEntry
from megatron_synE.data.indexed import IndexedFile
from tools.data.scores_file import DEFAULT_NAME, check_name, open_scores, read_origin, scores_path
from tools.data.sidecar import open_rows, sidecar_path
from tools.data.signals import SIGNALS

DIFFERENCE = "difference:"
QUANTILES = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
NUM_EXAMPLES = 5

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Shards = Sequence[tuple[Path, ShardEntry]]
"""(prefix, entry) of a topic's token files, in order."""


@dataclass(frozen=True, kw_only=True)
class SortKey:
    by: str
    """nll, one of SIGNALS, or difference:A-B: mean NLL of scores A minus that of scores B."""
    names: tuple[str, ...]
    """The sets of scores that are read."""
    descending: bool

    @property
    def label(self) -> str:
        """For the manifest's sorted_by."""
        return f"{self.by} descending" if self.descending else self.by


@dataclass(frozen=True)
class Order:
    """A topic's documents from bucket 0 on. Documents are numbered through all its token files."""

    documents: Ints
    """Those that are kept, in order."""
    buckets: npt.NDArray[np.int32]
    """Of each of them, ascending."""


@dataclass(frozen=True, kw_only=True)
class Tails:
    """What lies at both ends, whether or not it was cut."""

    quantiles: dict[str, float | None]
    """Share of the topic's tokens -> key; None where a document has none."""
    lowest: list[tuple[str, float | None]]
    """(document id, key) of the first documents."""
    highest: list[tuple[str, float | None]]
    num_dropped_documents: int
    num_dropped_tokens: int
    num_thinned_documents: int
    """Left out evenly over the order."""
    num_without_key: int
    """Documents with nothing to measure; they go last."""


def sort_key(by: str, name: str, *, descending: bool) -> SortKey:
    """Errors: ConfigError for a key that is not known."""
    if by.startswith(DIFFERENCE):
        names = by.removeprefix(DIFFERENCE).split("-")
        if len(names) != 2:
            raise ConfigError(f"--by {by}: write difference:A-B with the --name of two sets of scores")
        for each in names:
            check_name(each)
        return SortKey(by=by, names=tuple(names), descending=descending)
    if by != "nll" and by not in SIGNALS:
        raise ConfigError(f"--by {by} is not known; use nll, {', '.join(SIGNALS)} or difference:A-B")
    check_name(name)
    return SortKey(by=by, names=(name,), descending=descending)


def keys_of(shards: Shards, key: SortKey) -> Floats:
    """The key of each document, as in the scores; NaN where it has nothing to measure.

    Errors: DataError if scores are missing, stale, or without the column that is asked for.
    Memory: 8 bytes per document, and a row group.
    """
    return np.concatenate([_keys_of_file(prefix, shard, key) for prefix, shard in shards])


def lengths_of(shards: Shards) -> Ints:
    return np.concatenate([np.diff(IndexedFile(prefix).document_ranges()) for prefix, _ in shards])


def order_of(
    keys: Floats,
    lengths: Ints,
    shards: Shards,
    *,
    descending: bool,
    num_buckets: int,
    drop: tuple[float, float],
    keep_share: float,
    where: str,
) -> tuple[Order, Tails]:
    """Ascending keys (or descending), ties by document id, then by place; documents without a key last.

    drop: shares of the tokens left out at the beginning and at the end.
    keep_share: of the documents that remain, spread evenly over the order, so over all quantiles.
    Errors: DataError if a bucket would be empty.
    """
    has_none = np.isnan(keys)
    sortable = np.where(has_none, np.inf, -keys if descending else keys)
    order = np.argsort(sortable, kind="stable")
    _break_ties(order, sortable, shards)
    ends = np.cumsum(lengths[order])
    total = int(ends[-1]) if len(ends) else 0
    starts = ends - lengths[order]
    is_kept = (ends > drop[0] * total) & (starts < (1 - drop[1]) * total)
    dropped = order[~is_kept]
    remaining = order[is_kept]
    counts = np.floor(np.arange(len(remaining) + 1) * keep_share)
    kept = remaining[np.diff(counts) > 0]
    kept_ends = np.cumsum(lengths[kept])
    kept_total = int(kept_ends[-1]) if len(kept) else 0
    # By the place of its first token, so a bucket is wrong by less than one document.
    buckets = ((kept_ends - lengths[kept]) * num_buckets // max(1, kept_total)).astype(np.int32)
    if len(np.unique(buckets)) < num_buckets:
        raise DataError(
            f"{where}: {len(kept)} documents of {kept_total} tokens do not fill {num_buckets} buckets; use fewer "
            "--buckets, or leave this topic out with --sources"
        )
    places = np.minimum(np.searchsorted(ends, total * np.array(QUANTILES)), len(order) - 1)
    tails = Tails(
        quantiles={f"{q:g}": _number(key) for q, key in zip(QUANTILES, keys[order[places]], strict=True)},
        lowest=_examples(order[:NUM_EXAMPLES], keys, shards),
        highest=_examples(order[-NUM_EXAMPLES:], keys, shards),
        num_dropped_documents=len(dropped),
        num_dropped_tokens=int(lengths[dropped].sum()),
        num_thinned_documents=len(remaining) - len(kept),
        num_without_key=int(has_none.sum()),
    )
    return Order(kept, buckets), tails


def document_ids(shards: Shards, documents: Ints) -> list[str]:
    """The ids of these documents (numbers ascending), "<file>:<place>" where a token file has no list of documents."""
    ids: list[str] = []
    first = 0
    for prefix, shard in shards:
        begin, end = np.searchsorted(documents, (first, first + shard.num_documents))  # a mask would read all for each
        wanted = documents[begin:end] - first
        if not sidecar_path(prefix).is_file():
            ids += [f"{prefix.name}:{number}" for number in wanted.tolist()]
        elif len(wanted):
            for place, column in _batches(open_rows(sidecar_path(prefix), shard.num_documents), ["id"]):
                begin, end = np.searchsorted(wanted, (place, place + len(column)))
                inside = wanted[begin:end] - place
                ids += map(str, column.column("id").take(pa.array(inside)).to_pylist())
        first += shard.num_documents
    return ids


def _batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(first row, rows), a few thousand rows at a time."""
    place = 0
    for batch in file.iter_batches(columns=columns):
        yield place, batch
        place += len(batch)


def _keys_of_file(prefix: Path, shard: ShardEntry, key: SortKey) -> Floats:
    if key.by in SIGNALS:
        file = open_scores(prefix, shard, key.names[0])
        values = np.concatenate([np.zeros(0), *(_floats(rows, key.by) for _, rows in _batches(file, [key.by]))])
        # Without a digest some documents may have signals: sorting joins files with and without.
        has_signals = read_origin(scores_path(prefix, key.names[0])).tokenizer_digest is not None
        if len(values) and (not has_signals or np.isnan(values).all()):
            raise DataError(
                f"the scores of {prefix.name} have no {key.by}; run `syne data score-ppl --data {prefix.parent}` "
                "again with --tokenizer"
            )
        return values
    means = [_means(prefix, shard, name) for name in key.names]
    return means[0] if len(means) == 1 else means[0] - means[1]


def _means(prefix: Path, shard: ShardEntry, name: str) -> Floats:
    """Mean NLL per document; NaN for a document of one token, which foretells nothing."""
    parts = [np.zeros(0)]
    for _, rows in _batches(open_scores(prefix, shard, name), ["nll_sum", "nll_tokens"]):
        sums, counts = _floats(rows, "nll_sum"), _floats(rows, "nll_tokens")
        bad = np.flatnonzero(~np.isfinite(sums) | np.isnan(counts))
        if len(bad):
            asked = "" if name == DEFAULT_NAME else f" --name {name}"
            raise DataError(
                f"the scores of {prefix.name} have no NLL for {len(bad)} or more documents; delete them and run "
                f"`syne data score-ppl --data {prefix.parent}{asked}` with a model (--checkpoint or --hf)"
            )
        parts.append(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))
    return np.concatenate(parts)


def _floats(rows: pa.RecordBatch, column: str) -> Floats:
    return np.asarray(rows.column(column).cast(pa.float64()).to_numpy(zero_copy_only=False))


def _break_ties(order: Ints, sortable: Floats, shards: Shards) -> None:
    """Put documents of equal keys in the order of their ids, in place. Memory: the ids of tied documents."""
    values = sortable[order]
    is_equal = values[1:] == values[:-1]
    if not is_equal.any():
        return
    in_run = np.zeros(len(order), dtype=bool)
    in_run[1:] |= is_equal
    in_run[:-1] |= is_equal
    tied = np.sort(order[in_run])
    ids = np.array(document_ids(shards, tied), dtype=object)
    places = np.flatnonzero(in_run)
    id_of = ids[np.searchsorted(tied, order[places])]
    # Runs that follow one another stay apart, because the key comes first.
    ranked = sorted(range(len(places)), key=lambda i: (float(values[places[i]]), str(id_of[i]), int(order[places[i]])))
    order[places] = order[places][ranked]


def _examples(documents: Ints, keys: Floats, shards: Shards) -> list[tuple[str, float | None]]:
    ascending = np.sort(documents)
    id_of = dict(zip(ascending.tolist(), document_ids(shards, ascending), strict=True))
    return [(id_of[document], _number(keys[document])) for document in documents.tolist()]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
