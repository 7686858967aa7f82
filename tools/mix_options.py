"""What `syne mix import-data-path` is asked for, field by field as on the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


@dataclass(frozen=True, kw_only=True)
class DataPathOptions:
    tokenizer: Annotated[Path, Option(help="Of the token files: HF folder, tokenizer.json or tokenizer.model.")]
    out: Annotated[Path, Option(help="Folder for manifest.json and schedule.json; token files are linked.")]
    seq_length: Annotated[int, Option(min=1, help="As Megatron-LM's --seq-length.")]
    tokens: Annotated[float, Option(help="To read with these weights, e.g. 100e9.")]
    data_path: Annotated[
        tuple[str, ...], Argument(metavar="[WEIGHT PREFIX]...", help="As after --data-path.", show_default=False)
    ] = ()
    """Weights and prefixes in turn, or prefixes alone, which weigh by their tokens."""
    data_args_path: Annotated[
        Path | None, Option(help="A file with that list instead, as Megatron-LM's option.", show_default=False)
    ] = None
    from_sample: Annotated[
        int | None,
        Option(min=0, help="Append to OUT's schedule: earlier samples stay as they are.", show_default=False),
    ] = None
    """None: a new schedule."""
    seed: Annotated[int, Option(min=0, help="Of the order of a new schedule.")] = 1234
    max_epochs: Annotated[float, Option(min=0.0, help="Refuse to read a source more often.")] = 4.0
    eos_token: Annotated[
        str | None, Option(help="That ends each document; default: the tokenizer's own.", show_default=False)
    ] = None
