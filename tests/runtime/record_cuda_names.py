"""One rank of a run whose megatron.core modules see a torch.cuda that notes every name it is asked for.

Usage: record_cuda_names.py OUT RUN.yaml [key=value ...]; writes OUT/<rank>.json with the names asked for ("asked"),
those of them that the view does not answer itself ("fell_through": they reach the real torch.cuda), and which of the
heavy modules that a CPU has no use for were imported all the same ("heavy").
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from megatron_synE import train
from megatron_synE.runtime import cpu_compat

asked: set[str] = set()
fell_through: set[str] = set()


class RecordingCuda(cpu_compat._CudaOnCpu):
    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__"):
            asked.add(name)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            fell_through.add(name)
        return super().__getattr__(name)


cpu_compat._CudaOnCpu = RecordingCuda  # type: ignore[misc]  # before megatron.core is imported
code = train.main(Path(sys.argv[2]), sys.argv[3:])
out = Path(sys.argv[1]) / f"{os.environ['RANK']}.json"
heavy = [name for name in ("torch._inductor.compile_fx", "wandb", "transformers") if name in sys.modules]
out.write_text(json.dumps({"asked": sorted(asked), "fell_through": sorted(fell_through), "heavy": heavy}))
sys.exit(code)
