"""A headless Chromium driven over its own pipe (Chrome DevTools Protocol): nothing to install but the browser.

with Chromium() as browser:
    seen = browser.open(file, width=400)      # loaded, laid out, quiet
    browser.evaluate("document.title")
"""

import base64
import contextlib
import fcntl
import json
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

READ_FD, WRITE_FD = 3, 4
"""Of the browser, by its own convention."""


def unavailable() -> str | None:
    """Why there is none; None if there is."""
    return None if shutil.which("chromium") else "chromium is not installed: apt-get install chromium"


@dataclass
class Seen:
    """What a page did while it was opened."""

    requests: list[str] = field(default_factory=list)
    """Addresses asked for, the page's own first."""
    errors: list[str] = field(default_factory=list)
    """Of the console, of scripts, and of the policy."""


class Chromium:
    """One browser with one page."""

    def __init__(self, *, timeout_seconds: float = 240.0) -> None:
        self._timeout = timeout_seconds
        self._number, self._buffer, self._session = 0, b"", ""
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> "Chromium":
        self._profile = tempfile.TemporaryDirectory(prefix="chromium")
        command = [
            "chromium", "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}",
            "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update", "about:blank",
        ]  # fmt: skip
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for pair in (os.pipe(), os.pipe()) for end in pair]
        to_read, self._to, self._from, to_write = ends

        def place() -> None:
            os.dup2(to_read, READ_FD)
            os.dup2(to_write, WRITE_FD)

        self._process = subprocess.Popen(
            command, pass_fds=(READ_FD, WRITE_FD), preexec_fn=place, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *error: object) -> None:
        self._session = ""
        with contextlib.suppress(AssertionError, OSError):  # it may have ended already
            self._call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # its session: it has children
            self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def open(self, file: Path, *, width: int, height: int = 900) -> Seen:
        """Load a file in a window of this size, to its end."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._events.clear()
        self._call("Page.navigate", url=file.resolve().as_uri())
        self._until("Page.loadEventFired")
        self.evaluate("document.fonts.ready.then(() => new Promise(done => setTimeout(done, 100)))")
        return self._seen()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, as JSON."""
        answer = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, out: Path, *, whole: bool = True) -> None:
        """A PNG of the page, or of what the window shows."""
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        out.write_bytes(base64.b64decode(shot["data"]))

    def _seen(self) -> Seen:
        seen = Seen()
        for event in self._events:
            method, what = event["method"], event["params"]
            if method == "Network.requestWillBeSent":
                seen.requests.append(what["request"]["url"])
            elif method == "Runtime.exceptionThrown":
                seen.errors.append(json.dumps(what["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled" and what["type"] in ("error", "assert", "warning"):
                seen.errors.append(json.dumps(what["args"]))
            elif method == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
                seen.errors.append(what["entry"]["text"])
        return seen

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _until(self, method: str) -> None:
        while not any(event.get("method") == method for event in self._events):
            self._events.append(self._read())

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._from, selectors.EVENT_READ)
            while b"\0" not in self._buffer:
                assert selector.select(deadline - time.monotonic()), "Chromium does not answer"
                part = os.read(self._from, 1 << 20)
                assert part, f"Chromium has ended with {self._process.wait()}"
                self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer
