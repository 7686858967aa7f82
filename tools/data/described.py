"""Token files with what lies beside them: lengths from the index, documents and scores from their parquet files.

Both may be missing: older folders have neither, and Megatron's own have no manifest either.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_mixers.errors import DataError
from data_mixers.manifest import MANIFEST_NAME, TokenizerIdentity, read_manifest
from megatron_synE.data.indexed import IndexedFile
from tools.data.scores_file import DEFAULT_NAME, cure_of, read_origin, scores_path
from tools.data.sidecar import open_rows, sidecar_path

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DescribedShard:
    prefix: Path
    scores_name: str
    bin_sha256: str | None = None
    """As the manifest says; None without one."""

    @property
    def documents_path(self) -> Path:
        return sidecar_path(self.prefix)

    @property
    def scores_path(self) -> Path:
        return scores_path(self.prefix, self.scores_name)

    @cached_property
    def tokens(self) -> IndexedFile:
        return IndexedFile(self.prefix)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Of each document, closed by the number of tokens."""
        return self.tokens.document_ranges()

    @property
    def num_documents(self) -> int:
        return int(self.tokens.num_documents)

    @cached_property
    def nll(self) -> tuple[Numbers, Numbers] | None:
        """(NLL sum in nats, tokens it is of) per document; None without scores, or where they are signals alone.

        Errors: DataError for scores of other tokens.
        """
        if not self.scores_path.is_file():
            return None
        found = self._columns(self.scores_path, ("nll_sum", "nll_tokens"))
        if self.bin_sha256 is not None and read_origin(self.scores_path).bin_sha256 != self.bin_sha256:
            cure = cure_of(self.prefix, self.scores_name)
            raise DataError(f"{self.scores_path} holds scores of other tokens than its .bin has now; {cure} again")
        sums, counts = (np.asarray(found[name], dtype=np.float64) for name in ("nll_sum", "nll_tokens"))
        return None if len(sums) and np.isnan(sums).all() else (sums, counts)

    @cached_property
    def ppl(self) -> Numbers | None:
        """PPL per document, NaN where no token was scored; None without scores."""
        if self.nll is None:
            return None
        nll_sum, nll_tokens = self.nll
        mean = np.divide(nll_sum, nll_tokens, out=np.full(len(nll_sum), math.nan), where=nll_tokens > 0)
        ppl: Numbers = np.exp(np.minimum(mean, 700.0))  # e**700 is still a number
        return ppl

    @cached_property
    def text_bytes(self) -> Numbers | None:
        """UTF-8 bytes per document; None without the documents' file."""
        if not self.documents_path.is_file():
            return None
        return np.asarray(self._columns(self.documents_path, ("text_bytes",))["text_bytes"], dtype=np.float64)

    @cached_property
    def is_text(self) -> npt.NDArray[np.bool_]:
        """Per document; no for EOS that fills up a window of whole documents, as far as the documents' file says so."""
        return np.ones(self.num_documents, dtype=bool) if self.text_bytes is None else self.text_bytes != 0

    def has_topic(self, topic: str) -> npt.NDArray[np.bool_]:
        """Per document, by the documents' file. Errors: DataError without it."""
        if not self._documents:
            raise DataError(
                f"{self.documents_path} is missing, so a document's topic cannot be told; leave --topic out"
            )
        return np.array([found == topic for found in self._documents["topic"]], dtype=bool)

    def document(self, number: int) -> dict[str, Any]:
        """What is known of a document: the columns of its row; empty without the documents' file."""
        return {name: values[number] for name, values in self._documents.items()}

    @cached_property
    def _documents(self) -> dict[str, Any]:
        names = ("id", "file", "place", "topic")
        return self._columns(self.documents_path, names) if self.documents_path.is_file() else {}

    def _columns(self, path: Path, names: Sequence[str]) -> dict[str, Any]:
        try:
            with open_rows(path, self.num_documents) as file:
                table = file.read(columns=list(names))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read as parquet: {error}") from error
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise DataError(f"{path} has no column {', '.join(missing)}; write it again with this version's command")
        return {name: table[name].to_pylist() for name in names}


@dataclass(frozen=True, kw_only=True)
class DescribedSource:
    name: str
    topic: str | None
    role: str
    """train, validation; "unknown" without a manifest."""
    shards: tuple[DescribedShard, ...]


def describe(
    folder: Path, *, scores_name: str = DEFAULT_NAME
) -> tuple[tuple[DescribedSource, ...], TokenizerIdentity | None]:
    """(What lies in the folder, its tokenizer; None without a manifest).

    Errors: DataError if it holds neither a manifest nor token files.
    """
    if (folder / MANIFEST_NAME).is_file():
        manifest = read_manifest(folder)
        found = []
        for entry in manifest.sources:
            shards = tuple(
                DescribedShard(manifest.shard_prefix(shard), scores_name, shard.bin_sha256) for shard in entry.shards
            )
            found.append(DescribedSource(name=entry.name, topic=entry.topic, role=entry.role, shards=shards))
        return tuple(found), manifest.tokenizer
    prefixes = sorted(path.with_suffix("") for path in folder.glob("*.bin") if path.with_suffix(".idx").is_file())
    if not prefixes:
        raise DataError(f"{folder} holds neither {MANIFEST_NAME} nor pairs of .bin and .idx files")
    sources = tuple(
        DescribedSource(name=prefix.name, topic=None, role="unknown", shards=(DescribedShard(prefix, scores_name),))
        for prefix in prefixes
    )
    return sources, None
