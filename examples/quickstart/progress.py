"""A live line for every step of the quickstart that takes longer than two seconds."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

QUIET_SECONDS = 2.0


@contextmanager
def step(title: str) -> Iterator[None]:
    """Shows `title` with the seconds passed while the body runs, once it has run for two seconds.

    On a terminal the line is rewritten each second; in a log it is one line at the start and one at the end.
    """
    start = time.monotonic()
    done = threading.Event()
    live = sys.stderr.isatty()

    def show() -> None:
        if done.wait(QUIET_SECONDS):
            return
        print(f"{title} ...", end="" if live else "\n", file=sys.stderr, flush=True)
        while live and not done.wait(1.0):
            print(f"\r{title} ... {time.monotonic() - start:.0f} s", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        seconds = time.monotonic() - start
        if seconds > QUIET_SECONDS:
            print(f"{chr(13) if live else ''}{title}: {seconds:.1f} s", file=sys.stderr, flush=True)
