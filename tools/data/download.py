"""One file over HTTP, resumed where it was cut: Range requests into <name>.partial, checked, then renamed.

huggingface_hub's downloader is not used: it cannot take Dolma's plain URLs, and one way for all sources is one to test.
"""

import errno
import hashlib
import http.client
import json
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_mixers.atomic import publish, write_atomic
from data_mixers.errors import DataError

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0
ATTEMPTS = 6  # without a byte gained in between
LONGEST_PAUSE_SECONDS = 120.0
NOBODY = (errno.ENETUNREACH, errno.EHOSTUNREACH, -2, -3, -5)  # the last three: of getaddrinfo
RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504))


class UnreachableError(DataError):
    """The server does not answer, or answers that it is busy, however often it is asked."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    url: str
    path: str
    """Below the output folder."""
    size_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Web:
    token: str | None = None
    """Sent to `token_for` alone, and not to where it redirects."""
    token_for: str = ""
    """Beginning of the URLs that get the token."""
    pause_seconds: float = 1.0
    """Before the second attempt; doubled from then on, with jitter, so that many clients do not come back at once."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the call is over: no thread of it waits on, or goes on with a file."""

    def open(self, url: str, headers: dict[str, str]) -> Any:
        """The response. Errors: those of urllib."""
        if not url.startswith(("http://", "https://")):
            raise DataError(f"{url} is not an http(s) address")
        request = urllib.request.Request(url, headers={"User-Agent": "megatron-synE", **headers})
        if self.token is not None and url.startswith(self.token_for):
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)

    def read(self, url: str) -> tuple[bytes, str | None]:
        """A small answer and its Link header. Errors: DataError when it does not come."""
        attempt = 0
        while True:
            try:
                with self.open(url, {}) as response:
                    return response.read(), response.headers.get("Link")
            except (OSError, http.client.HTTPException) as error:
                attempt += 1
                self.wait_or_fail(url, error, attempt)

    def wait_or_fail(self, url: str, error: Exception, attempt: int) -> None:
        """Pause before another attempt. Errors: DataError if there should be none."""
        cause = getattr(error, "reason", error)
        # No network at all, or nobody there: asking again does not help.
        is_hopeless = isinstance(cause, ConnectionRefusedError) or (
            isinstance(cause, OSError) and cause.errno in NOBODY
        )
        if isinstance(error, urllib.error.HTTPError):
            reason = f"{error.code} {error.reason}"
            if error.code not in RETRIED:
                cure = {
                    401: "log in with `hf auth login`, or set HF_TOKEN",
                    403: "accept the data set's terms on its page, then log in with `hf auth login`",
                    404: "look whether the name or slice is right (--list)",
                }.get(error.code, "see the server's answer")
                raise DataError(f"{url}: the server says {reason}; {cure}") from error
        else:
            reason = str(cause) or type(error).__name__
        if attempt >= ATTEMPTS or is_hopeless:
            raise UnreachableError(
                f"{url} cannot be reached ({reason}); run the same command again, or name a mirror (--endpoint)"
            ) from error
        pause = min(LONGEST_PAUSE_SECONDS, self.pause_seconds * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
        self.ended.wait(max(pause, _asked_pause(error)))
        self.go_on()

    def go_on(self) -> None:
        """Errors: DataError if the call is over; what came so far is kept, as after a cut."""
        if self.ended.is_set():
            raise DataError("the call is over")


def fetch_file(remote: RemoteFile, folder: Path, web: Web, on_bytes: Callable[[int], None]) -> str:
    """Bring the file to <folder>/<path>; returns its sha256.

    A partial file of the same URL is continued, if the server says that it is still the same file.
    Errors: DataError naming the URL if it cannot be had, or is not as its listing says.
    """
    target = folder / remote.path
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    note = note_of(target)
    if _noted(note, remote.url) is None:
        partial.unlink(missing_ok=True)
    elif partial.exists():
        on_bytes(partial.stat().st_size)
    attempt = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            if _receive(remote, partial, note, web, on_bytes):
                break
            error: Exception = ConnectionError("the connection ended early")
        except (OSError, http.client.HTTPException) as fault:
            error = fault
        if isinstance(error, OSError) and not isinstance(error, urllib.error.URLError) and error.filename is not None:
            raise error  # of this machine's file, not of the network
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DataError(f"{partial}: the disk is full; make room and run the same command again") from error
        gained = partial.exists() and partial.stat().st_size > before
        attempt = 1 if gained else attempt + 1
        web.wait_or_fail(remote.url, error, attempt)
    digest = sha256_of(partial)
    if remote.sha256 is not None and digest != remote.sha256:
        partial.unlink()
        note.unlink(missing_ok=True)
        raise DataError(
            f"{remote.url} has sha256 {digest}, not {remote.sha256} as listed; it was removed, fetch it again"
        )
    publish(partial, target)
    note.unlink(missing_ok=True)
    return digest


def note_of(target: Path) -> Path:
    """Where it is noted, beside the partial file, what that is a part of."""
    return target.with_name(f".{target.name}.partial.json")  # hidden: later steps read a folder's .json files


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _noted(note: Path, url: str) -> dict[str, Any] | None:
    """The URL, and what tells its versions apart, noted beside a partial file; None if it is of another URL."""
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return noted if isinstance(noted, dict) and noted.get("url") == url else None


def _receive(remote: RemoteFile, partial: Path, note: Path, web: Web, on_bytes: Callable[[int], None]) -> bool:
    """One request for what is missing; whether the file is whole now."""
    start = partial.stat().st_size if partial.exists() else 0
    if start and start == remote.size_bytes:
        return True
    headers = {"Range": f"bytes={start}-"} if start else {}
    noted = _noted(note, remote.url) or {}
    if start and (version := noted.get("etag") or noted.get("last_modified")) is not None:
        headers["If-Range"] = version
    try:
        response = web.open(remote.url, headers)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}" and remote.size_bytes in (None, start):
            return True
        partial.unlink()
        on_bytes(-start)
        return False
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT and start:  # the whole file again
            on_bytes(-start)
            start = 0
        total = _total(response, start, remote)
        if start and noted.get("size_bytes") not in (None, total):  # a server that knows no If-Range
            partial.unlink()
            on_bytes(-start)
            return False
        etag = response.headers.get("ETag")
        kept = {
            "url": remote.url,
            "etag": None if (etag or "W/").startswith("W/") else etag,  # a weak one says nothing of bytes
            "last_modified": response.headers.get("Last-Modified"),
            "size_bytes": total,
        }
        write_atomic(note, json.dumps(kept).encode())
        with partial.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            while chunk := response.read(CHUNK_BYTES):
                stream.write(chunk)
                on_bytes(len(chunk))
            size = stream.tell()
    if total is not None and size > total:
        partial.unlink()
        raise DataError(f"{remote.url} gave {size} bytes, {total} were announced; fetch it again")
    return total is None or size == total


def _total(response: Any, start: int, remote: RemoteFile) -> int | None:
    """The size of the whole file as the server has it. Errors: DataError if it is not the listed one."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, size = rest.partition("/")
        if unit != "bytes" or span.partition("-")[0] != str(start):
            raise DataError(f"{remote.url}: asked from byte {start}, the server answers {unit} {rest}")
        total = int(size) if size.isdigit() else remote.size_bytes
    else:
        length = response.headers.get("Content-Length")
        total = int(length) if length is not None else remote.size_bytes
    if None not in (total, remote.size_bytes) and total != remote.size_bytes:
        raise DataError(
            f"{remote.url} has {total} bytes, its listing says {remote.size_bytes}; list and fetch it again"
        )
    return total


def _asked_pause(error: Exception) -> float:
    """Retry-After, seconds or a date, where the server gives one. Unit: seconds."""
    if not isinstance(error, urllib.error.HTTPError):
        return 0.0
    from tools.data.chat import asked_wait_seconds  # httpx takes a tenth of a second to import

    return min(LONGEST_PAUSE_SECONDS, asked_wait_seconds(error.headers.get("Retry-After", "")))
