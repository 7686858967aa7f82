"""A process that saves one checkpoint after the other, and dies where it is told: argv = run folder, last, point.

point: a name of `POINTS` (SIGKILL there, in the save of iteration `last`), random:SEED (at a random moment of endless
saving), or none.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from megatron_synE.checkpoint import layout, save
from megatron_synE.checkpoint.dcp import Chunk, FileSystemWriter
from megatron_synE.checkpoint.layout import CommonState
from megatron_synE.checkpoint.streamed_file import StreamedFile
from megatron_synE.runtime.run_dir import RunDir

ROWS, COLUMNS = 512, 256


def tensor_of(iteration: int) -> torch.Tensor:
    """What iteration `iteration` holds."""
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(iteration))


def chunks_of(iteration: int) -> list[Chunk]:
    tensor = tensor_of(iteration)
    return [
        Chunk("weight", (ROWS, COLUMNS), (row, 0), (64, COLUMNS), torch.float32, tensor[row : row + 64])
        for row in range(0, ROWS, 64)
    ]


def state_of(iteration: int) -> CommonState:
    return CommonState(
        iteration=iteration, consumed_samples=8 * iteration, consumed_tokens=256 * iteration, adam_step=iteration,
        has_optimizer=True, weights_dtype="float32", tied=False, vocab_size=131,
    )  # fmt: skip


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # for another thread to take the signal
    raise AssertionError


def patched(owner: Any, name: str, *, when: Callable[..., bool], dies: str) -> None:
    """Die before or after `owner.name`, called as `when` says."""
    shipped = getattr(owner, name)

    def deadly(*arguments: Any, **named: Any) -> Any:
        here = when(*arguments)
        if here and dies == "before":
            die()
        result = shipped(*arguments, **named)
        if here and dies == "after":
            die()
        return result

    setattr(owner, name, deadly)


def half_deleted(folder: Path, **_: Any) -> None:
    """rmtree that is killed in the middle."""
    if folder.name.endswith("-pruned"):
        next(folder.glob("*.distcp")).unlink()
        die()
    real_rmtree(folder, **_)


real_rmtree = shutil.rmtree


def arm(point: str, last: int) -> None:
    """Die at `point` of the save of iteration `last`. What is called also in earlier saves looks at the name."""
    name = layout.iteration_name(last)

    def always(*_: Any) -> bool:
        return True

    def to_final(_: Path, target: Path) -> bool:
        return Path(target).name == name

    def of_manifest(_: Path, target: Path) -> bool:
        return Path(target).name == layout.MANIFEST

    def of_tracker(file: Path, *_: Any) -> bool:
        return file.name == layout.TRACKER

    def to_tracker(_: Path, target: Path) -> bool:
        return Path(target).name == layout.TRACKER

    def to_pruned(_: Path, target: Path) -> bool:
        return Path(target).name.endswith("-pruned")

    def to_replaced(_: Path, target: Path) -> bool:
        return Path(target).name.endswith("-replaced")

    if point == "half of a pruned folder deleted":
        layout.shutil.rmtree = half_deleted  # type: ignore[assignment]
        return
    owner, function, when, dies = {
        "before the snapshot": (save, "_snapshot", always, "before"),
        "before the first byte": (StreamedFile, "_write_block", always, "before"),
        "while chunks are written": (StreamedFile, "_write_block", always, "after"),
        "before the tensor table": (FileSystemWriter, "finish", always, "before"),
        "before state.json": (layout, "write_state", always, "before"),
        "before the manifest": (layout, "write_manifest", always, "before"),
        "inside the manifest": (Path, "replace", of_manifest, "before"),
        "after the manifest": (layout, "write_manifest", always, "after"),
        "before the rename": (Path, "rename", to_final, "before"),
        "after the rename": (Path, "rename", to_final, "after"),
        "before the tracker": (layout, "write_atomic", of_tracker, "before"),
        "inside the tracker": (Path, "replace", to_tracker, "before"),
        "before pruning": (layout, "prune", always, "before"),
        "a pruned folder renamed": (Path, "rename", to_pruned, "after"),
        "between the renames of a replaced folder": (Path, "rename", to_replaced, "after"),
    }[point]
    patched(owner, function, when=when, dies=dies)


PUBLISHED = ("after the rename", "before the tracker", "inside the tracker", "before pruning",
             "a pruned folder renamed", "half of a pruned folder deleted")  # fmt: skip
UNPUBLISHED = ("before the snapshot", "before the first byte", "while chunks are written", "before the tensor table",
               "before state.json", "before the manifest", "inside the manifest", "after the manifest",
               "before the rename")  # fmt: skip


def die_at_random(seed: int) -> None:
    """Another process kills this one after up to 0.4 s: some twenty saves."""
    delay, parent = random.Random(seed).uniform(0.0, 0.4), os.getpid()
    if os.fork() == 0:
        time.sleep(delay)
        os.kill(parent, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def saver_of(run: Path) -> save.Saver:
    """As the trainer has it, alone."""
    run_dir = RunDir(run)
    run_dir.create()
    run_dir.take(takeover=False)
    store = torch._C._distributed_c10d.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    group = dist.group.WORLD
    assert group is not None
    return save.Saver(run_dir.checkpoints, group, keep_last=2, source_files={}, lease=run_dir.lease)


def save_one(saver: save.Saver, iteration: int) -> None:
    saver.start(chunks_of(iteration), state_of(iteration), {}, {"run": "test"}, in_background=True)
    saver.finish()


def main() -> None:
    run, last, point = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    saver = saver_of(run)
    newest = layout.newest_complete(run / "checkpoints", verify_hashes=True)
    first = 1 if newest is None else layout.iteration_of(newest) + 1
    if point.startswith("random:"):
        die_at_random(int(point.removeprefix("random:")))
        last = first + 1_000_000
    for iteration in range(first, last + 1):
        if iteration == last and point not in ("none",) and not point.startswith("random:"):
            arm(point, last)
        save_one(saver, iteration)
    os._exit(0)


if __name__ == "__main__":
    main()
