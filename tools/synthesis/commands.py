"""`syne synth`: the commands' options. Nothing heavy is imported before a command runs."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tools.cli_example import example

synth_app = typer.Typer(
    help="Make, check and study synthetic question-answer pairs.",
    epilog=example("syne synth verifiable --kind algebra --language zh --num 1000 --out runs/algebra.jsonl.zst"),
    no_args_is_help=True,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option(help="File to write, .jsonl or .jsonl.zst; one that is there is replaced.")]
Seed = Annotated[int, typer.Option(min=0, help="Another seed, other choices.")]


@synth_app.command(
    epilog=example("syne synth verifiable --kind chemistry --language en --num 1000 --out runs/chemistry.jsonl.zst")
)
def verifiable(
    kind: Annotated[
        Literal["arithmetic", "number_theory", "algebra", "calculus", "chemistry"],
        typer.Option(help="chemistry needs: pip install --no-deps mendeleev"),
    ],
    num: Annotated[int, typer.Option(min=1, help="Pairs; the first N are the same for every number.")],
    out: Out,
    language: Annotated[str, typer.Option(help="zh or en.")] = "en",
    seed: Seed = 1234,
) -> None:
    """Pairs that no language model made, exact by construction, no problem twice."""
    from tools.synthesis.verifiable.write import write_items

    _log_to_stderr()
    typer.echo(write_items(kind, language, num=num, seed=seed, out=out))


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
