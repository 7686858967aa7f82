"""`python -m tools.slurm.preflight` with next to nothing to multiply, copy and sum: argv = its own arguments."""

import os
import sys
from typing import Any

import torch

from tools.slurm import preflight

MOST = {"ones": 1 << 16, "randn": 64}


def small(name: str) -> Any:
    make = getattr(torch, name)
    return lambda *sizes, **named: make(*(min(size, MOST[name]) for size in sizes), **named)


for name in MOST:
    setattr(torch, name, small(name))
os._exit(preflight.main(sys.argv[1:]))
