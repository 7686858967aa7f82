"""A file written by background threads, so that reading, writing, hashing and the disk all work at once.

    caller ── block ─┬─> write thread ──> fdatasync thread, so that the disk is busy from the start
                     └─> sha256 thread
Blocks are handed over in order; at most a few are under way, which bounds the memory.
"""

import hashlib
import io
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

BLOCK_BYTES = 8 << 20
"""Ours: large enough that handing over costs nothing, small enough to still be in cache when written and hashed."""
_IN_FLIGHT = 4
_SYNC_BYTES = 64 << 20


class StreamedFile(io.RawIOBase):
    """Write-only. `close` waits for the threads and fsyncs; an error of any thread is raised by a later call.

    As a context it is closed at the end, or abandoned as it is after an exception.
    """

    def __init__(self, file: Path, *, with_hash: bool) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._position = 0
        self._writer = ThreadPoolExecutor(1, "write")
        self._syncer = ThreadPoolExecutor(1, "sync")
        self._hasher = ThreadPoolExecutor(1, "hash") if with_hash else None
        self._digest = hashlib.sha256()
        self._pending: deque[tuple[list[Future[Any]], bytearray | None]] = deque()
        self._sync: Future[Any] | None = None
        self._unsynced = 0
        self._buffer: bytearray | None = None
        self._filled = 0
        self._free = [bytearray(BLOCK_BYTES) for _ in range(_IN_FLIGHT)]

    @property
    def sha256(self) -> str:
        """Of all that was written; right once closed, and with_hash."""
        return self._digest.hexdigest()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, content: Any) -> int:
        """Copy `content` (it may change afterwards)."""
        view = memoryview(content).cast("B")
        done = 0
        while done < len(view):
            if self._buffer is None:
                self._buffer = self._free_buffer()
            count = min(BLOCK_BYTES - self._filled, len(view) - done)
            memoryview(self._buffer)[self._filled : self._filled + count] = view[done : done + count]
            self._filled += count
            done += count
            if self._filled == BLOCK_BYTES:
                self._hand_over_buffer()
        self._position += len(view)
        return len(view)

    def append(self, block: memoryview) -> None:
        """Hand over `block` without a copy: its memory must not change any more."""
        self._hand_over_buffer()
        self._hand_over(block, None)
        self._position += len(block)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def close(self) -> None:
        """Errors: OSError if the disk refused anything."""
        if self.closed:
            return
        try:
            self._hand_over_buffer()
            while self._pending:
                self._settle_oldest()
            if self._sync is not None:
                self._sync.result()
            os.fsync(self._fd)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Stop the threads and close the file as it is."""
        if self.closed:
            return
        for executor in (self._writer, self._hasher, self._syncer):
            if executor is not None:
                executor.shutdown(wait=True, cancel_futures=True)
        os.close(self._fd)
        super().close()

    def _hand_over_buffer(self) -> None:
        if self._buffer is not None:
            self._hand_over(memoryview(self._buffer)[: self._filled], self._buffer)
            self._buffer, self._filled = None, 0

    def _free_buffer(self) -> bytearray:
        while not self._free:
            self._settle_oldest()
        return self._free.pop()

    def _hand_over(self, block: memoryview, buffer: bytearray | None) -> None:
        while len(self._pending) >= _IN_FLIGHT:
            self._settle_oldest()
        futures: list[Future[Any]] = [self._writer.submit(self._write_block, block)]
        if self._hasher is not None:
            futures.append(self._hasher.submit(self._digest.update, block))
        self._pending.append((futures, buffer))

    def _settle_oldest(self) -> None:
        futures, buffer = self._pending.popleft()
        for future in futures:
            future.result()
        if buffer is not None:
            self._free.append(buffer)

    def _write_block(self, block: memoryview) -> None:
        done = 0
        while done < len(block):
            done += os.write(self._fd, block[done:])
        self._unsynced += len(block)
        if self._unsynced >= _SYNC_BYTES and (self._sync is None or self._sync.done()):
            if self._sync is not None:
                self._sync.result()
            self._unsynced = 0
            self._sync = self._syncer.submit(os.fdatasync, self._fd)
