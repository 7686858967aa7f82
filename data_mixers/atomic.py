"""Files appear whole or not at all: temporary name beside the target, fsync, rename."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path


def temporary_path(target: Path) -> Path:
    """A name beside `target` that no other process writes to, on any machine that shares the file system."""
    return target.with_name(f".{target.name}.{_place()}.{os.getpid()}.tmp")


def sweep(folder: Path, name: str | None = None, *, replaced: bool = False) -> None:
    """Remove what processes of this machine that have ended left in `folder` under temporary names.

    name: of the target; None: of any. replaced: also what was put aside to make room for it, where that is there now.
    What a process that lives, another machine or another container is writing stays, and so does what may not be
    removed.
    """
    stem = ".+" if name is None else re.escape(name)
    ending = "tmp(-replaced)?" if replaced else "tmp"
    temporary = re.compile(rf"\.{stem}\.{re.escape(_place())}\.([0-9]+)\.{ending}", re.DOTALL)
    for left in folder.glob(".*.tmp*"):
        if (found := temporary.fullmatch(left.name)) and not _lives(int(found[1])):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
                continue
            with suppress(OSError):  # another user's
                left.unlink()


def _place() -> str:
    """Where a process's number is its own: containers may share a machine's name, and not its processes."""
    try:
        return f"{os.uname().nodename}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return os.uname().nodename


def _lives(pid: int) -> bool:
    """Not by a look into /proc, which may hide what other users run (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def publish(temporary: Path, target: Path) -> None:
    """Give a finished temporary file its final name, durably. Both lie in one folder."""
    sync(temporary)
    temporary.replace(target)
    sync(target.parent)


def write_atomic(target: Path, content: bytes) -> None:
    """Replace `target` by a file with this content; a crash leaves the old one or the new one."""
    temporary = temporary_path(target)
    try:
        temporary.write_bytes(content)
        publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's content, or renames and removals inside a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
