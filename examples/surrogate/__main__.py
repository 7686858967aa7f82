"""python -m examples.surrogate: real text, a small starting model, and the studies of examples/surrogate/small.

prepare ─> share ─ law ─> controllers ─> order ─> transfer ─ curves ─> mix simulate on the curves
Everything lies below runs/surrogate; a second call goes on where the first stopped. About forty minutes on one core.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from examples.quickstart.steps import exit_code_of, syne
from examples.surrogate.prepare import prepare

OUT = Path("runs/surrogate")  # the studies' files name it
SMALL = Path(__file__).parent / "small"
STUDIES = ("share", "controllers", "order", "transfer")


def main() -> int:
    """Returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.surrogate", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("prepare", *STUDIES), help="this step alone, after what it needs")
    options = parser.parse_args()
    return exit_code_of(partial(run, options.only))


def run(only: str | None) -> None:
    """What the studies stand on, then each of them, or `only` this one."""
    prepare(OUT)
    for study in STUDIES:
        if only in (None, study):
            run_study(study)


def run_study(study: str) -> None:
    """One study and what is made of it. --anyway: what it cannot resolve is said in its table, and shown too."""
    folder = OUT / "studies" / study
    syne("surrogate", "run", SMALL / f"{study}.yaml", "--out", folder, "--anyway")
    if study == "share":
        syne("surrogate", "law", folder)
    if study == "transfer":
        curves = folder / "curves.json"
        syne("surrogate", "curves", folder, "--language", "zh", "--out", curves)
        syne("mix", "simulate", "--curves", curves, "--label-noise", 0, "--worlds", 20)


if __name__ == "__main__":
    sys.exit(main())
