"""How far a long step is: a bar on a terminal, a log line every few seconds elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def live_bytes(title: str) -> Iterator[Callable[[int, int], None]]:
    """A function of (bytes done, bytes in all), for a step that learns its size only when it begins."""
    live: LiveProgress | None = None
    shown = 0
    with ExitStack() as stack:

        def show(done: int, total: int) -> None:
            nonlocal live, shown
            if live is None:
                live = stack.enter_context(LiveProgress(title, total=total))
            live.advance(done - shown)
            shown = done

        yield show


class LiveProgress:
    """Shows `done` of `total`, the speed in unit/s, and when it will be done.

    scale: units of `advance` in one `unit`; 1e6 for MB.
    """

    def __init__(self, title: str, *, total: int, unit: str = "MB", scale: float = 1e6) -> None:
        self._title, self._total, self._unit, self._scale = title, max(1, total), unit, scale
        self._started = self._spoken = time.monotonic()
        self._done = self._before = 0
        self._note = ""
        self._bar = _bar() if sys.stderr.isatty() else None
        if self._bar is not None:
            self._task = self._bar.add_task(title, total=self._total, speed="")

    def __enter__(self) -> "LiveProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def skip(self, amount: int) -> None:
        """`amount` was done before this call: it is done, but says nothing of the speed."""
        self._done += amount
        self._before += amount
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)

    def advance(self, amount: int) -> None:
        self._done += amount
        now = time.monotonic()
        per_second = (self._done - self._before) / max(now - self._started, 1e-3)
        speed = f"{per_second / self._scale:.{1 if self._scale > 1 else 0}f} {self._unit}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, speed=speed)
        elif now - self._spoken >= SECONDS_BETWEEN_LINES:
            self._spoken = now
            remaining = (self._total - self._done) / max(per_second, 1e-9)
            end = time.strftime("%m-%d %H:%M", time.localtime(time.time() + min(remaining, 1e8)))
            percent = 100 * self._done / self._total
            logger.info("%s: %.0f %% (%s, projected end %s)", self._title, percent, speed, end)

    def note(self, text: str) -> None:
        """What it is waiting for, shown beside the title; as a log line only when it changes."""
        if text == self._note:
            return
        self._note = text
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._title} ({text})")
        else:
            logger.info("%s: %s", self._title, text)


def _bar() -> "Progress":
    """On a terminal only: importing rich takes 40 ms, as long as typer."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
