"""A control group around one sandbox, where this machine lets us make one: limits on all its processes together."""

import itertools
import os
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_count = itertools.count()


class ControlGroup:
    """Makes groups below this process's own, under cgroup version 1 or 2; where that is refused it does nothing.

    Version 2 hands a controller on only if the own group has it in cgroup.subtree_control (systemd: Delegate=yes).
    """

    def __init__(self, *, memory_bytes: int, num_processes: int) -> None:
        self._values = {
            "pids.max": num_processes,
            "memory.max": memory_bytes,
            "memory.swap.max": 0,
            "memory.limit_in_bytes": memory_bytes,
            "memory.memsw.limit_in_bytes": memory_bytes,
        }
        self._folders: list[Path] = []

    def __enter__(self) -> "ControlGroup":
        name = f"syne-sandbox-{os.getpid()}-{next(_count)}"
        for parent in _own_groups():
            folder = parent / name
            with suppress(OSError):
                folder.mkdir()
                self._folders.append(folder)
                for file, value in self._values.items():
                    if (folder / file).exists():
                        (folder / file).write_text(str(value))
        return self

    def __exit__(self, *error: object) -> None:
        for folder in self._folders:
            for _ in range(50):  # a group counts as in use for a moment after its last process has ended
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.01)

    @property
    def limits(self) -> list[str]:
        """The limits that hold, by the names of their files; empty where no group could be made."""
        return [file for folder in self._folders for file in self._values if (folder / file).exists()]

    def add(self, pid: int) -> None:
        """Put a process into the groups; what it starts later belongs to them too."""
        for folder in self._folders:
            with suppress(OSError):
                (folder / "cgroup.procs").write_text(str(pid))

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has ended a process of the group for its memory."""
        for folder in self._folders:
            for file in ("memory.events", "memory.oom_control"):
                with suppress(OSError):
                    lines = dict(line.split() for line in (folder / file).read_text().splitlines())
                    if int(lines.get("oom_kill", 0)) > 0:
                        return True
        return False


def _own_groups() -> list[Path]:
    """The folders of this process's groups with the pids or memory controller; see cgroups(7)."""
    found = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" and (ROOT / "cgroup.controllers").exists():
                found.append(ROOT / path.lstrip("/"))
            found += [ROOT / name / path.lstrip("/") for name in ("pids", "memory") if name in controllers.split(",")]
    return [folder for folder in found if folder.is_dir()]
