"""`syne data sort` beside another copy of its task, a spool that is not its own, and files that are cut off."""

import contextlib
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_mixers.errors import DataError
from data_mixers.manifest import read_manifest
from tests.rows import contents
from tests.tools.token_files import two_files_of_law
from tools.data import redistribute
from tools.data import sort as sorting
from tools.data.sort import SortOptions, sort


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return two_files_of_law(tmp_path / "data")


class _Killed(Exception):
    pass


def test_an_old_copy_of_a_requeued_task_changes_no_document(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM starts a task anew, while its first copy goes on for a few blocks on a node that was believed lost."""
    monkeypatch.setattr(redistribute, "BLOCK_TOKENS", 300)
    monkeypatch.setattr(redistribute, "RANGE_TOKENS", 1000)
    straight, out = data.parent / "straight", data.parent / "out"
    options = SortOptions(data=data, out=straight, buckets=2)
    sort(options)
    turns = {"old": threading.Semaphore(0), "new": threading.Semaphore(0)}
    real, blocks = sorting._sort_topic, iter(range(1, 1000))

    def old_copy(*given: Any) -> None:
        def report(_: int) -> None:
            number = next(blocks)
            turns["new"].release()
            turns["old"].acquire(timeout=60)
            if number == 5:
                raise _Killed

        with contextlib.suppress(_Killed, FileNotFoundError):
            real(*given, 0, report)
        for _ in range(1000):
            turns["new"].release()

    def requeued(*given: Any) -> Any:
        *decided, task, report = given
        if task != 0:
            return real(*given)
        thread = threading.Thread(target=old_copy, args=decided)
        thread.start()

        def in_turn(count: int) -> None:
            turns["old"].release()
            turns["new"].acquire(timeout=60)
            report(count)

        turns["new"].acquire(timeout=60)  # the old copy has written its first block
        result = real(*decided, task, in_turn)
        thread.join()
        return result

    monkeypatch.setattr(sorting, "_sort_topic", requeued)
    sort(replace(options, out=out))
    assert contents(out, with_work=False) == contents(straight, with_work=False)
    assert not list(out.glob("**/spool-*")) and not list(out.glob("**/.*.tmp"))


def test_a_spool_that_somebody_has_written_to_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = redistribute._distribute

    def disturbed(given: redistribute.Rewriting, *rest: Any) -> None:
        real(given, *rest)
        path = next(given.spool.glob(spoiled))
        path.write_bytes(path.read_bytes() * 2)

    monkeypatch.setattr(redistribute, "_distribute", disturbed)
    for spoiled in ("0.tokens", "0.0.rows"):
        with pytest.raises(DataError, match=rf"{spoiled} holds \d+ tokens or rows in place of \d+: another process"):
            sort(SortOptions(data=data, out=data.parent / "sorted", buckets=2))


def test_a_sidecar_that_is_cut_off_or_of_another_writing_is_named(data: Path) -> None:
    manifest = read_manifest(data)
    shard = next(e for e in manifest.with_role("train") if e.topic == "law").shards[0]
    path = Path(f"{manifest.shard_prefix(shard)}.documents.parquet")
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    message = rf"{path.name} has {len(table) - 1} rows, .* {len(table)} documents.*make it again"
    with pytest.raises(DataError, match=message):
        sort(SortOptions(data=data, out=data.parent / "sorted", by="compression_ratio", buckets=2))
    pq.write_table(table, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"{path.name} cannot be read as parquet"):
        sort(SortOptions(data=data, out=data.parent / "sorted", by="compression_ratio", buckets=2))
