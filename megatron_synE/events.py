"""A command of the user's that hears of what happens to a run: `operations.on_event`."""

import json
import logging
import subprocess
import threading
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

Event = Literal["nan", "spike", "hardware", "straggler", "hang", "requeue", "finish"]
_TIMEOUT_SECONDS = 30.0


class Events:
    """Starts the command once for each event, with the event as JSON on its standard input. No shell.

    The run never waits for it and never fails by it; `close` waits for those under way.
    """

    def __init__(self, command: tuple[str, ...], *, run: str, folder: Path) -> None:
        self._command, self._facts = command, {"run": run, "run_dir": str(folder)}
        self._threads: list[threading.Thread] = []

    def tell(self, event: Event, **facts: Any) -> None:
        """Start the command; one rank calls it."""
        if not self._command:
            return
        text = json.dumps({"event": event, **self._facts, **facts}) + "\n"
        thread = threading.Thread(target=self._run, args=(event, text), name="on_event", daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """Wait for the commands under way, at most their time limit."""
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _run(self, event: str, text: str) -> None:
        try:
            done = subprocess.run(
                self._command, input=text, text=True, timeout=_TIMEOUT_SECONDS, check=False, stdout=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            logger.warning("operations.on_event: %s for event %s: %s", self._command[0], event, error)
            return
        if done.returncode:
            logger.warning(
                "operations.on_event: %s ended with %d for event %s", self._command[0], done.returncode, event
            )
