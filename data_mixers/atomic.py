"""Files appear whole or not at all: temporary name beside the target, fsync, rename."""

import glob
import os
import shutil
from pathlib import Path


def temporary_path(target: Path) -> Path:
    """A name beside `target` that no other process writes to, on any machine that shares the file system."""
    return target.with_name(f".{target.name}.{os.uname().nodename}.{os.getpid()}.tmp")


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what processes of this machine that have ended left in `folder` under temporary names.

    name: of the target; None: of any. What a process that lives, or another machine, is writing stays.
    """
    stem = "*" if name is None else glob.escape(name)
    for left in folder.glob(f".{stem}.{glob.escape(os.uname().nodename)}.*.tmp*"):
        pid = left.name.rpartition(".tmp")[0].rpartition(".")[2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


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
