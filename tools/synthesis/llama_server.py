"""`syne synth serve`: llama.cpp with OpenAI's interface, for a machine without a GPU; a cluster has vLLM instead."""

import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from data_mixers.errors import ConfigError, DataError


def serve(
    gguf: Annotated[Path, typer.Argument(help="The model, with its chat template in it.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one; the URL is printed.")] = 8000,
    parallel: Annotated[int, typer.Option(min=1, help="Answers at once; others wait.")] = 4,
    context: Annotated[int, typer.Option(min=64, help="Tokens of a question with its answer.")] = 4096,
    threads: Annotated[int | None, typer.Option(min=1, show_default="one per core")] = None,
) -> None:
    """A GGUF model behind OpenAI's interface on this machine alone (127.0.0.1), until it is stopped."""
    if not gguf.is_file():
        raise ConfigError(f"{gguf}: there is no such file; name a .gguf file")
    # Threads that spin while they wait for each other starve where other work shares the cores: two threads on two busy
    # cores gave 1.4 to 2.1 tokens/s so, 21 to 29 when they sleep instead. libgomp reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from xllamacpp import CommonParams, Server
    except ImportError as error:
        raise ConfigError(f"needs llama.cpp ({error}): pip install xllamacpp, apt-get install libgomp1") from error
    params = CommonParams()
    params.model.path = str(gguf)
    params.port, params.hostnames = port, ["127.0.0.1"]
    params.n_parallel, params.n_ctx = parallel, parallel * context  # the context is shared out evenly
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads or os.cpu_count() or 1
    params.ui, params.verbosity = False, 1  # errors alone: a client's message names them again
    try:
        server = Server(params)
    except RuntimeError as error:
        raise DataError(f"{gguf} on port {port}: {error}; is it a whole GGUF file, and the port free?") from error
    typer.echo(f"{server.listening_address}/v1")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # the answers under way are nobody's any more
    signal.pause()
