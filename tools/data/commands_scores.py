"""`syne data`: scores, difficulty, and what a folder holds. Nothing heavy is imported before a command runs."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_mixers.errors import ConfigError
from tools.cli_options import example, log_to_stderr, takes
from tools.data.app import data_app
from tools.data.options import ScoreOptions, ScoresName, SortOptions
from tools.data.slurm_options import with_slurm_options


@data_app.command(
    "score-ppl",
    epilog=example(
        "syne data score-ppl --data data/stage1 --hf models/Meta-Llama-3-8B --tokenizer models/Meta-Llama-3-8B"
    ),
)
@with_slurm_options
@takes(ScoreOptions)
def score_ppl(
    options: ScoreOptions,
    signals_only: Annotated[bool, typer.Option("--signals-only", help="No model: the cheap signals alone.")] = False,
) -> None:
    """NLL, compression ratio, lexical diversity and characters per token of every document.

    Under torchrun, srun or a SLURM array every process takes its part; run the same command again to go on.
    """
    if options.device == "cpu":
        from megatron_synE.runtime.environment import hide_cuda

        hide_cuda()
    from tools.data.score import score_ppl as run_score_ppl

    has_model = options.checkpoint is not None or options.hf is not None
    if signals_only and has_model:
        raise ConfigError("--signals-only needs no model; leave --checkpoint and --hf out, or --signals-only")
    if not signals_only and not has_model:
        raise ConfigError("give the model with --checkpoint or --hf, or ask for --signals-only")
    log_to_stderr()
    report = run_score_ppl(options)
    typer.echo(f"{report.num_complete} of {report.num_files} token files are scored")


@data_app.command(
    "sort",
    epilog=example("syne data sort --data data/stage1 --out data/stage1_sorted --sources 'zh/web/*' --buckets 10"),
)
@with_slurm_options
@takes(SortOptions)
def sort(
    options: SortOptions,
    drop_tails: Annotated[
        str, typer.Option(metavar="LOW,HIGH", help="Shares of each topic's tokens to leave out at both ends.")
    ] = "0,0",
) -> None:
    """Write each topic in the order of its PPL, cut into difficulty buckets, for a curriculum to read."""
    from tools.data.sort import sort as run_sort

    try:
        low, high = map(float, drop_tails.split(","))
    except ValueError as error:
        raise ConfigError(f"--drop-tails {drop_tails!r}: write two shares, e.g. 0.01,0.01") from error
    log_to_stderr()
    typer.echo(str(run_sort(replace(options, drop_tails=(low, high)))))


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
