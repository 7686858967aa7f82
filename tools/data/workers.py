"""Runs jobs here or in spawned processes, each opening the tokenizer when it needs it; results come in job order."""

import ctypes
import os
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

from data_mixers.errors import DataError
from megatron_synE.data.tokenizers import Tokenizer, load_tokenizer

Result = TypeVar("Result")
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """How a worker opens the tokenizer that the parent has opened and checked."""

    path: Path
    eos_token: str | None
    engine: Literal["auto", "reference"]


@dataclass(frozen=True)
class Job:
    """One call: function(open_tokenizer, report, *arguments), where report(n) adds to the progress."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def run_jobs(
    jobs: Sequence[Job], *, workers: int, tokenizer: Tokenizer, spec: TokenizerSpec, on_progress: Callable[[int], None]
) -> Generator[Any, None, None]:
    """The results of all jobs in their order.

    Errors: what a job raises; DataError if a worker process dies.
    """
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield job.function(lambda: tokenizer, on_progress, *job.arguments)
        return
    context = get_context("spawn")  # a fork would copy the threads' locks of the Rust tokenizers
    counter = context.Value(ctypes.c_int64, 0)
    shown = 0
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_initialise, initargs=(spec, counter)
    ) as pool:
        futures: list[Future[Any]] = [pool.submit(_call, job) for job in jobs]
        try:
            for future in futures:
                while not future.done():
                    time.sleep(POLL_SECONDS)
                    shown = _report(counter, shown, on_progress)
                shown = _report(counter, shown, on_progress)
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process died, most likely for want of memory; run again with fewer --workers"
            ) from error
        finally:
            for future in futures:
                future.cancel()


def _report(counter: Any, shown: int, on_progress: Callable[[int], None]) -> int:
    value = int(counter.value)
    if value > shown:
        on_progress(value - shown)
    return value


_spec: TokenizerSpec | None = None
_counter: Any = None


def _initialise(spec: TokenizerSpec, counter: Any) -> None:
    global _spec, _counter
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    os.environ["RAYON_NUM_THREADS"] = "1"
    _spec, _counter = spec, counter


def _call(job: Job) -> Any:
    return job.function(_open_tokenizer, _add, *job.arguments)


@cache
def _open_tokenizer() -> Tokenizer:
    assert _spec is not None  # set by _initialise
    return load_tokenizer(_spec.path, eos_token=_spec.eos_token, engine=_spec.engine)


def _add(amount: int) -> None:
    with _counter.get_lock():
        _counter.value += amount
