"""One rank of a run whose rank 1 stops itself (SIGSTOP) in the step after iteration n: argv = n, config, overrides."""

import os
import signal
import sys
import threading
from pathlib import Path

from megatron_synE.runtime.environment import hide_cuda

hide_cuda()

from megatron_synE.train import end_as_one_rank  # noqa: E402
from megatron_synE.trainer import Trainer  # noqa: E402

collate = Trainer.collate
to_stop = [os.environ["RANK"] == "1"]


def stopping(self: Trainer, samples: object) -> object:
    # Once: woken, it must not stop again in the step's second micro-batch.
    if to_stop[0] and self.progress.iteration == int(sys.argv[1]):
        to_stop[0] = False
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    return collate(self, samples)  # type: ignore[arg-type]


Trainer.collate = stopping  # type: ignore[assignment, method-assign]
end_as_one_rank(Path(sys.argv[2]), sys.argv[3:])
