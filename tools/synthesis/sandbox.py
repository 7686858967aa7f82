"""Untrusted Python, run where it can do no harm: bubblewrap, or not at all.

    require_sandbox() -> Sandbox       once: finds bubblewrap, an interpreter and a user, and tries them
    sandbox.run(program) -> Outcome    one process tree in its own user, pid, net, ipc, uts and cgroup namespaces
    sandbox.check(program, examples) -> Verdict

The program sees a read-only interpreter, an empty /tmp in memory, no network, no environment and none of this
machine's files. Limits hold before its first instruction, so nothing it does is trusted.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_mixers.errors import ConfigError
from tools.synthesis.sandbox_process import Limits, Outcome, run_bubblewrap

NOBODY = 65534
OLDEST_BUBBLEWRAP = (0, 8)  # the first with --disable-userns: nested namespaces would bring mounts of any size
INSTALL = "apt-get install bubblewrap (0.8 or newer)"
TMP_BYTES = 16 << 20
DEFAULT_LIMITS = Limits()
# Runs inside the sandbox before the program: a limit once lowered cannot be raised, and it is inherited by all that
# comes after. Set from outside they would need CAP_SYS_RESOURCE, which root in a container often lacks.
BEFORE = """import json, os, resource, sys
for number, soft, hard in json.loads(sys.argv[1]):
    resource.setrlimit(number, (soft, hard))
os.write(int(sys.argv[2]), b"1")
os.closerange(3, 256)
os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", "-X", "utf8", "/program.py"])
"""


@dataclass(frozen=True, kw_only=True)
class Example:
    """What a program must do; at least one of `stdout` and `test`."""

    stdin: str = ""
    stdout: str | None = None
    """What it must print; white space at line ends and at the end does not count."""
    test: str | None = None
    """Python that is run after the program in the same namespace and must not raise."""


@dataclass(frozen=True, slots=True)
class Verdict:
    passed: bool
    reason: str
    """Empty if passed, else what happened at the first example that failed."""


@dataclass(frozen=True)
class Sandbox:
    """A way of running that has been tried on this machine."""

    bubblewrap: Path
    python: Path
    """An interpreter outside any virtual environment: programs have the standard library only."""
    drop_to: int | None
    """The uid bubblewrap itself runs under; None: the caller's own, which is not root."""

    def run(self, program: str, *, stdin: str = "", limits: Limits = DEFAULT_LIMITS) -> Outcome:
        """Run a program to its end or to a limit.

        Nothing of it is alive when this returns. Can be called from several threads.
        Cost: 0.1 s a call, of which the interpreter alone takes 0.03 s (median of 40, two cores, both busy).
        Errors: ConfigError if the sandbox itself cannot be set up.
        """
        return run_bubblewrap(
            partial(_command, self, limits), program=program, stdin=stdin, limits=limits, drop_to=self.drop_to
        )

    def check(self, program: str, examples: Sequence[Example]) -> Verdict:
        """Run a program once per example and stop at the first failure.

        The expected output never enters the sandbox. A `test` counts only if control comes back after it, so a program
        that leaves early (sys.exit) fails; one that reads its own file on purpose could still pretend.
        """
        for number, example in enumerate(examples, start=1):
            reason = self._failure(program, example)
            if reason:
                return Verdict(False, f"example {number}: {reason}")
        return Verdict(bool(examples), "" if examples else "no examples")

    def _failure(self, program: str, example: Example) -> str:
        token = secrets.token_hex(16)
        if example.test is not None:
            program = f"{program}\n{example.test}\nprint('\\n{token}')\n"
        outcome = self.run(program, stdin=example.stdin)
        if outcome.reason != "ok":
            return outcome.summary()
        printed = outcome.stdout
        if example.test is not None:
            printed, found, _ = printed.rpartition(f"\n{token}")
            if not found:
                return "left before the test was over"
        if example.stdout is not None and _normal(printed) != _normal(example.stdout):
            return f"printed {_short(printed)} instead of {_short(example.stdout)}"
        return ""


def require_sandbox() -> Sandbox:
    """A sandbox that works on this machine, tried by running a program in it.

    Errors: ConfigError (exit code 2) with the cure; there is no weaker way of running.
    """
    bubblewrap = _bubblewrap()
    drop_to = NOBODY if os.geteuid() == 0 else None  # root inside a user namespace would still be root for its files
    failures = []
    for python in _interpreters():
        sandbox = Sandbox(bubblewrap, python, drop_to)
        try:
            outcome = sandbox.run("import os; print(os.getuid(), len(os.listdir('/proc/self/ns')))")
        except ConfigError as error:
            failures.append(f"{python}: {error}")
            continue
        if outcome.reason == "ok" and outcome.stdout.startswith(f"{NOBODY} "):
            return sandbox
        failures.append(f"{python}: {outcome.summary()}")
    raise ConfigError(
        "untrusted code cannot be run here, and is never run without bubblewrap's namespaces:\n  "
        + "\n  ".join(failures)
        + "\nAllow unprivileged user namespaces (sysctl user.max_user_namespaces=15000 and"
        " kernel.unprivileged_userns_clone=1; on Ubuntu an AppArmor profile for bwrap; in a container"
        " --security-opt seccomp=unconfined), and have an interpreter that every user can read"
        " (apt-get install python3)."
    )


def _bubblewrap() -> Path:
    found = shutil.which("bwrap")
    if found is None:
        raise ConfigError(f"untrusted code is run in bubblewrap only, and bwrap is not installed: {INSTALL}")
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    version = done.stdout.split()[-1] if done.stdout else ""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST_BUBBLEWRAP:
        raise ConfigError(f"{found} is version {version or 'unknown'}, too old to forbid nested namespaces: {INSTALL}")
    return Path(found)


def _interpreters() -> list[Path]:
    """Base interpreters, this process's first: its home may be closed to the user that bubblewrap runs as."""
    own = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    candidates = [own.resolve(), *(Path(name).resolve() for name in ("/usr/bin/python3", "/usr/local/bin/python3"))]
    return list(dict.fromkeys(path for path in candidates if path.is_file()))


def _command(
    sandbox: Sandbox, limits: Limits, program_fd: int, info_fd: int, block_fd: int, alive_fd: int
) -> list[str]:
    """bubblewrap's command line. Order matters: a mount point is made read-only after what lies below it."""
    command = [
        str(sandbox.bubblewrap), "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
        "--unshare-cgroup-try", "--disable-userns", "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox",
        "--cap-drop", "ALL", "--new-session", "--die-with-parent", "--clearenv", "--setenv", "PATH", "/usr/bin",
        "--setenv", "HOME", "/tmp", "--setenv", "LC_ALL", "C.UTF-8", "--setenv", "OMP_NUM_THREADS", "1",
    ]  # fmt: skip
    for path in _read_only(sandbox.python):
        is_link = Path(path).is_symlink()
        command += ["--symlink", str(Path(path).readlink()), path] if is_link else ["--ro-bind", path, path]
    # Every other place where a byte could be kept is read-only: the root and /dev are file systems in memory too.
    return [
        *command, "--proc", "/proc", "--dev", "/dev", "--size", str(TMP_BYTES), "--tmpfs", "/tmp",
        "--ro-bind-data", str(program_fd), "/program.py", "--remount-ro", "/dev", "--remount-ro", "/",
        "--chdir", "/tmp", "--info-fd", str(info_fd), "--block-fd", str(block_fd), "--",
        str(sandbox.python), "-I", "-S", "-c", BEFORE, json.dumps(limits.resource_limits()), str(alive_fd),
    ]  # fmt: skip


def _read_only(python: Path) -> list[str]:
    """The folders that hold the interpreter, its standard library and the C library."""
    prefix = python.parent.parent
    own = "/usr/bin" if prefix == Path("/usr") else str(prefix)
    return [*(path for path in ("/lib", "/lib64", "/usr/lib", "/usr/lib64") if Path(path).exists()), own]


def _normal(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
