"""Runs commands in forks of one process that has imported everything: a rank starts in milliseconds, not in 5 s.

Only the import is saved: each command and each of its ranks is a process of its own, with its own environment, streams,
signals and exit code. tests/tools and tests/examples start commands as a user does, from nothing.

    run(["-m", "tools", "train", ...], env={...}, cwd=..., timeout=...)  ->  subprocess.CompletedProcess
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

PRELOADED = (
    "megatron_synE.runtime.mcore",  # first: it gives megatron-core its view of torch
    "megatron_synE.assemble",
    "megatron_synE.trainer",
    "megatron_synE.train",
    "megatron_synE.start",
    "megatron_synE.checkpoint.load",
    "megatron_synE.checkpoint.save",
    "megatron_synE.checkpoint.weights",
    "tools.cli",
    "megatron_synE.checkpoint.hf_export",
    "tools.checkpoint.importer",
    "tools.checkpoint.verifier",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)
ROOT = Path(__file__).parents[1]


def run(
    arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """`python <arguments>`. Errors: subprocess.TimeoutExpired, after killing the command and its ranks."""
    with Running(arguments, env=env, cwd=cwd) as command:
        code = command.wait(timeout)
        return subprocess.CompletedProcess(list(arguments), code, *command.said())


class Running:
    """`python <arguments>`, begun; a context manager that kills what has not ended."""

    def __init__(self, arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> None:
        self._arguments = list(arguments)
        self._open = contextlib.ExitStack()
        self._connection = self._open.enter_context(socket.socket(socket.AF_UNIX))
        self._connection.connect(str(_server()))
        self._streams = [self._open.enter_context(tempfile.TemporaryFile()) for _ in range(2)]  # noqa: SIM115  # closed by __exit__
        request = json.dumps({"arguments": self._arguments, "env": dict(env), "cwd": str(cwd)}).encode()
        descriptors = [stream.fileno() for stream in self._streams]
        socket.send_fds(self._connection, [len(request).to_bytes(4, "big")], descriptors)
        self._connection.sendall(request)
        self.pid = int.from_bytes(_received(self._connection, 4), "big")
        """Also of its process group, in which its ranks are."""
        self.returncode: int | None = None

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self._open.close()

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self._arguments, timeout)
            try:
                self.returncode = int.from_bytes(_received(self._connection, 4), "big", signed=True)
            except ConnectionError:
                self.returncode = -signal.SIGKILL
        return self.returncode

    def said(self) -> tuple[str, str]:
        """Its stdout and stderr, once it has ended."""
        texts = []
        for stream in self._streams:
            stream.seek(0)
            texts.append(stream.read().decode())
        return texts[0], texts[1]


def address() -> Path:
    """Of the warm process, started if it is not yet there: for tests/warm_client.py."""
    return _server()


@cache
def _server() -> Path:
    path = Path(tempfile.mkdtemp(prefix="warm")) / "socket"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", str(path)], cwd=ROOT, env=environment, stdout=subprocess.PIPE
    )
    atexit.register(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", "the warm process did not start; its message stands above"
    return path


def _received(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data


def serve(path: str) -> NoReturn:
    """Import everything, then fork a child for each connection."""
    for module in PRELOADED:
        importlib.import_module(module)
    gc.freeze()  # or the first collection in a child would copy every page
    assert threading.active_count() == 1, "a fork would lose the other threads"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children: they answer for themselves
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    header, descriptors, _, _ = socket.recv_fds(connection, 4, 2)
    request = json.loads(_received(connection, int.from_bytes(header, "big")))
    os.setpgrp()
    connection.sendall(os.getpid().to_bytes(4, "big"))
    for number, descriptor in zip((1, 2), descriptors, strict=True):
        os.dup2(descriptor, number)
    os.chdir(request["cwd"])
    import megatron_synE.runtime.launch as launch

    launch.subprocess = SimpleNamespace(Popen=ForkedRank)  # type: ignore[assignment]
    _become(request["arguments"], request["env"], lambda code: connection.sendall(code.to_bytes(4, "big", signed=True)))


class ForkedRank:
    """What launch() needs of subprocess.Popen, for a fork of this process."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], preexec_fn: Callable[[], None]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            preexec_fn()
            _become(command[1:], env, lambda code: None)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _become(arguments: Sequence[str], env: Mapping[str, str], tell: Callable[[int], Any]) -> NoReturn:
    """Live as `python <arguments>` in this environment, then end; `tell` hears the exit code first."""
    os.environ.clear()
    os.environ.update(env)
    real_exit, this = os._exit, os.getpid()

    def leave(code: int) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        if os.getpid() == this:  # not a worker that it forked
            tell(code)
        real_exit(code)

    os._exit = leave  # type: ignore[assignment]  # a rank ends itself this way
    code = 0
    try:
        if arguments[0] == "-m":
            sys.argv = list(arguments[1:])
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(arguments[1], {"__name__": "__main__"})
        else:
            sys.argv = list(arguments)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001  # as the interpreter does
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    leave(code)


if __name__ == "__main__":
    serve(sys.argv[1])
