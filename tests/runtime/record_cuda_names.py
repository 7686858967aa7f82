"""One rank of a run whose megatron.core modules see a torch.cuda that notes every name it is asked for.

Usage: record_cuda_names.py OUT RUN.yaml [key=value ...]; writes OUT/<rank>.json with the names asked for ("asked") and
those of them that the view does not answer itself ("fell_through": they reach the real torch.cuda).
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
out.write_text(json.dumps({"asked": sorted(asked), "fell_through": sorted(fell_through)}))
sys.exit(code)
