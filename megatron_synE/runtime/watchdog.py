"""A run that gets no further ends itself: the stacks of every rank in the run folder, exit code 6 on every rank.

Each rank watches itself in a thread, so it also notices when its main thread sits in a collective that will not end.
"""

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_synE import exit_codes

LEAST_SECONDS = 300.0
"""Ours: a shared file system may be away for minutes without anything being broken."""
MEDIAN_STEPS = 10.0
"""Ours: a step that takes ten times the usual one is not a slow step."""
PATIENCE_SECONDS = 3600.0
"""For the first step (kernels are compiled) and for writing and reading a checkpoint, which no step time tells."""
GRACE_SECONDS = 10.0
"""How long a rank that noticed waits for the stacks of the others before it ends."""
BACKSTOP_SECONDS = 60.0
"""How long after the limit a rank is ended by a thread that needs no Python: code 1, stacks on stderr.

Ours. A main thread that hangs inside native code without giving up the interpreter's lock stops every thread here.
"""
MOST_SECONDS = 1e9
"""Thirty years; the system's clock ends at ten times that, and whoever wants no limit writes a large number."""
_REMEMBERED_STEPS = 50


class Watchdog:
    """As a context: watches from entry to exit. Every method but `hang_is_declared` is for the main thread."""

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        world_size: int,
        timeout_seconds: float | None,
        tell: Callable[[str], None] = lambda message: None,
    ) -> None:
        """folder: the same on all ranks; made when a hang is noticed. timeout_seconds: without a beat; None: measured.

        tell: called on one rank with what happened, before it ends.
        """
        self.folder, self._rank, self._world_size = folder, rank, world_size
        self._timeout, self._tell = timeout_seconds, tell
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._last, self._patience, self._iteration = time.monotonic(), PATIENCE_SECONDS, 0
        self._over, self._declared = threading.Event(), threading.Event()

    def __enter__(self) -> "Watchdog":
        self._last = time.monotonic()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        threading.Thread(target=self._look_for_others, name="watchdog-look", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    def step(self, iteration: int, seconds: float) -> None:
        self._seconds.append(seconds)
        self._iteration, self._patience = iteration, 0.0
        self.beat()

    def beat(self) -> None:
        """The run gets on, e.g. one part of a validation further."""
        self._last = time.monotonic()

    @contextmanager
    def patient(self) -> Iterator[None]:
        """For work whose time no step tells."""
        before, self._patience = self._patience, PATIENCE_SECONDS
        try:
            yield
        finally:
            self.beat()
            self._patience = before

    @property
    def limit_seconds(self) -> float:
        """How long the run may now go without a beat."""
        steps = max(LEAST_SECONDS, MEDIAN_STEPS * statistics.median(self._seconds)) if self._seconds else 0.0
        return max(self._patience, self._timeout or steps or LEAST_SECONDS)

    def hang_is_declared(self) -> bool:
        """Whether a rank has found the run to hang: then a peer that is gone is no fault of its own."""
        return self.folder.exists()

    def dump(self) -> None:
        """Write what every thread of this rank is doing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._file(self._rank).open("w") as stream:
            stream.write(f"rank {self._rank}, process {os.getpid()} on {os.uname().nodename}, after iteration ")
            stream.write(f"{self._iteration}\n")
            stream.flush()
            faulthandler.dump_traceback(stream, all_threads=True)

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank_{rank:05d}.txt"

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.limit_seconds / 10)):
            faulthandler.dump_traceback_later(min(self.limit_seconds + BACKSTOP_SECONDS, MOST_SECONDS), exit=True)
            if time.monotonic() - self._last > self.limit_seconds or self._declared.is_set():
                self._end()
        faulthandler.cancel_dump_traceback_later()  # set once more while the main thread left

    def _look_for_others(self) -> None:
        # Apart from the clock: a file system that hangs keeps whoever asks it, and is itself what must be noticed.
        while not self._over.wait(min(1.0, self.limit_seconds / 10)):
            if self.hang_is_declared():
                self._declared.set()
                return

    def _end(self) -> None:
        silent, limit = time.monotonic() - self._last, self.limit_seconds
        grace = min(GRACE_SECONDS, limit)
        # What hangs may be the very file system that the stacks go to.
        guard = threading.Timer(3 * grace, os._exit, [exit_codes.HANG])
        guard.daemon = True
        guard.start()
        try:
            self.dump()
            self._say(silent, limit, self._missing_after(grace))
        except OSError as error:
            sys.stderr.write(
                f"error: no step for {silent:.0f} s; the stacks cannot be written to {self.folder}: {error}\n"
            )
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        finally:
            os._exit(exit_codes.HANG)

    def _missing_after(self, grace: float) -> list[int]:
        """Ranks that have not written their stacks after so many seconds."""
        deadline = time.monotonic() + grace
        while True:
            missing = [rank for rank in range(self._world_size) if not self._file(rank).exists()]
            if not missing or time.monotonic() >= deadline:
                return missing
            time.sleep(0.05)

    def _say(self, silent: float, limit: float, missing: list[int]) -> None:
        present = [rank for rank in range(self._world_size) if rank not in missing]
        if self._rank != min(present):
            return
        absent = f"; none from rank {', '.join(map(str, missing))}: stopped, or its node is gone" if missing else ""
        message = (
            f"no step for {silent:.0f} s (limit {limit:.0f} s) after iteration {self._iteration}; the stacks of "
            f"{len(present)} of {self._world_size} ranks are in {self.folder}{absent}"
        )
        sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()
        self._tell(message)
