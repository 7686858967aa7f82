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


def stopping(self: Trainer, samples: object) -> object:
    if os.environ["RANK"] == "1" and self.progress.iteration == int(sys.argv[1]):
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    return collate(self, samples)  # type: ignore[arg-type]


Trainer.collate = stopping  # type: ignore[assignment, method-assign]
end_as_one_rank(Path(sys.argv[2]), sys.argv[3:])
