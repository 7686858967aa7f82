"""A run folder looked at again and again: only what was added to metrics.jsonl is read, and who writes is watched."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data_mixers.errors import UserError
from megatron_synE.runtime.lease import EXPIRY_SECONDS, Holder, read_holder
from tools.report.metrics_file import MetricsFile

MOST_BYTES = 64 << 20
"""Read of the file at one look."""


class MetricsTail:
    """metrics.jsonl as it grows. A resumed run replaces the file: then all of it is read again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stream: IO[bytes] | None = None
        self._rest = b""
        self.metrics = MetricsFile()

    def look(self) -> None:
        """Take the lines that were added. A file that is not there, or is away for a moment, adds none."""
        try:
            if self._stream is None or self._is_replaced():
                self.close()
                self._stream = self._file.open("rb")
                self._rest, self.metrics = b"", MetricsFile()
            while added := self._stream.read(MOST_BYTES):
                *lines, self._rest = (self._rest + added).split(b"\n")
                self.metrics.feed(line.decode("utf-8", "replace") for line in lines)
        except OSError:
            self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _is_replaced(self) -> bool:
        assert self._stream is not None
        now, opened = self._file.stat(), os.fstat(self._stream.fileno())
        return not os.path.samestat(now, opened) or now.st_size < self._stream.tell()


@dataclass
class Life:
    """Whether somebody writes to a run: its holder's sign of life changes every few seconds, and goes when it leaves.

    Clocks of hosts are never compared: a change is counted from when it was seen.
    """

    folder: Path
    clock: Callable[[], float] = time.monotonic
    holder: Holder | None = None
    _beat: int | None = None

    def __post_init__(self) -> None:
        self._seen_at = self.clock()  # the last sign; where nobody was ever there, the beginning

    def look(self) -> None:
        try:
            self.holder = read_holder(self.folder)
        except UserError:
            return  # it is being replaced, or damaged: what was seen before stands
        beat = None
        if self.holder is not None:
            with suppress(OSError):
                beat = (self.folder / f".alive-{self.holder.token}").stat().st_mtime_ns
        if beat is not None and beat != self._beat:
            self._seen_at = self.clock()
        self._beat = beat

    @property
    def is_alive(self) -> bool:
        """Whether a sign was there at the last look and has changed not too long ago."""
        return self._beat is not None and self.clock() - self._seen_at <= EXPIRY_SECONDS

    @property
    def silent_seconds(self) -> float:
        """Without a sign of life: since the last one was seen, or since the beginning."""
        return 0.0 if self.is_alive else self.clock() - self._seen_at
