"""`syne data`: text to token ids. Nothing heavy is imported before a command runs."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_mixers.errors import ConfigError
from tools.cli_options import example, log_to_stderr, takes
from tools.data.app import data_app
from tools.data.options import PreprocessOptions, TokenizerPath
from tools.data.slurm_options import with_slurm_options


@data_app.command(
    epilog=example(
        "syne data preprocess --input 'pages/*.jsonl' --tokenizer models/Meta-Llama-3-8B --out data/stage1",
        "--language zh --source web --topic-key topic --holdout 200 --workers 2",
    )
)
@with_slurm_options
@takes(PreprocessOptions)
def preprocess(
    options: PreprocessOptions,
    holdout: Annotated[
        str, typer.Option(help="Documents per topic kept from training; auto: enough for an error of 0.2 % in log PPL.")
    ] = "0",
    holdout_scores: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="BEFORE AFTER",
            help="Scores files of one token file by two checkpoints, to measure what auto assumes as 0.05 nats.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Raw text to .bin/.idx per (language, source, topic), manifest.json, quarantine.jsonl; resumable."""
    from tools.data.holdout import measured_sd
    from tools.data.preprocess import preprocess as run_preprocess

    log_to_stderr()
    if holdout != "auto" and not holdout.isdecimal():
        raise ConfigError(f"--holdout {holdout} must be a number of documents, or auto")
    if holdout_scores is not None and holdout == "0":
        raise ConfigError("--holdout-scores has no effect without --holdout")
    sd = None if holdout_scores is None else measured_sd(*holdout_scores)
    if sd is not None:
        typer.echo(f"the change of a document's mean NLL varies by {sd:.3g} nats per token", err=True)
    num_held_out: int | Literal["auto"] = "auto" if holdout == "auto" else int(holdout)
    report = run_preprocess(replace(options, holdout=num_held_out, holdout_sd=sd))
    typer.echo(str(report.manifest_path))


@data_app.command(
    epilog=example("syne data probe --items probe.jsonl --tokenizer models/Meta-Llama-3-8B --out data/probe.json")
)
def probe(
    items: Annotated[Path, typer.Option(help='JSON lines: {"context": "...", "choices": [" a", " b"], "answer": 0}.')],
    tokenizer: TokenizerPath,
    out: Annotated[Path, typer.Option(help="The file to write, for mixture.guard.probe.")],
    language: Annotated[str, typer.Option(help="Of the items: the one that the guard watches.")] = "en",
    eos_token: Annotated[
        str | None, typer.Option(help="Put after each choice; default: the tokenizer's own.", show_default=False)
    ] = None,
) -> None:
    """Multiple-choice items to the token ids that the forgetting guard scores at every validation."""
    from tools.data.probe import make_probe

    made = make_probe(items, out, tokenizer_path=tokenizer, language=language, eos_token=eos_token)
    typer.echo(f"{out}: {len(made.items)} items, {made.num_documents} choices of at most {made.longest} tokens")
