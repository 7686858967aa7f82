"""Killed at any moment of a save, a run has a whole checkpoint, the newest that it published, and goes on from it."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint.chunk_reader import ChunkReader
from tests import tiny
from tests.checkpoint import saving

SCRIPT = Path(saving.__file__)
KILLED = -9


def newest(run: Path) -> int:
    """The iteration of the newest checkpoint, after every byte and value of it was compared."""
    folder = layout.newest_complete(run / "checkpoints", verify_hashes=True)
    assert folder is not None, "nothing to load"
    iteration = layout.iteration_of(folder)
    assert layout.read_state(folder) == saving.state_of(iteration)
    found = ChunkReader(folder).read("weight", (0, 0), (saving.ROWS, saving.COLUMNS))
    assert torch.equal(found, saving.tensor_of(iteration))
    return iteration


def killed(run: Path, last: int, point: str) -> None:
    assert tiny.python(SCRIPT, run, last, point).returncode == KILLED, point


@pytest.mark.parametrize("point", [*saving.UNPUBLISHED, *saving.PUBLISHED])
def test_a_kill_at_a_named_point_leaves_the_newest_published_checkpoint(tmp_path: Path, point: str) -> None:
    killed(tmp_path, 4, point)
    assert newest(tmp_path) == (4 if point in saving.PUBLISHED else 3)
    # The next one goes on, and leaves nothing behind but what it is to keep.
    done = tiny.python(SCRIPT, tmp_path, 6, "none")
    assert done.returncode == 0, done.stderr
    assert newest(tmp_path) == 6
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["iter_0000005", "iter_0000006", layout.TRACKER]


def test_a_kill_while_a_damaged_folder_is_replaced(tmp_path: Path) -> None:
    assert tiny.python(SCRIPT, tmp_path, 4, "none").returncode == 0
    folder = tmp_path / "checkpoints/iter_0000004"
    (folder / "state.json").write_text("{}")
    killed(tmp_path, 4, "between the renames of a replaced folder")
    assert newest(tmp_path) == 3
    assert tiny.python(SCRIPT, tmp_path, 4, "none").returncode == 0
    assert newest(tmp_path) == 4


@pytest.mark.slow
def test_a_kill_at_a_random_moment(tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    reached = 0
    assert tiny.python(SCRIPT, tmp_path, 1, "none").returncode == 0
    for seed in range(220):
        assert tiny.python(SCRIPT, tmp_path, 0, f"random:{seed}").returncode == KILLED
        now = newest(tmp_path)
        assert now >= max(reached, 1)  # never back behind what was there
        reached = now
        half_done = list((tmp_path / "checkpoints").glob(".tmp-*"))
        found["inside a save" if half_done else "between saves"] += 1
    print(f"220 kills, {reached} checkpoints: {dict(found)}")
    assert found["inside a save"] > 100
