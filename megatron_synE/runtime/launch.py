"""Starting the ranks of one machine by hand: what torchrun does, but with our exit codes and signals passed on."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from megatron_synE import exit_codes

_LIBC = ctypes.CDLL(None)
"""Opened here: between fork and exec another thread may hold the loader's lock."""
_GRACE_SECONDS = 30.0
"""After one rank has failed, how long the others may take to notice before they are killed."""
_HANG_GRACE_SECONDS = 5.0
"""After a rank has found a hang it has waited for the others already; one that is stopped will never notice."""
_POLL_SECONDS = 0.05


def default_nproc(device: Literal["auto", "cpu", "cuda"]) -> int:
    """One rank per visible GPU; one on a CPU."""
    if device == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def launch(arguments: Sequence[str], nproc: int) -> int:
    """Run `python <arguments>` as ranks 0 .. nproc-1 of this machine and wait for all.

    TERM, INT, USR1 and USR2 are passed to every rank. Returns 0 if all finished, else the first non-zero exit code;
    what is left then gets TERM, and KILL after a grace time. torchrun would die of USR1 itself
    and turns every code into 1.
    """
    port = _free_port()
    # Of the cores that this process may use: a job has a few of its node's.
    threads = str(max(1, len(os.sched_getaffinity(0)) // nproc))
    # The ranks must find the same packages as this process, wherever it was started.
    path = os.pathsep.join(p for p in (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")) if p)
    processes = []
    for rank in range(nproc):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(nproc),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
            "PYTHONPATH": path,
        }
        processes.append(subprocess.Popen([sys.executable, *arguments], env=environment, preexec_fn=die_with_parent))

    def forward(number: int, frame: object) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    previous = {number: signal.signal(number, forward) for number in numbers}
    try:
        return _wait(processes)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """For preexec_fn, Linux: the child gets it when the thread that started it ends, so that no orphan goes on."""
    pr_set_pdeathsig = 1
    _LIBC.prctl(pr_set_pdeathsig, number)


def _wait(processes: Sequence["subprocess.Popen[bytes]"]) -> int:
    first_failure: int | None = None
    deadline = float("inf")
    while True:
        codes = [process.poll() for process in processes]
        if first_failure is None:
            failed = [code for code in codes if code]
            # A rank that says why wins over one that a signal, or its peer's death, ended.
            spoken = [code for code in failed if code in exit_codes.MEANINGS]
            if failed:
                first_failure = (spoken or failed)[0]
                is_hang = first_failure == exit_codes.HANG
                deadline = time.monotonic() + (_HANG_GRACE_SECONDS if is_hang else _GRACE_SECONDS)
        if all(code is not None for code in codes):
            if first_failure is None:
                return exit_codes.FINISHED
            spoken = [code for code in codes if code in exit_codes.MEANINGS and code]
            code = spoken[0] if spoken else first_failure
            return code if code > 0 else 128 - code
        if time.monotonic() > deadline:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        time.sleep(_POLL_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
