"""One rank of a run that is killed, with all others and the launcher, behind a step: argv = iteration, config, …"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from megatron_synE.runtime.environment import hide_cuda

hide_cuda()

from megatron_synE.metrics import Metrics  # noqa: E402  # CUDA is hidden before torch is imported
from megatron_synE.train import end_as_one_rank  # noqa: E402  # likewise

row = Metrics.row


def deadly(self: Metrics, kind: str, iteration: int, **values: Any) -> None:
    row(self, kind, iteration, **values)
    if (kind, iteration, os.environ["RANK"]) == ("train", int(sys.argv[1]), "0"):
        os.killpg(0, signal.SIGKILL)  # a save in the background is wherever it is


Metrics.row = deadly  # type: ignore[method-assign]  # the moment of the kill is a row, not a time
end_as_one_rank(Path(sys.argv[2]), sys.argv[3:])
