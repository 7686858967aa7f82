"""A server of one's own, for a job that brings it along: started on a free port, waited for, ended with the job."""

import logging
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import httpx

from data_mixers.errors import ConfigError, DataError
from megatron_synE.runtime.launch import die_with_parent
from tools.data.chat import MISTAKEN, key_header

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"  # what serves one job is nobody else's


@contextmanager
def own_server(command: str, *, wait_seconds: float) -> Iterator[str]:
    """The URL, up to /v1, of a server that `command` starts; {port} becomes a free port, {host} its address.

    It is ready when GET /v1/models answers 200, asked with the environment's key. Errors: ConfigError for a command
    without {port} or that cannot be started, or a key that is refused; DataError if it ends, or is not ready after
    wait_seconds.
    """
    if "{port}" not in command:
        raise ConfigError(f"--server-command {command!r} must hold {{port}}")
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    try:
        process = subprocess.Popen(
            shlex.split(command.replace("{port}", str(port)).replace("{host}", HOST)),
            start_new_session=True,
            # A call that is killed must not leave a server on the GPU of its successor.
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"--server-command {command!r}: {error}") from error
    url = f"http://{HOST}:{port}/v1"
    try:
        _wait_until_ready(process, url, wait_seconds)
        yield url
    finally:
        _end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, wait_seconds: float) -> None:
    logger.info("waiting for %s", url)
    until = time.monotonic() + wait_seconds
    headers = key_header()
    while time.monotonic() < until:
        if process.poll() is not None:
            raise DataError(f"the server ended with code {process.returncode} before it was ready; see its output")
        try:
            status = httpx.get(f"{url}/models", headers=headers, timeout=5.0, trust_env=False).status_code
            if status == 200:
                return
            if status in (401, 403):
                raise ConfigError(f"the server of --server-command answers {status}: {MISTAKEN[status]}")
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise DataError(f"the server was not ready after {wait_seconds:.0f} s; allow more with --server-wait")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
