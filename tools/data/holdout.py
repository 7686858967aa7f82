"""Which documents are kept from training: those with the smallest content hashes of each topic, as many as are needed.

Chosen before anything is written for training, by content alone: the order of the input and the number of workers do
not matter, and an exact copy in another topic is held out with it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_mixers.errors import DataError
from tools.data.merge import RunReader
from tools.data.scores_file import read_origin
from tools.data.spool import Meta

TARGET_ERROR = 0.002
"""Of a change of log PPL, in nats: the recipe's controller acts on relative changes of PPL of about a per cent."""
SD_OF_DOCUMENT = 0.05
"""Assumed, not measured (ours): standard deviation over a topic's documents of how much the mean NLL of one document
changes between two checkpoints, in nats per token. The common part of the change does not count: both checkpoints are
scored on the same documents. `measured_sd` gives it for one's own model and data."""
FEWEST_MEASURED = 30  # documents: the standard deviation of fewer is off by more than an eighth
MOST_SHARE = 0.1  # ours: of a topic's documents; more would cost more training data than the figure is worth
MOST_DOCUMENTS = 20_000  # at once in memory; with the assumption above some 600 of equal length are enough
COMPARED = 1 << 16  # documents at a time: a look at each run by itself costs as much as one at so many


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    digests: tuple[int, ...]
    num_tokens: int
    standard_error: float
    """Of a change of the topic's log PPL, in nats, as `standard_error` has it; infinite if nothing is held out."""


def choose(
    readers: Mapping[str, RunReader], wanted: int | str, *, sd: float, without: Iterable[int]
) -> dict[str, HeldOut]:
    """What each topic holds out: `wanted` documents, or with "auto" as few as give TARGET_ERROR, at most MOST_SHARE.

    sd: of one document's change, in nats per token: SD_OF_DOCUMENT, or what `measured_sd` gives.
    without: content hashes that are held out already; a topic does not take what an earlier one has taken either.
    Errors: DataError if a topic would have nothing left to train on.
    """
    taken = set(without)
    chosen = {}
    for topic in sorted(readers):
        total = readers[topic].num_documents
        most = min(max(1, int(MOST_SHARE * total)), MOST_DOCUMENTS) if wanted == "auto" else int(wanted)
        ranked = _smallest(readers[topic].metas(), most, without=taken)
        if total <= len(ranked):
            raise DataError(
                f"topic {topic} has {total} documents: --holdout {wanted} would leave none to train on; "
                "hold out fewer, or give this topic more text"
            )
        lengths = [length for _, length in ranked]
        count = enough(lengths, sd) if wanted == "auto" else len(ranked)
        digests = tuple(digest for digest, _ in ranked[:count])
        taken.update(digests)
        chosen[topic] = HeldOut(
            digests=digests, num_tokens=sum(lengths[:count]), standard_error=standard_error(lengths[:count], sd)
        )
    return chosen


def measured_sd(before: Path, after: Path) -> float:
    """How much the change of one document's mean NLL varies between two scores files of the same documents.

    In the weights that `standard_error` gives it: documents count by the square of their tokens.
    Errors: DataError if a file holds no NLL, the two are not of one token file, were scored in unlike ways, or have too
    few documents.
    """
    found, ways = [], []
    for path in (before, after):
        origin = read_origin(path)
        rows = pq.read_table(path, columns=["nll_sum", "nll_tokens"])
        if rows["nll_sum"].null_count:
            raise DataError(f"{path} holds documents without NLL; run `syne data score-ppl` with a model")
        ways.append((origin.seq_length, origin.overlap, origin.precision))
        found.append((origin.bin_sha256, rows["nll_sum"].to_numpy(), rows["nll_tokens"].to_numpy()))
    (first, nll_before, tokens), (second, nll_after, tokens_after) = found
    if first != second or not np.array_equal(tokens, tokens_after):
        raise DataError(
            f"{before} and {after} are not of the same documents; score one token file with two checkpoints"
        )
    if ways[0] != ways[1]:
        raise DataError(
            f"{before} was scored with seq_length, overlap, precision {ways[0]}, {after} with {ways[1]}, which would "
            "be taken for a change; score both alike"
        )
    is_scored = tokens > 0
    weights = tokens[is_scored].astype(np.float64)
    if len(weights) < FEWEST_MEASURED:
        raise DataError(
            f"{before} scores {len(weights)} documents; {FEWEST_MEASURED} are needed to measure a deviation"
        )
    change = (nll_after - nll_before)[is_scored] / weights
    mean = np.average(change, weights=weights)
    unbiased = len(weights) / (len(weights) - 1)
    return float(np.sqrt(unbiased * np.average((change - mean) ** 2, weights=weights**2)))


def standard_error(lengths: Sequence[int], sd: float) -> float:
    """Of a change of log PPL over documents of these lengths: the mean over tokens of what varies by document."""
    return sd * math.sqrt(sum(n * n for n in lengths)) / sum(lengths) if lengths else math.inf


def enough(lengths: Sequence[int], sd: float) -> int:
    """How many of the first documents give TARGET_ERROR; all if none do."""
    total = squares = 0
    for count, length in enumerate(lengths, start=1):
        total, squares = total + length, squares + length * length
        if sd * math.sqrt(squares) <= TARGET_ERROR * total:
            return count
    return len(lengths)


def _smallest(metas: Iterable[Meta], count: int, *, without: set[int]) -> list[tuple[int, int]]:
    """(content hash, tokens) of the `count` smallest different hashes that are not in `without`, ascending."""
    chosen: list[tuple[int, int]] = []
    waiting: list[Meta] = []
    num_waiting = 0
    for meta in metas:
        if len(chosen) == count:  # nearly all others are larger: a run gives a few, which wait until they are many
            meta = meta[meta["high"] <= chosen[-1][0] >> 64]
        waiting.append(np.array(meta))  # of a map, which keeps its file open
        num_waiting += len(meta)
        if num_waiting >= COMPARED:
            chosen, waiting, num_waiting = _merged(chosen, waiting, count, without), [], 0
    return _merged(chosen, waiting, count, without) if waiting else chosen


def _merged(
    chosen: Sequence[tuple[int, int]], waiting: Sequence[Meta], count: int, without: set[int]
) -> list[tuple[int, int]]:
    """As `_smallest`, of what was chosen before and more documents."""
    rows = np.concatenate(waiting)
    rows = rows[np.lexsort((rows["low"], rows["high"]))]
    is_other = np.ones(len(rows), dtype=bool)  # than the one before: copies of one text lie together
    is_other[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
    columns = (rows[name][is_other][: count + len(without)].tolist() for name in ("high", "low", "length"))
    found = ((high << 64 | low, length) for high, low, length in zip(*columns, strict=True))
    return sorted({*chosen, *(each for each in found if each[0] not in without)})[:count]
