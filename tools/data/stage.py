"""A stage: many independent tasks whose results are kept, so that a call that was killed goes on where it stood.

    Stage ─ run_tasks(stage, rank, world_size) on any machine ─> <work>/<task>.json ─ results(stage) ─> the call's end
Every task's result depends on the stage's fingerprint and its number alone, never on rank, world size or workers.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from data_mixers.atomic import sweep, write_atomic
from data_mixers.errors import ConfigError, DataError
from megatron_synE.runtime.environment import allow_many_files
from megatron_synE.runtime.lease import NO_LOCKS
from tools.data.progress import LiveProgress
from tools.data.slurm_options import SlurmArray

POLL_SECONDS = 0.2
# To enter a folder: a process that a killed call had just begun holds its lock until it runs its own program.
_TRIES = 6
_CONTEXT = get_context("spawn")  # a fork would copy the threads' locks of the Rust tokenizers

Report = Callable[[int], None]
"""report(n) adds n units to the progress."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What to do. Can be pickled, so that any process can take a part of it."""

    name: str
    """On the live line."""
    work: Path
    """Folder of the tasks' results, beside or inside the output."""
    fingerprint: str
    """Hash of all that decides a result (options, inputs with size and time): other results are not taken over."""
    sizes: tuple[int, ...]
    """Of each task; `scale` of them are a `unit` of the live line."""
    do: Callable[[int, Report], Any]
    """do(task, report) writes the task's files atomically and returns what later steps need, as JSON. A module's
    function or a functools.partial of one."""
    unit: str = "MB"
    scale: float = 1e6


def fingerprint_of(decided: Any) -> str:
    """Hash of what decides a result; what JSON does not know counts as its text."""
    return hashlib.sha256(json.dumps(decided, sort_keys=True, default=str).encode()).hexdigest()


class WorkerPool:
    """Processes of this machine for one stage after the other: what a worker has imported and opened, it keeps."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.is_started = False

    @cached_property
    def counter(self) -> Any:
        """Units done by all workers."""
        return _CONTEXT.Value(ctypes.c_int64, 0)

    @cached_property
    def taken(self) -> Any:
        """How many of the tasks of the stage under way a worker has begun."""
        return _CONTEXT.Value(ctypes.c_int64, 0)

    @cached_property
    def executor(self) -> ProcessPoolExecutor:
        """Starts a process when there is work for it."""
        self.is_started = True
        shared = (self.counter, self.taken)
        return ProcessPoolExecutor(self.size, mp_context=_CONTEXT, initializer=_initialise, initargs=shared)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_started:
            self.executor.shutdown(cancel_futures=True)

    def prepare(self, do: Callable[[], None]) -> None:
        """Start every worker on `do`, beside what this process does meanwhile. If it fails, the task will say so."""
        for _ in range(self.size):
            self.executor.submit(do)


def run_stage(stage: Stage, *, workers: int | WorkerPool, array: SlurmArray | None = None) -> list[Any]:
    """All results in the order of the tasks; only those that are missing are computed, in `workers` processes here.

    array: compute them on the elements of a SLURM job array, and wait for it.
    Errors: what a task raises; DataError if a worker process dies, or if the array ends with tasks undone.
    """
    stage.work.mkdir(parents=True, exist_ok=True)
    missing = missing_tasks(stage, range(len(stage.sizes)))
    with _progress(stage, stage.name, range(len(stage.sizes)), missing) as progress, ExitStack() as stack:
        pool = workers if isinstance(workers, WorkerPool) else stack.enter_context(WorkerPool(workers))
        if array is not None and missing:
            from tools.data.slurm_array import run_array

            run_array(stage, array, progress, missing)
        elif len(missing) < 2 or pool.size == 1:
            for task in missing:
                _do(stage, task, progress.advance)
        else:
            _in_processes(stage, missing, pool, progress.advance)
    return results(stage)


def run_tasks(stage: Stage, rank: int, world_size: int) -> None:
    """The missing ones of the tasks rank, rank + world_size, ...: one process of a job array."""
    allow_many_files()  # a node's limit, not that of the call
    stage.work.mkdir(parents=True, exist_ok=True)
    do_tasks(stage, range(rank, len(stage.sizes), world_size), title=f"{stage.name} {rank + 1}/{world_size}")


def do_tasks(stage: Stage, tasks: Sequence[int], *, title: str) -> None:
    """The missing ones of these tasks, in their order; what another process has done meanwhile is passed over."""
    missing = missing_tasks(stage, tasks)
    with _progress(stage, title, tasks, missing) as progress:
        for task in missing:
            if is_done(stage, task):
                progress.skip(stage.sizes[task])
            else:
                _do(stage, task, progress.advance)


def _progress(stage: Stage, title: str, tasks: Sequence[int], missing: Sequence[int]) -> LiveProgress:
    """Of these tasks, of which only the missing ones take time."""
    total = sum(stage.sizes[task] for task in tasks)
    progress = LiveProgress(title, total=total, unit=stage.unit, scale=stage.scale)
    progress.skip(total - sum(stage.sizes[task] for task in missing))
    return progress


def is_done(stage: Stage, task: int) -> bool:
    """Whether the task's result is kept, whoever computed it."""
    return _kept(stage, task) is not None


def forget(stage: Stage, task: int) -> None:
    """Drop the task's result, if there is one: what it stood for has gone."""
    _path(stage, task).unlink(missing_ok=True)


def missing_tasks(stage: Stage, tasks: Sequence[int]) -> list[int]:
    there = {entry.name for entry in os.scandir(stage.work)}  # also makes NFS look again for what another node wrote
    return [task for task in tasks if _path(stage, task).name not in there or _kept(stage, task) is None]


def results(stage: Stage) -> list[Any]:
    """The results of all tasks. Errors: DataError naming the first that has none."""
    found = []
    for task in range(len(stage.sizes)):
        kept = _kept(stage, task)
        if kept is None:
            raise DataError(f"{stage.name}: task {task} of {len(stage.sizes)} is not done; run the same command again")
        found.append(kept["result"])
    return found


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Nobody else on this machine may work into `folder` meanwhile.

    Errors: ConfigError if somebody does, or if the file system has no locks to say so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".in_use").open("a") as stream:
        for attempt in range(_TRIES):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if attempt + 1 == _TRIES:
                    raise ConfigError(
                        f"another call is writing into {folder}; wait for it, or choose another --out"
                    ) from error
                time.sleep(POLL_SECONDS)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                raise ConfigError(
                    f"{folder}: this file system has no locks ({error.strerror}), which keep a second call out; mount "
                    "it with them (Lustre: option flock, NFS: lockd), or work in another folder"
                ) from error
        sweep(folder)
        yield


def remove_work(work: Path) -> None:
    """Remove a folder of results, under another name first: half of it must never be taken for whole."""
    removed = work.with_name(f"{work.name}.removed")
    if removed.exists():  # a call was killed in here
        shutil.rmtree(removed)
    if work.exists():
        shutil.rmtree(work.replace(removed))


def refuse_foreign(folder: Path, *, is_begun: bool) -> None:
    """Errors: ConfigError if the folder holds files and no call of this command has begun in it (`is_begun`)."""
    if is_begun or not folder.is_dir():
        return
    visible = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if visible:
        raise ConfigError(f"--out {folder} holds other files ({', '.join(visible[:3])}); choose another folder")


def _path(stage: Stage, task: int) -> Path:
    return stage.work / f"{task:07d}.json"


def _kept(stage: Stage, task: int) -> dict[str, Any] | None:
    try:
        kept = json.loads(_path(stage, task).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{_path(stage, task)} cannot be read ({error}); remove it and run again") from error
    return kept if kept["fingerprint"] == stage.fingerprint else None


def _do(stage: Stage, task: int, report: Report) -> None:
    try:
        result = stage.do(task, report)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DataError(
                f"{stage.name}: no space left for {error.filename or stage.work}; free some and run the same command "
                "again: what is done is kept"
            ) from error
        raise
    content = json.dumps({"fingerprint": stage.fingerprint, "result": result}, ensure_ascii=False)
    write_atomic(_path(stage, task), content.encode())


def _in_processes(stage: Stage, tasks: list[int], pool: WorkerPool, on_progress: Report) -> None:
    shown = int(pool.counter.value)
    pool.taken.value = 0
    futures: list[Future[None]] = []
    try:
        # One call a worker, not one a task: a stage that names 100,000 pieces of input takes 0.1 s to send.
        futures += [pool.executor.submit(_take, stage, tasks) for _ in range(min(pool.size, len(tasks)))]
        running = set(futures)
        while running:
            done, running = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            if (value := int(pool.counter.value)) > shown:
                on_progress(value - shown)
                shown = value
            for future in done:
                future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died, most likely for want of memory; run again with fewer --workers"
        ) from error
    finally:
        pool.taken.value = len(tasks)
        for future in futures:
            future.cancel()
        wait(futures)  # of those that run: what comes next must not find them writing


def _take(stage: Stage, tasks: list[int]) -> None:
    """In a worker: the next of `tasks` that none has begun, until there is none."""
    while (place := _next()) < len(tasks):
        _do(stage, tasks[place], _add)


def _next() -> int:
    with _taken.get_lock():
        _taken.value += 1
        return int(_taken.value) - 1


_counter: Any = None
_taken: Any = None


def _initialise(counter: Any, taken: Any) -> None:
    global _counter, _taken
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    _counter, _taken = counter, taken
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """For a thread: a call that is killed takes its processes with it, or a later one would find them writing."""
    parent = parent_process()
    assert parent is not None  # they are made by multiprocessing
    parent.join()
    os._exit(1)


def _add(amount: int) -> None:
    with _counter.get_lock():
        _counter.value += amount
