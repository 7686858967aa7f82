"""The table of held-out 5-grams at the size of a real holdout: mapped by workers, behind a filter for strangers."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_synE.data.indexed import IndexedWriter
from tests.tools.token_files import documents_of
from tools.data import near_copies
from tools.data.near_copies import NearCopies


def test_workers_map_the_table_of_held_out_documents(tmp_path: Path) -> None:
    lengths = np.full(200, 1000, dtype=np.int32)
    with IndexedWriter(tmp_path / "held", dtype="int32") as writer:
        writer.add_documents(np.random.default_rng(0).integers(1, 100_000, lengths.sum()), lengths)
    NearCopies.build(tmp_path, [tmp_path / "held"])
    tracemalloc.start()
    table = NearCopies.open(tmp_path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.npy"))
    assert peak_bytes < (1 << near_copies.LEAST_FILTER_BITS) + on_disk
    assert table.are_near(tokens_of(tmp_path / "held"), lengths).all()


def tokens_of(prefix: Path) -> Any:
    return np.concatenate(documents_of(prefix))


@pytest.mark.parametrize("count", [0, 1, 1000, 1 << 23])
def test_few_strangers_pass_the_filter_however_much_is_held_out(count: int) -> None:
    hashes = np.unique(np.random.default_rng(0).integers(0, 1 << 64, count, dtype=np.uint64))
    table = NearCopies(hashes, np.arange(len(hashes) + 1), np.zeros(len(hashes), np.int64), np.ones(1, np.int64))
    assert table._table.filter.mean() <= 1 / 8
    assert len(table._table.find(hashes)[0]) == len(hashes)
