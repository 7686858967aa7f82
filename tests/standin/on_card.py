"""`python -m <module> …` on a card without a card: argv = library, module, its arguments.

At the end it tells how many operations ran on the card, so that nothing passes that ran beside it.
"""

import os
import runpy
import sys
from pathlib import Path
from typing import NoReturn

import torch

from tests.standin.card import make_card

if __name__ == "__main__":
    library, module, *arguments = sys.argv[1:]
    make_card(Path(library))
    sys.argv = [module, *arguments]
    leave, rank = os._exit, os.getpid()

    def tell() -> None:
        if os.getpid() != rank:  # a reader of samples, forked
            return
        sys.stderr.write(f"operations of the card: {torch.ops.standin.num_operations()}\n")
        sys.stderr.flush()

    def tell_and_leave(code: int) -> NoReturn:  # as a rank of a run ends
        tell()
        leave(code)

    os._exit = tell_and_leave
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        tell()
