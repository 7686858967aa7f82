"""One bubblewrap process from start to end: output read up to a cap, nothing left alive."""

import json
import os
import resource
import select
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import FileIO
from typing import Literal

from data_mixers.errors import ConfigError
from tools.synthesis.control_group import ControlGroup

Reason = Literal["ok", "error", "time", "cpu time", "output", "memory", "killed"]
SETUP_SECONDS = 60.0
READ_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one run. Defaults are ours: ten times what a right answer to a classroom problem takes."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 5
    """Of each process."""
    memory_bytes: int = 512 << 20
    """Address space of each process; of all together where a cgroup can be made, else num_processes times this."""
    file_bytes: int = 4 << 20
    num_processes: int = 8
    """Processes and threads, the interpreter and bubblewrap's two included."""
    num_files: int = 64
    output_bytes: int = 64 << 10
    """Of stdout and stderr together; more ends the run."""

    def resource_limits(self) -> list[tuple[int, int, int]]:
        """(number, soft, hard) as resource.setrlimit takes them."""
        return [
            (resource.RLIMIT_CPU, self.cpu_seconds, self.cpu_seconds + 1),
            (resource.RLIMIT_AS, self.memory_bytes, self.memory_bytes),
            (resource.RLIMIT_FSIZE, self.file_bytes, self.file_bytes),
            # Counted inside the new user namespace since Linux 5.14; before, all processes of the same user count.
            (resource.RLIMIT_NPROC, self.num_processes, self.num_processes),
            (resource.RLIMIT_NOFILE, self.num_files, self.num_files),
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_MEMLOCK, 0, 0),
        ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    reason: Reason
    exit_code: int
    stdout: str
    stderr: str

    def summary(self) -> str:
        """One line: the reason, and the last line of stderr where it says more."""
        last = (self.stderr.strip().splitlines() or [""])[-1]
        return f"{self.reason} (exit code {self.exit_code})" + (f": {last[:200]}" if last else "")


def run_bubblewrap(
    command: Callable[[int, int, int, int], list[str]], *, program: str, stdin: str, limits: Limits, drop_to: int | None
) -> Outcome:
    """Run command(program_fd, info_fd, block_fd, alive_fd).

    Errors: ConfigError if the sandbox is not set up: a program that never began must not count as one that failed.
    """
    with ExitStack() as stack:
        group = stack.enter_context(ControlGroup(memory_bytes=limits.memory_bytes, num_processes=limits.num_processes))
        program_file, stdin_file = _memory_file(stack, program), _memory_file(stack, stdin)
        (info, told), (blocked, go), (began, alive) = _pipe(stack), _pipe(stack), _pipe(stack)
        inherited = (program_file.fileno(), told.fileno(), blocked.fileno(), alive.fileno())
        process = _start(command(*inherited), stdin_file, inherited, drop_to)
        stack.callback(_end, process)
        told.close()
        alive.close()
        child = _child_pid(info, process)
        try:
            pidfd = os.pidfd_open(child)
        except ProcessLookupError:
            raise _not_set_up(process.communicate()[1]) from None
        stack.callback(os.close, pidfd)
        stack.callback(_kill_all, pidfd)
        group.add(child)
        go.write(b"1")
        if not (_readable(began.fileno(), SETUP_SECONDS) and began.read(1)):
            _kill_all(pidfd)
            raise _not_set_up(process.communicate()[1])
        started = time.monotonic()  # a slow start on a busy machine is not the program's
        hit, stdout, stderr = _read(process, pidfd, started + limits.wall_seconds, limits.output_bytes)
        _kill_all(pidfd)
        code = process.wait()
        ran_out = group.ran_out_of_memory()
    printed, complained = (said.decode(errors="replace") for said in (stdout, stderr))
    reason = hit or _reason(code, stderr, ran_out=ran_out)
    return Outcome(reason, code, printed, complained)


def _start(
    command: list[str], stdin: FileIO, inherited: tuple[int, ...], drop_to: int | None
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=inherited, env={}, cwd="/",
            start_new_session=True, user=drop_to, group=drop_to, extra_groups=None if drop_to is None else [],
        )  # fmt: skip
    except OSError as error:
        raise _not_set_up(str(error).encode()) from error


def _memory_file(stack: ExitStack, text: str) -> FileIO:
    file = stack.enter_context(FileIO(os.memfd_create("sandbox"), "w+"))
    file.write(text.encode(errors="replace"))
    file.seek(0)
    return file


def _pipe(stack: ExitStack) -> tuple[FileIO, FileIO]:
    read, write = os.pipe()
    return stack.enter_context(FileIO(read, "r")), stack.enter_context(FileIO(write, "w"))


def _child_pid(info: FileIO, process: subprocess.Popen[bytes]) -> int:
    """The first process of the new pid namespace, which waits for our word."""
    text = b""
    deadline = time.monotonic() + SETUP_SECONDS
    while _readable(info.fileno(), deadline - time.monotonic()):
        part = info.read(READ_BYTES)
        if not part:
            break
        text += part
        with suppress(ValueError):
            return int(json.loads(text)["child-pid"])
    process.kill()
    _, stderr = process.communicate()
    raise _not_set_up(stderr)


def _not_set_up(said: bytes) -> ConfigError:
    return ConfigError(
        f"bubblewrap cannot set the sandbox up: {said.decode(errors='replace').strip() or 'it gave no reason'}"
    )


def _read(
    process: subprocess.Popen[bytes], pidfd: int, deadline: float, output_bytes: int
) -> tuple[Reason | None, bytes, bytes]:
    """Both streams until they and the program end, or the limit that was hit first."""
    assert process.stdout is not None and process.stderr is not None
    kept: dict[object, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    hit: Reason | None = None
    ended = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            for stream in (process.stdout, process.stderr):
                selector.register(stream, selectors.EVENT_READ)
            selector.register(ended, selectors.EVENT_READ)
            while len(selector.get_map()) > 0 and hit is None:
                events = selector.select(max(0.0, deadline - time.monotonic()))
                if not events:
                    hit = "time"
                for key, _ in events:
                    if key.fileobj == ended:  # the program is over: what it left behind must not hold the streams
                        selector.unregister(ended)
                        _kill_all(pidfd)
                    elif part := os.read(key.fd, READ_BYTES):
                        kept[key.fileobj] += part
                    else:
                        selector.unregister(key.fileobj)
                if sum(map(len, kept.values())) > output_bytes:
                    hit = "output"
    finally:
        os.close(ended)
    stdout, stderr = (bytes(kept[stream][:output_bytes]) for stream in (process.stdout, process.stderr))
    return hit, stdout, stderr


def _kill_all(pidfd: int) -> None:
    """End the first process of the pid namespace; the kernel ends all others before this one counts as ended."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    _readable(pidfd, None)


def _readable(descriptor: int, seconds: float | None) -> bool:
    """Whether there is something to read, or an end, before so many seconds. Not select: it stops at 1024 files."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if seconds is None else max(0.0, 1000 * seconds)))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _reason(code: int, stderr: bytes, *, ran_out: bool) -> Reason:
    if code == 0:
        return "ok"
    if ran_out or b"MemoryError" in stderr:
        return "memory"
    if code == 128 + signal.SIGXCPU:
        return "cpu time"
    return "killed" if code < 0 or code > 128 else "error"
