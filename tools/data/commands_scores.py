"""`syne data`: scores, difficulty, and what a folder holds. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_mixers.errors import ConfigError
from tools.cli_options import Workers, example, log_to_stderr
from tools.data.app import data_app
from tools.data.signals import SIGNALS
from tools.data.slurm_options import SlurmArray, with_slurm_options

ScoresName = Annotated[str, typer.Option(help="Name of the set of scores to read.")]


@data_app.command(
    "score-ppl",
    epilog=example(
        "syne data score-ppl --data data/stage1 --hf models/Meta-Llama-3-8B --tokenizer models/Meta-Llama-3-8B"
    ),
)
@with_slurm_options
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
    array: SlurmArray | None = None,
) -> None:
    """NLL, compression ratio, lexical diversity and characters per token of every document.

    Under torchrun, srun or a SLURM array every process takes its part; run the same command again to go on.
    """
    if device == "cpu":
        from megatron_synE.runtime.environment import hide_cuda

        hide_cuda()
    from tools.data.score import ScoreOptions
    from tools.data.score import score_ppl as run_score_ppl

    if signals_only and (checkpoint is not None or hf is not None):
        raise ConfigError("--signals-only needs no model; leave --checkpoint and --hf out, or --signals-only")
    if not signals_only and checkpoint is None and hf is None:
        raise ConfigError("give the model with --checkpoint or --hf, or ask for --signals-only")
    log_to_stderr()
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
            array=array,
        )
    )
    typer.echo(f"{report.num_complete} of {report.num_files} token files are scored")


@data_app.command(
    "sort",
    epilog=example("syne data sort --data data/stage1 --out data/stage1_sorted --sources 'zh/web/*' --buckets 10"),
)
@with_slurm_options
def sort(
    data: Annotated[Path, typer.Option(help="Folder of token files with scores.")],
    out: Annotated[Path, typer.Option(help="The folder to write: sorted sources, and all others unchanged.")],
    by: Annotated[
        str,
        typer.Option(help=f"nll, {', '.join(SIGNALS)}, or difference:A-B of two names."),
    ] = "nll",
    name: ScoresName = "default",
    buckets: Annotated[int, typer.Option(min=1, help="Per topic, with equally many tokens.")] = 10,
    sources: Annotated[str, typer.Option(help="Glob over the names of training sources to sort.")] = "*",
    descending: Annotated[bool, typer.Option("--descending", help="Highest key first.")] = False,
    drop_tails: Annotated[
        str, typer.Option(metavar="LOW,HIGH", help="Shares of each topic's tokens to leave out at both ends.")
    ] = "0,0",
    keep_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of each topic's documents, evenly over the order.")
    ] = 1.0,
    workers: Workers = 1,
    array: SlurmArray | None = None,
) -> None:
    """Write each topic in the order of its PPL, cut into difficulty buckets, for a curriculum to read."""
    from tools.data.sort import SortOptions
    from tools.data.sort import sort as run_sort

    try:
        low, high = map(float, drop_tails.split(","))
    except ValueError as error:
        raise ConfigError(f"--drop-tails {drop_tails!r}: write two shares, e.g. 0.01,0.01") from error
    log_to_stderr()
    manifest = run_sort(
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
            array=array,
        )
    )
    typer.echo(str(manifest))


@data_app.command(epilog=example("syne data stats --data data/stage1 --plot stage1.png"))
def stats(
    data: Annotated[Path, typer.Option(help="Folder of token files, with or without a manifest.")],
    plot: Annotated[Path | None, typer.Option(help="Draw it into this .png file.", show_default=False)] = None,
    format: Annotated[Literal["text", "json"], typer.Option(help="Of the output.")] = "text",
    scores: ScoresName = "default",
) -> None:
    """Tokens, documents, lengths and PPL per source; what is missing for it is said."""
    import json
    from dataclasses import asdict

    from tools.data.stats import stats as run_stats
    from tools.data.stats import table

    found = run_stats(data, scores_name=scores)
    if plot is not None:
        from tools.data.stats_figure import draw

        draw(found, plot)
    typer.echo(table(found) if format == "text" else json.dumps([asdict(entry) for entry in found], ensure_ascii=False))


@data_app.command(
    epilog=example(
        "syne data sample --data data/stage1 --tokenizer models/Meta-Llama-3-8B --source 'zh/web/*' --percentile 90"
    )
)
def sample(
    data: Annotated[Path | None, typer.Option(help="Folder of token files.", show_default=False)] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="HF folder, tokenizer.json, or tokenizer.model.", show_default=False)
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="Instead of --data: files of documents, may be repeated.", show_default=False),
    ] = None,
    source: Annotated[str, typer.Option(help="Glob over sources: zh/web/*.")] = "*",
    topic: Annotated[str | None, typer.Option(help="Only this topic.", show_default=False)] = None,
    percentile: Annotated[
        float | None, typer.Option(min=0.0, max=100.0, help="Of PPL, in each source.", show_default=False)
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Documents per source.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice.")] = 1234,
    scores: ScoresName = "default",
    text_key: Annotated[str, typer.Option(help="Key of the text in --input.")] = "text",
    max_characters: Annotated[int, typer.Option(min=1, help="Shown of each text.")] = 1000,
) -> None:
    """Show documents by source, topic and PPL percentile, with their ids and places."""
    from tools.data.sample import sample as run_sample
    from tools.data.sample import sample_files, shown

    if inputs and data is None and percentile is None:
        found = sample_files(tuple(inputs), text_key=text_key, topic=topic, num=num, seed=seed)
    elif data is not None and tokenizer is not None and not inputs:
        found = run_sample(
            data,
            tokenizer,
            source=source,
            topic=topic,
            percentile=percentile,
            num=num,
            seed=seed,
            scores_name=scores,
        )
    else:
        raise ConfigError("give --data with --tokenizer, or --input without --percentile")
    typer.echo("\n\n".join(shown(entry, max_characters=max_characters) for entry in found))
