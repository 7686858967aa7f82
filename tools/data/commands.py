"""`syne data`: the commands' options. Nothing heavy is imported before a command runs."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tools.cli_example import example

data_app = typer.Typer(
    help="Turn raw text into tokenised, described data.",
    epilog=example("syne data preprocess --help"),
    no_args_is_help=True,
    rich_markup_mode=None,
)


@data_app.command(
    epilog=example(
        "syne data preprocess --input 'pages/*.jsonl' --tokenizer models/Meta-Llama-3-8B --out data/stage1",
        "--language zh --source web --topic-key topic --holdout 200 --workers 2",
    )
)
def preprocess(
    inputs: Annotated[
        list[str], typer.Option("--input", help="File or glob, may be repeated: .jsonl, .gz, .zst, .parquet.")
    ],
    tokenizer: Annotated[Path, typer.Option(help="HF folder, tokenizer.json, or tokenizer.model.")],
    out: Annotated[Path, typer.Option(help="Folder; other sources in it stay.")],
    text_key: Annotated[str, typer.Option(help="Key of the text.")] = "text",
    language: Annotated[str, typer.Option(help="zh, en, ...; und: undetermined.")] = "und",
    source: Annotated[str, typer.Option(help="web, book, code, ...")] = "web",
    topic: Annotated[str | None, typer.Option(help="One topic for all documents.", show_default=False)] = None,
    topic_key: Annotated[str | None, typer.Option(help="Key of each document's topic.", show_default=False)] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")] = 1,
    holdout: Annotated[int, typer.Option(min=0, help="Documents per topic kept from training.")] = 0,
    role: Annotated[
        Literal["train", "validation"], typer.Option(help="validation: everything of this call is held out.")
    ] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Of the order of documents.")] = 1234,
    eos_token: Annotated[
        str | None, typer.Option(help="Put after each document; default: the tokenizer's own.", show_default=False)
    ] = None,
    max_bad_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Refuse the input above this share of bad lines.")
    ] = 0.01,
    max_bad_lines: Annotated[int, typer.Option(min=0, help="So many bad lines are always accepted.")] = 10,
) -> None:
    """Raw text to .bin/.idx per (language, source, topic), manifest.json and quarantine.jsonl."""
    from tools.data.preprocess import PreprocessOptions
    from tools.data.preprocess import preprocess as run_preprocess

    _log_to_stderr()
    report = run_preprocess(
        PreprocessOptions(
            inputs=tuple(inputs),
            tokenizer=tokenizer,
            out=out,
            text_key=text_key,
            language=language,
            source=source,
            topic=topic,
            topic_key=topic_key,
            workers=workers,
            holdout=holdout,
            role=role,
            seed=seed,
            eos_token=eos_token,
            max_bad_share=max_bad_share,
            max_bad_lines=max_bad_lines,
        )
    )
    typer.echo(str(report.manifest_path))


@data_app.command(
    "score-ppl",
    epilog=example(
        "syne data score-ppl --data data/stage1 --hf models/Meta-Llama-3-8B --tokenizer models/Meta-Llama-3-8B"
    ),
)
def score_ppl(
    data: Annotated[Path, typer.Option(help="Folder of token files with manifest.json.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="An iter_* folder, or a run: its newest.", show_default=False)
    ] = None,
    hf: Annotated[Path | None, typer.Option(help="Folder with config.json and weights.", show_default=False)] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Gives the cheap signals; left out, they are null.", show_default=False)
    ] = None,
    signals_only: Annotated[bool, typer.Option("--signals-only", help="No model: the cheap signals alone.")] = False,
    sources: Annotated[str, typer.Option(help="Glob over source names.")] = "*",
    name: Annotated[str, typer.Option(help="Of this set of scores, beside a first one.")] = "default",
    seq_length: Annotated[
        int | None, typer.Option(min=1, help="Default: the model's context, at most 4096.", show_default=False)
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, help="Context of a long document's later windows; default: 1/16.", show_default=False),
    ] = None,
    micro_batch_size: Annotated[int, typer.Option(min=1, help="seq_lengths of tokens in a forward pass.")] = 1,
    workers: Annotated[
        int, typer.Option("--workers", "--nproc", min=1, help="Processes, each with the whole model: one per GPU.")
    ] = 1,
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], typer.Option(help="auto: bf16 where the hardware multiplies it.")
    ] = "auto",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.")] = "auto",
) -> None:
    """NLL, compression ratio, lexical diversity and characters per token of every document.

    Under torchrun, srun or a SLURM array every process takes its part; run the same command again to go on.
    """
    if device == "cpu":
        from megatron_synE.runtime.environment import hide_cuda

        hide_cuda()
    from data_mixers.errors import ConfigError
    from tools.data.score import ScoreOptions
    from tools.data.score import score_ppl as run_score_ppl

    if signals_only and (checkpoint is not None or hf is not None):
        raise ConfigError("--signals-only needs no model; leave --checkpoint and --hf out, or --signals-only")
    if not signals_only and checkpoint is None and hf is None:
        raise ConfigError("give the model with --checkpoint or --hf, or ask for --signals-only")
    _log_to_stderr()
    report = run_score_ppl(
        ScoreOptions(
            data=data,
            checkpoint=checkpoint,
            hf=hf,
            tokenizer=tokenizer,
            sources=sources,
            name=name,
            seq_length=seq_length,
            overlap=overlap,
            micro_batch_size=micro_batch_size,
            workers=workers,
            precision=precision,
            device=device,
        )
    )
    typer.echo(f"{report.num_complete} of {report.num_files} token files are scored")


@data_app.command(
    "sort",
    epilog=example("syne data sort --data data/stage1 --out data/stage1_sorted --sources 'zh/web/*' --buckets 10"),
)
def sort(
    data: Annotated[Path, typer.Option(help="Folder of token files with scores.")],
    out: Annotated[Path, typer.Option(help="The folder to write: sorted sources, and all others unchanged.")],
    by: Annotated[
        str,
        typer.Option(
            help="nll, compression_ratio, lexical_diversity, characters_per_token, or difference:A-B of two names."
        ),
    ] = "nll",
    name: Annotated[str, typer.Option(help="Of the set of scores to read.")] = "default",
    buckets: Annotated[int, typer.Option(min=1, help="Per topic, with equally many tokens.")] = 10,
    sources: Annotated[str, typer.Option(help="Glob over the names of training sources to sort.")] = "*",
    descending: Annotated[bool, typer.Option("--descending", help="Highest key first.")] = False,
    drop_tails: Annotated[
        str, typer.Option(metavar="LOW,HIGH", help="Shares of each topic's tokens to leave out at both ends.")
    ] = "0,0",
    keep_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of each topic's documents, evenly over the order.")
    ] = 1.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")] = 1,
) -> None:
    """Write each topic in the order of its PPL, cut into difficulty buckets, for a curriculum to read."""
    from data_mixers.errors import ConfigError
    from tools.data.sort import SortOptions
    from tools.data.sort import sort as run_sort

    try:
        low, high = map(float, drop_tails.split(","))
    except ValueError as error:
        raise ConfigError(f"--drop-tails {drop_tails!r}: write two shares, e.g. 0.01,0.01") from error
    _log_to_stderr()
    report = run_sort(
        SortOptions(
            data=data,
            out=out,
            by=by,
            name=name,
            buckets=buckets,
            sources=sources,
            descending=descending,
            drop_tails=(low, high),
            keep_share=keep_share,
            workers=workers,
        )
    )
    typer.echo(str(report.manifest_path))


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
