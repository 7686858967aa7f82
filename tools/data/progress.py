"""How far a long step is: a bar on a terminal, a log line every few seconds elsewhere."""

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


class LiveProgress:
    """Shows `done` of `total`, in MB."""

    def __init__(self, title: str, *, total: int, unit: str = "MB", scale: float = 1e6) -> None:
        self._title, self._total, self._unit, self._scale = title, max(1, total), unit, scale
        self._started = self._spoken = time.monotonic()
        self._done = 0
        self._note = ""
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task(title, total=self._total, speed="")

    def __enter__(self) -> "LiveProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, amount: int) -> None:
        """`amount` more is done."""
        self._done += amount
        now = time.monotonic()
        speed = f"{self._done / self._scale / max(now - self._started, 1e-3):.1f} {self._unit}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, speed=speed)
        elif now - self._spoken >= SECONDS_BETWEEN_LINES:
            self._spoken = now
            logger.info("%s: %.0f %% (%s)", self._title, 100 * self._done / self._total, speed)

    def note(self, text: str) -> None:
        """What it is waiting for, shown beside the title; as a log line only when it changes."""
        if text == self._note:
            return
        self._note = text
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._title} ({text})")
        else:
            logger.info("%s: %s", self._title, text)
