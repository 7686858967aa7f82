"""Token files and their scores, as tests look at them and write them."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_mixers.manifest import ShardEntry, read_manifest, write_manifest
from megatron_synE.data.indexed import IndexedFile
from tests import tiny
from tools.data.scores_file import SCHEMA, ScoresOrigin, metadata_of, scores_path

LAW, NOVEL = ("zh", "web", "law"), ("zh", "book", "novel")
ORIGIN = ScoresOrigin(
    bin_sha256="", weights_sha256="f" * 64, seq_length=128, overlap=8, precision="fp32", tokenizer_digest="0" * 64
)


def documents_of(prefix: Path) -> list[np.ndarray]:
    """The ids of each document of a pair, EOS included."""
    file = IndexedFile(prefix)
    return [file.tokens(start, stop) for start, stop in pairwise(file.document_ranges().tolist())]


def write_scores(path: Path, *, of: str, seq_length: int = 128, **columns: Any) -> Path:
    """of: hash of the token file. Columns that are not given are null."""
    count = len(columns["nll_sum"])
    arrays = [pa.array(columns.get(each.name, [None] * count), each.type) for each in SCHEMA]
    metadata = metadata_of(replace(ORIGIN, bin_sha256=of, seq_length=seq_length))
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(metadata)), path)
    return path


def score(prefix: Path, shard: ShardEntry, name: str = "default", *, seed: int = 0, **columns: Any) -> None:
    """Few different values, so that there are ties."""
    random = np.random.default_rng(seed)
    count = shard.num_documents
    lengths = np.diff(IndexedFile(prefix).document_ranges())
    means = random.integers(1, 9, size=count) / 4
    table: dict[str, Any] = {
        "nll_sum": means * (lengths - 1), "nll_tokens": lengths - 1, "compression_ratio": random.random(count) * 3,
        "lexical_diversity": random.random(count), "characters_per_token": random.random(count) * 4,
    } | columns  # fmt: skip
    write_scores(scores_path(prefix, name), of=shard.bin_sha256, **table)


def write_documents(prefix: Path, shard: ShardEntry, *, seed: int = 0) -> None:
    """Ids in no order, and text_bytes that say which document they belong to."""
    random = np.random.default_rng(seed)
    ids = [f"{number:05d}-{prefix.name}" for number in random.permutation(shard.num_documents)]
    lengths = np.diff(IndexedFile(prefix).document_ranges())
    pq.write_table(
        pa.table({"id": ids, "num_tokens": lengths, "text_bytes": lengths * 3}), f"{prefix}.documents.parquet"
    )


def two_files_of_law(folder: Path) -> Path:
    """Law in two token files, a novel, and held-out law; scores and lists of documents beside each."""
    first = tiny.manifest(folder, {LAW: 4000, NOVEL: 2500})
    second = tiny.manifest(folder / "more", {LAW: 3000}, seed=3)
    held = tiny.manifest(folder, {LAW: 300}, role="validation", seed=9)
    (shard,) = second.sources[0].shards
    law = next(entry for entry in first.sources if entry.topic == "law")
    moved = replace(shard, prefix=f"more/{shard.prefix}")
    sources = (replace(law, shards=(*law.shards, moved)), *(e for e in first.sources if e != law), *held.sources)
    write_manifest(replace(first, sources=sources))
    manifest = read_manifest(folder)
    for number, each in enumerate(s for entry in manifest.sources for s in entry.shards):
        score(manifest.shard_prefix(each), each, seed=number)
        write_documents(manifest.shard_prefix(each), each, seed=number)
    return folder


class Counted(np.ndarray[Any, Any]):
    """An array that counts the items which numpy's operations with it read."""

    read = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **keywords: Any) -> Any:
        Counted.read += self.size
        plain = [np.asarray(each) if isinstance(each, Counted) else each for each in inputs]
        return getattr(ufunc, method)(*plain, **keywords)
