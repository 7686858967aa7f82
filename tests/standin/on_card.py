"""`python -m <module> …` on a card without a card: argv = library, module, its arguments."""

import runpy
import sys
from pathlib import Path

from tests.standin.card import make_card

if __name__ == "__main__":
    library, module, *arguments = sys.argv[1:]
    make_card(Path(library))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
