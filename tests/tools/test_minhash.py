"""Clusters of near-duplicates out of the pairs that bands of signatures gave, in memory by documents, not by bands."""

import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tools.data import minhash
from tools.data.minhash import cluster

Pairs = npt.NDArray[np.uint32]


def write_band(folder: Path, band: int, pairs: Pairs) -> None:
    (folder / f"{band:05d}_00.dups").write_bytes(pairs.astype("<u4").tobytes())


def slow_clusters(pairs: list[list[int]]) -> list[list[int]]:
    """Sets that are joined one pair after the other."""
    cluster_of: dict[int, set[int]] = {}
    for task_a, a, task_b, b in pairs:
        one, other = task_a * 2**32 + a, task_b * 2**32 + b
        joined = cluster_of.get(one, {one}) | cluster_of.get(other, {other})
        cluster_of |= dict.fromkeys(joined, joined)
    return [[node, min(cluster_of[node])] for node in sorted(cluster_of) if node != min(cluster_of[node])]


@pytest.mark.parametrize("at_once", [1, 7, 1 << 22])
def test_clusters_are_those_of_all_bands_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(minhash, "PAIRS_AT_ONCE", at_once)
    rng = np.random.default_rng(at_once)
    bands = [rng.integers(0, (3, 60, 3, 60), (count, 4)) for count in (25, 0, 40, 1)]
    for number, band in enumerate(bands):
        write_band(tmp_path, number, band)
    pairs = np.concatenate(bands).tolist()
    assert cluster(tmp_path).tolist() == slow_clusters(pairs) != []


def test_pairs_that_agree_in_all_bands_take_the_memory_of_one(tmp_path: Path) -> None:
    numbers = np.arange(20_000)
    pairs = np.stack([numbers // 100, numbers % 100, numbers // 100 + 300, numbers % 100], axis=1)
    peaks, found = [], []
    for band in range(14):
        write_band(tmp_path, band, pairs)
        if band in (0, 13):
            cluster(tmp_path)  # scipy is imported
            tracemalloc.start()
            found.append(cluster(tmp_path))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert np.array_equal(*found)
    assert peaks[1] < 1.5 * peaks[0]
