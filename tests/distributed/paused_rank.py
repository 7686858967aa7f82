"""One rank of a run that stops itself (SIGSTOP) inside a save: argv = before | after, iteration, config, overrides.

before: between the lease's check and the rename that makes the checkpoint visible; after: right after that rename.
"""

import signal
import sys
import threading
from pathlib import Path

from megatron_synE.runtime.environment import hide_cuda

hide_cuda()

from megatron_synE.train import end_as_one_rank  # noqa: E402

MOMENT, ITERATION = sys.argv[1], int(sys.argv[2])
rename = Path.rename


def stop_here() -> None:
    # Sent to the process, this thread could run on until another one has taken the signal.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def paused(self: Path, target: Path) -> Path:
    is_publishing = target.name == f"iter_{ITERATION:07d}"
    if is_publishing and MOMENT == "before":
        stop_here()
    renamed = rename(self, target)
    if is_publishing and MOMENT == "after":
        stop_here()
    return renamed


Path.rename = paused  # type: ignore[method-assign, assignment]
end_as_one_rank(Path(sys.argv[3]), sys.argv[4:])
