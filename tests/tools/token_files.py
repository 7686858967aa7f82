"""Token files and their scores, as tests look at them and write them."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_synE.data.indexed import IndexedFile
from tools.data.scores_file import SCHEMA, ScoresOrigin, metadata_of

ORIGIN = ScoresOrigin(
    bin_sha256="", weights_sha256="f" * 64, seq_length=128, overlap=8, precision="fp32", tokenizer_digest="0" * 64
)


def documents_of(prefix: Path) -> list[np.ndarray]:
    """The ids of each document of a pair, EOS included."""
    file = IndexedFile(prefix)
    return [file.tokens(start, stop) for start, stop in pairwise(file.document_ranges().tolist())]


def write_scores(path: Path, *, of: str, **columns: Any) -> Path:
    """of: hash of the token file. Columns that are not given are null."""
    count = len(columns["nll_sum"])
    arrays = [pa.array(columns.get(each.name, [None] * count), each.type) for each in SCHEMA]
    metadata = metadata_of(replace(ORIGIN, bin_sha256=of))
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(metadata)), path)
    return path
