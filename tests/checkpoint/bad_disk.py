"""Saves on a disk that refuses; argv = folder of a run. Runs in a mount namespace of its own (unshare -rm).

checkpoints/ is a small tmpfs: filled up, made read-only, and mended in turn; then each fsync of a save fails once.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.checkpoint import layout
from megatron_synE.exit_codes import CheckpointError
from tests.checkpoint import saving
from tests.checkpoint.test_killed_while_saving import newest

run = Path(sys.argv[1])
checkpoints = run / "checkpoints"


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments, str(checkpoints)], check=True)


def refused(iteration: int, said: str) -> None:
    before = newest(run)
    with pytest.raises(CheckpointError, match=said) as found:
        saving.save_one(saver, iteration)
    assert "Earlier checkpoints are untouched" in str(found.value)
    assert newest(run) == before


def failing(shipped: Callable[[int], None], nth: int) -> Callable[[int], None]:
    calls = 0

    def sync(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        shipped(fd)

    sync.calls = lambda: calls  # type: ignore[attr-defined]
    return sync


def fault_of(iteration: int) -> str | None:
    try:
        saving.save_one(saver, iteration)
    except CheckpointError as error:
        return str(error)
    return None


checkpoints.mkdir(parents=True)
mount("-t", "tmpfs", "-o", "size=1600k", "syne")  # a checkpoint has half a megabyte
saver = saving.saver_of(run)
saving.save_one(saver, 1)
saving.save_one(saver, 2)
(checkpoints / "another-user-s-file").write_bytes(bytes(200_000))
refused(3, "No space left on device")
mount("-o", "remount,size=8m")
saving.save_one(saver, 3)

mount("-o", "remount,ro")
refused(4, "Read-only file system")
mount("-o", "remount,rw")
saving.save_one(saver, 4)

iteration, nth, published = 5, 1, 0
shipped = os.fsync
while True:
    sync: Any = failing(shipped, nth)
    os.fsync = sync
    fault = fault_of(iteration)
    os.fsync = shipped
    if sync.calls() < nth:
        assert fault is None
        break  # no save has so many
    assert fault is not None and "Input/output error" in fault
    # Only once the folder has its name may a failure leave the new one: whole all the same.
    found = newest(run)
    assert found in (iteration - 1, iteration)
    published += found == iteration
    saving.save_one(saver, found + 1)
    iteration, nth = found + 2, nth + 1
assert newest(run) == iteration
print(f"each of {nth - 1} fsyncs of a save failed once; {published} of them after the rename")
assert not list(checkpoints.glob(".tmp-*")), layout.iteration_folders(checkpoints)
