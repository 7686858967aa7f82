"""python -m examples.surrogate: real text, a small starting model, and the studies of examples/surrogate/small.

prepare ─> share ─ law ─> controllers ─> order ─> corruption ─> transfer ─ curves ─> mix simulate on the curves
Everything lies below runs/surrogate; a second call goes on where the first stopped. About fifty minutes on one core.
`--only scale` is not among them: it trains starting models of two more sizes first.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from examples.quickstart.steps import exit_code_of, syne
from examples.surrogate.prepare import WIDTHS, prepare

OUT = Path("runs/surrogate")  # the studies' files name it
SMALL = Path(__file__).parent / "small"
STUDIES = ("share", "controllers", "order", "corruption", "transfer")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.surrogate", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("prepare", *STUDIES, "scale"), help="this step alone, after what it needs")
    options = parser.parse_args()
    return exit_code_of(partial(run, options.only))


def run(only: str | None) -> None:
    """What the studies stand on, then each of them, or `only` this one."""
    prepare(OUT, starts=tuple(WIDTHS) if only == "scale" else ("middle",))
    for study in (*STUDIES, "scale"):
        if only == study or (only is None and study in STUDIES):
            run_study(study)


def run_study(study: str) -> None:
    """One study and what is made of it. --anyway: what it cannot resolve is said in its table, and shown too."""
    folder = OUT / "studies" / study
    syne("surrogate", "run", SMALL / f"{study}.yaml", "--out", folder, "--anyway")
    if study in ("share", "scale"):
        syne("surrogate", "law", folder)
    if study == "transfer":
        curves = folder / "curves.json"
        syne("surrogate", "curves", folder, "--language", "zh", "--out", curves)
        syne("mix", "simulate", "--curves", curves, "--label-noise", 0, "--worlds", 20)


if __name__ == "__main__":
    sys.exit(main())
