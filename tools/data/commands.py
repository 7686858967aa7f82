"""The group `syne data`, in the order of the work. Nothing heavy is imported before a command runs."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_mixers.errors import ConfigError
from tools.cli_options import example, log_to_stderr, takes
from tools.data.options import (
    AskOptions,
    CleanOptions,
    DecontaminateOptions,
    EosToken,
    FetchOptions,
    LabelOptions,
    PreprocessOptions,
    SampleOptions,
    ScoreOptions,
    ScoresName,
    SortOptions,
    TokenizerPath,
)
from tools.data.topic_options import ClassifierOptions, TrainingOptions

data_app = typer.Typer(
    help="Turn raw text into tokenised, described data.",
    epilog=example("syne data preprocess --help"),
    no_args_is_help=True,
    rich_markup_mode=None,
)


@data_app.command(epilog=example("syne data clean --input 'pages/*.parquet' --out cleaned --language zh --workers 2"))
@takes(CleanOptions)
def clean(options: CleanOptions) -> None:
    """Drop repetitive, too short or long, foreign and duplicate documents; each is kept with its reason."""
    from tools.data.clean import clean as run_clean
    from tools.data.selection import table

    log_to_stderr()
    typer.echo(table(run_clean(options)))


@data_app.command(
    epilog=example(
        "syne data decontaminate --input 'cleaned/*.jsonl.zst' --benchmarks 'benchmarks/*.jsonl' --out decontaminated",
        "--remove --workers 2",
    )
)
@takes(DecontaminateOptions)
def decontaminate(options: DecontaminateOptions) -> None:
    """Report the documents that share n-grams with benchmarks; with --remove, write the others."""
    from tools.data.decontaminate import benchmark_table
    from tools.data.decontaminate import decontaminate as run_decontaminate
    from tools.data.selection import table

    log_to_stderr()
    report, found = run_decontaminate(options)
    typer.echo(f"{table(report)}\n{benchmark_table(found)}")


@data_app.command(epilog=example("syne data fetch llama-3-syne --slice cn_web --max-files 2 --out pages"))
@takes(FetchOptions)
def fetch(
    options: FetchOptions,
    list_only: Annotated[bool, typer.Option("--list", help="Show files and sizes, fetch none.")] = False,
) -> None:
    """Bring published data here; a call that was cut goes on where it stood."""
    from tools.data.fetch import fetch as run_fetch
    from tools.data.fetch import list_files

    log_to_stderr()
    if list_only:
        for remote in list_files(options):
            typer.echo(f"{'?' if remote.size_bytes is None else remote.size_bytes:>15}  {remote.path}")
        return
    for path in run_fetch(options):
        typer.echo(str(path))


@data_app.command(
    epilog=example(
        "syne data ask-topics --input sample.jsonl --url http://localhost:8000/v1 --model Qwen2.5-72B-Instruct",
        "--language zh --passes 2 --out labelled/zh",
    )
)
@takes(AskOptions)
def ask_topics(options: AskOptions) -> None:
    """A small labelled set from language models, and how far they agree. The key is read from OPENAI_API_KEY."""
    from tools.data.ask_topics import AGREEMENT, ask_topics

    log_to_stderr()
    ask_topics(options)
    typer.echo(str(options.out / AGREEMENT))


@data_app.command(epilog=example("syne data train-classifier --input labelled/zh/labelled.jsonl.zst --out topics-zh"))
@takes(ClassifierOptions, TrainingOptions, word_steps=800)
def train_classifier(
    options: ClassifierOptions,
    training: TrainingOptions,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Highest; default: 5e-4, with --teacher 2e-4.")
    ] = None,
) -> None:
    """A TinyBERT-shaped topic classifier, with a report on sources it has not seen."""
    from tools.data.train_classifier import train_classifier

    log_to_stderr()
    rate = learning_rate if learning_rate is not None else 5e-4 if options.teacher == "none" else 2e-4
    train_classifier(replace(options, training=replace(training, learning_rate=rate)))
    typer.echo(str(options.out / "report.md"))


@data_app.command(
    epilog=example(
        "syne data label-topics --input 'clean/*.jsonl.zst' --classifier topics-zh --out labelled --workers 2"
    )
)
@takes(LabelOptions)
def label_topics(options: LabelOptions) -> None:
    """Documents in, the same documents with topic and topic_confidence out."""
    from tools.data.label_topics import label_topics

    log_to_stderr()
    counts = label_topics(options)
    for topic, number in sorted(counts.items(), key=lambda item: -item[1]):
        typer.echo(f"{number:>12,}  {topic}")


@data_app.command(
    epilog=example(
        "syne data preprocess --input 'pages/*.jsonl' --tokenizer models/Meta-Llama-3-8B --out data/stage1",
        "--language zh --source web --topic-key topic --holdout 200 --workers 2",
    )
)
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
    eos_token: EosToken = None,
) -> None:
    """Multiple-choice items to the token ids that the forgetting guard scores at every validation."""
    from tools.data.probe import make_probe

    made = make_probe(items, out, tokenizer_path=tokenizer, language=language, eos_token=eos_token)
    typer.echo(f"{out}: {len(made.items)} items, {made.num_documents} choices of at most {made.longest} tokens")


@data_app.command(
    epilog=example(
        "syne data score-ppl --data data/stage1 --hf models/Meta-Llama-3-8B --tokenizer models/Meta-Llama-3-8B"
    )
)
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
    num_files, num_complete = run_score_ppl(options)
    typer.echo(f"{num_complete} of {num_files} token files are scored")


@data_app.command(
    epilog=example("syne data sort --data data/stage1 --out data/stage1_sorted --sources 'zh/web/*' --buckets 10")
)
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
    plot: Annotated[Path | None, typer.Option(help="Draw it into this .png file.")] = None,
    format: Annotated[Literal["text", "json"], typer.Option(help="Of the output.")] = "text",
    scores: ScoresName = "default",
    verify: Annotated[
        bool, typer.Option("--verify", help="Before, read every token file and compare its sha256 with the manifest's.")
    ] = False,
) -> None:
    """Tokens, documents, lengths and PPL per source; what is missing for it is said."""
    from tools.data.stats import stats as run_stats
    from tools.data.stats import table

    if plot is not None and plot.suffix != ".png":
        raise ConfigError(f"--plot {plot}: the figure is a picture in .png; name such a file")
    if verify:
        from tools.data.verify import verify as run_verify

        log_to_stderr()
        size = run_verify(data)
        typer.echo(f"verified: {size:,} bytes of token files are those of the manifest", err=True)
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
@takes(SampleOptions)
def sample(options: SampleOptions) -> None:
    """Show documents by source, topic and PPL percentile, with their ids and places."""
    from tools.data.sample import samples, shown

    typer.echo("\n\n".join(shown(entry, max_characters=options.max_characters) for entry in samples(options)))
