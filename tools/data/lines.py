"""Lines of plain, gzip and zstandard files in bounded memory: a line longer than the limit is passed over, not held."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Literal

from data_mixers.errors import DataError

UTF8_BOM = b"\xef\xbb\xbf"
_TOLD_BYTES = 1 << 20  # between two reports of progress
_SKIP_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 18  # Python's own 8 KB would be a system call for every few lines


def byte_range(
    path: Path, start: int, stop: int, *, limit: int, on_bytes: Callable[[int], None]
) -> Iterator[tuple[int, bytes | None]]:
    """(first byte, line) of the lines that begin in start..stop-1 of a plain file, whole; None: longer than limit."""
    with path.open("rb", buffering=_BUFFER_BYTES) as raw:
        position = start
        if start:
            raw.seek(start - 1)  # the rest of a line that began before, but never past the end of this range
            position += _skip_line(raw, most=stop - start + 1) - 1
        told = position
        while position < stop:
            line, length = _limited(raw, limit)
            if not length:
                break
            yield position, line if position or line is None else line.removeprefix(UTF8_BOM)
            position += length
            if position - told >= _TOLD_BYTES:
                on_bytes(position - told)
                told = position
        on_bytes(position - told)


def compressed(
    path: Path, kind: Literal["gz", "zst"], *, limit: int, on_bytes: Callable[[int], None]
) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line) of a compressed file; None: longer than limit.

    Errors: DataError naming the file if it is damaged or cut off.
    """
    import pyarrow  # whose reader, unlike zstandard's own, tells a file that is cut off from one that has ended

    if not path.stat().st_size:  # neither format allows it, and a full disk or quota leaves such files
        raise DataError(f"{path} is empty, which not even a {path.suffix} file of nothing is; write or copy it again")
    before = 0
    with path.open("rb") as raw:
        try:
            unpacked = gzip.GzipFile(fileobj=raw) if kind == "gz" else pyarrow.CompressedInputStream(raw, "zstd")
            stream = BufferedReader(unpacked)
            number = 0
            while True:
                line, length = _limited(stream, limit)
                if not length:
                    on_bytes(raw.tell() - before)
                    break
                number += 1
                yield number, line.removeprefix(UTF8_BOM) if line is not None and number == 1 else line
                if (now := raw.tell()) != before:
                    on_bytes(now - before)
                    before = now
        except (EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk, not of what is compressed
            raise DataError(f"{path} is damaged or cut off ({error}); compress or copy it again") from error


def _limited(stream: IO[bytes], limit: int) -> tuple[bytes | None, int]:
    """The next line (None if it is longer than limit) and how many bytes it takes; (b"", 0) at the end."""
    line = stream.readline(limit + 1)
    length = len(line)
    if length <= limit or line.endswith(b"\n"):
        return line, length
    return None, length + _skip_line(stream, most=None)


def _skip_line(stream: IO[bytes], *, most: int | None) -> int:
    """Bytes up to the end of the line, at most `most`; never more than 1 MB of them in memory."""
    skipped = 0
    while most is None or skipped < most:
        piece = stream.readline(_SKIP_BYTES if most is None else min(_SKIP_BYTES, most - skipped))
        skipped += len(piece)
        if not piece or piece.endswith(b"\n"):
            break
    return skipped
