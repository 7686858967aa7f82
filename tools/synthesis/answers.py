"""Answers as they come: parts of JSON lines that are only appended to, and what of them survives a kill.

<out>/parts/<rank>-of-<size>.<host>.jsonl    a line per (seed_hash, sample): a pair, or `failed` with the reason
"""

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from data_mixers.errors import DataError

SECONDS_BETWEEN_SYNCS = 1.0  # a power cut costs so much; a killed process nothing but the line it was writing

Key = bytes
"""Of seed_hash and sample, 16 bytes: millions of them are in memory."""


def read_part(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a part. Errors: DataError for a line that is no answer."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                content: dict[str, Any] = orjson.loads(line)
                key_of(content)
            except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                fault = error if isinstance(error, orjson.JSONDecodeError) else "no answer, its seed_hash is missing"
                raise DataError(f"{path}, line {number}: {fault}; remove the line and run again") from error
            yield content


def parts_of(out: Path) -> list[Path]:
    return sorted((out / "parts").glob("*.jsonl"))


class Part:
    """Appends to a part, one writer at a time; a last line that a kill cut off is cut away first."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "Part":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: BinaryIO = self._path.open("ab")
        self._stream.truncate(_whole_bytes(self._path))
        self._synced = time.monotonic()
        self._syncing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1)  # a sync can take longer than a server of 400 answers a second has work
        return self

    def append(self, content: dict[str, Any]) -> None:
        self._stream.write(orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE))
        self._stream.flush()
        if time.monotonic() - self._synced >= SECONDS_BETWEEN_SYNCS:
            if self._syncing is not None:
                if not self._syncing.done():
                    return
                self._syncing.result()  # raises what the disk said
            self._syncing = self._thread.submit(os.fsync, self._stream.fileno())
            self._synced = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()
        with self._stream:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        if self._syncing is not None:
            self._syncing.result()


def _whole_bytes(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(len(line) for line in stream if line.endswith(b"\n"))


def key_of(content: dict[str, Any]) -> Key:
    return key(content["seed_hash"], content.get("sample", 0))


def key(seed_hash: str, sample: int) -> Key:
    return hashlib.blake2b(f"{seed_hash} {sample}".encode(), digest_size=16).digest()
