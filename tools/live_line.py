"""One live line on stderr for a step whose size in bytes is known: rewritten on a terminal, every 10 s in a log."""

import sys
import time
from collections.abc import Callable

QUIET_SECONDS = 2.0
_LOG_SECONDS = 10.0
_TERMINAL_SECONDS = 0.2


def live_line(title: str) -> Callable[[int, int], None]:
    """A function of (bytes done, bytes in all); silent in the first two seconds, and whole at the end."""
    is_terminal = sys.stderr.isatty()
    started = spoken = time.monotonic()
    has_spoken = False

    def show(done: int, total: int) -> None:
        nonlocal spoken, has_spoken
        now = time.monotonic()
        is_last = done >= total
        pause = _TERMINAL_SECONDS if is_terminal else _LOG_SECONDS
        if now - started < QUIET_SECONDS or (is_last and not has_spoken):
            return
        if has_spoken and now - spoken < pause and not is_last:
            return
        spoken, has_spoken = now, True
        rate = done / (now - started)
        text = f"{title}: {done / 1e9:.2f} of {total / 1e9:.2f} GB, {rate / 1e6:.0f} MB/s"
        start, end = ("\r\x1b[K", "\n" if is_last else "") if is_terminal else ("", "\n")
        sys.stderr.write(f"{start}{text}{end}")
        sys.stderr.flush()

    return show
