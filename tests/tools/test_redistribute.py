"""A topic written anew in another order: the pieces on disk grow with its ranges, and all documents arrive in order."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_mixers.manifest import ShardEntry
from megatron_synE.data.indexed import IndexedWriter
from tests.tools.token_files import documents_of
from tools.data import redistribute
from tools.data.redistribute import Rewriting, Sidecar
from tools.data.sidecar import SUFFIX, SidecarWriter, read_rows
from tools.data.sort_order import Order


def topic(folder: Path, count: int) -> tuple[Path, ShardEntry]:
    """Documents of 10 tokens, each its own number."""
    prefix = folder / "topic"
    lengths = np.full(count, 10, dtype=np.int32)
    with IndexedWriter(prefix, dtype="int32") as writer, SidecarWriter(prefix) as sidecar:
        writer.add_documents(np.repeat(np.arange(count), 10), lengths)
        sidecar.write(
            id=[str(number) for number in range(count)], file=["a"] * count, place=np.arange(count),
            topic=["law"] * count, topic_confidence=np.ones(count), num_tokens=lengths, text_bytes=lengths,
        )  # fmt: skip
    assert writer.written is not None
    return prefix, ShardEntry(prefix=prefix.name, text_bytes=0, **asdict(writer.written))


@pytest.mark.parametrize("most_documents", [1 << 20, 90])
def test_pieces_on_disk_grow_with_the_ranges_of_a_topic_not_with_their_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_documents: int
) -> None:
    monkeypatch.setattr(redistribute, "BLOCK_TOKENS", 1000)
    monkeypatch.setattr(redistribute, "RANGE_TOKENS", 1000)
    monkeypatch.setattr(redistribute, "BLOCK_DOCUMENTS", most_documents)
    pieces: list[Any] = []
    own = redistribute._append

    def counted(path: Path, table: Any) -> None:
        pieces.append(path)
        own(path, table)

    monkeypatch.setattr(redistribute, "_append", counted)
    count, spool = 1600, tmp_path / "spool"
    spool.mkdir()
    shard = topic(tmp_path, count)
    order = np.random.default_rng(0).permutation(count)
    sidecar = Sidecar(suffix=SUFFIX, origin=None)
    told: list[int] = []
    given = Rewriting(lengths=np.full(count, 10), sidecars=[sidecar], spool=spool, dtype="int32", on_tokens=told.append)
    redistribute.redistribute(given, [shard], Order(order, np.zeros(count, dtype=np.int32)), [tmp_path / "new"])
    assert [document.tolist() for document in documents_of(tmp_path / "new")] == [[n] * 10 for n in order.tolist()]
    assert [row["id"] for row in read_rows(tmp_path / "new")] == [str(number) for number in order]
    assert (sum(told), list(spool.iterdir())) == (2 * 10 * count, [])
    ranges = count * 10 // 1000
    assert len(pieces) == ranges * (3 if most_documents > count else ranges)  # a block of 6,400 tokens, or of 1,000
