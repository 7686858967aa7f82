"""`syne data`: the commands' options. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_mixers.errors import ConfigError
from tools.cli_options import example, log_to_stderr
from tools.data.slurm_options import SlurmArray, with_slurm_options

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
@with_slurm_options
def preprocess(
    inputs: Annotated[
        list[str],
        typer.Option("--input", help="File, folder or glob, may be repeated: .jsonl, .gz, .zst, .parquet."),
    ],
    tokenizer: Annotated[Path, typer.Option(help="HF folder, tokenizer.json, or tokenizer.model.")],
    out: Annotated[Path, typer.Option(help="Folder; other sources in it stay.")],
    text_key: Annotated[str, typer.Option(help="Key of the text.")] = "text",
    language: Annotated[str, typer.Option(help="zh, en, ...; und: undetermined.")] = "und",
    source: Annotated[str, typer.Option(help="web, book, code, ...")] = "web",
    topic: Annotated[str | None, typer.Option(help="One topic for all documents.", show_default=False)] = None,
    topic_key: Annotated[str | None, typer.Option(help="Key of each document's topic.", show_default=False)] = None,
    topic_confidence_key: Annotated[
        str, typer.Option(help="Key of how sure the topic is, where a document has it; for the sidecar.")
    ] = "topic_confidence",
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")] = 1,
    holdout: Annotated[
        str, typer.Option(help="Documents per topic kept from training; auto: enough for an error of 0.2 % in log PPL.")
    ] = "0",
    role: Annotated[
        Literal["train", "validation"], typer.Option(help="validation: everything of this call is held out.")
    ] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Of the order of documents.")] = 1234,
    eos_token: Annotated[
        str | None, typer.Option(help="Put after each document; default: the tokenizer's own.", show_default=False)
    ] = None,
    keep_documents_whole: Annotated[
        bool, typer.Option("--keep-documents-whole", help="Pack documents whole into windows of --seq-length tokens.")
    ] = False,
    seq_length: Annotated[
        int | None, typer.Option(help="Of the runs that will read them: training.seq_length.", show_default=False)
    ] = None,
    max_document_bytes: Annotated[int, typer.Option(min=1, help="Longer texts are bad lines.")] = 16 << 20,
    max_bad_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Refuse the input above this share of bad lines.")
    ] = 0.01,
    max_bad_lines: Annotated[int, typer.Option(min=0, help="So many bad lines are always accepted.")] = 10,
    array: SlurmArray | None = None,
) -> None:
    """Raw text to .bin/.idx per (language, source, topic), manifest.json, quarantine.jsonl; resumable."""
    from tools.data.preprocess import PreprocessOptions
    from tools.data.preprocess import preprocess as run_preprocess

    log_to_stderr()
    if holdout != "auto" and not holdout.isdecimal():
        raise ConfigError(f"--holdout {holdout} must be a number of documents, or auto")
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
            topic_confidence_key=topic_confidence_key,
            workers=workers,
            holdout="auto" if holdout == "auto" else int(holdout),
            role=role,
            seed=seed,
            eos_token=eos_token,
            keep_documents_whole=keep_documents_whole,
            seq_length=seq_length,
            max_document_bytes=max_document_bytes,
            max_bad_share=max_bad_share,
            max_bad_lines=max_bad_lines,
            array=array,
        )
    )
    typer.echo(str(report.manifest_path))


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
    from data_mixers.errors import ConfigError
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
    log_to_stderr()
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


@data_app.command(
    epilog=example("syne data probe --items probe.jsonl --tokenizer models/Meta-Llama-3-8B --out data/probe.json")
)
def probe(
    items: Annotated[Path, typer.Option(help='JSON lines: {"context": "...", "choices": [" a", " b"], "answer": 0}.')],
    tokenizer: Annotated[Path, typer.Option(help="HF folder, tokenizer.json, or tokenizer.model.")],
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


@data_app.command(
    epilog=example(
        "syne data clean --input 'pages/*.parquet' --out cleaned --language zh --workers 2",
    )
)
def clean(
    inputs: Annotated[
        list[str], typer.Option("--input", help="File or glob, may be repeated: .jsonl, .gz, .zst, .parquet.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of this call alone; the same call goes on where it was killed.")],
    rules: Annotated[
        Path | None, typer.Option(help="Rules; default: tools/data/clean_rules.yaml.", show_default=False)
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Keep this language (zh, en, ...), may be repeated.", show_default=False)
    ] = None,
    text_key: Annotated[str, typer.Option(help="Key of the text.")] = "text",
    source_key: Annotated[
        str | None, typer.Option(help="Key to count by; default: the file's folder.", show_default=False)
    ] = None,
    near_duplicates: Annotated[bool, typer.Option(help="MinHash; exact duplicates always go.")] = True,
    report_only: Annotated[bool, typer.Option("--report-only", help="Count, write no documents.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")] = 1,
    max_bad_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Refuse the input above this share of bad lines.")
    ] = 0.01,
    max_bad_lines: Annotated[int, typer.Option(min=0, help="So many bad lines are always accepted.")] = 10,
) -> None:
    """Drop repetitive, too short or long, foreign and duplicate documents; each is kept with its reason."""
    from tools.data.clean import CleanOptions
    from tools.data.clean import clean as run_clean
    from tools.data.rules import DEFAULT_RULES
    from tools.data.selection import table

    log_to_stderr()
    report = run_clean(
        CleanOptions(
            inputs=tuple(inputs),
            out=out,
            rules=rules or DEFAULT_RULES,
            languages=tuple(language or ()),
            text_key=text_key,
            source_key=source_key,
            near_duplicates=near_duplicates,
            report_only=report_only,
            max_bad_share=max_bad_share,
            max_bad_lines=max_bad_lines,
            workers=workers,
        )
    )
    typer.echo(table(report))


@data_app.command(
    epilog=example(
        "syne data decontaminate --input 'cleaned/*.jsonl.zst' --benchmarks 'benchmarks/*.jsonl' --out decontaminated",
        "--remove --workers 2",
    )
)
def decontaminate(
    inputs: Annotated[
        list[str], typer.Option("--input", help="File or glob, may be repeated: .jsonl, .gz, .zst, .parquet.")
    ],
    benchmarks: Annotated[
        list[str], typer.Option(help="File or glob, may be repeated: .jsonl, .json, .gz, .zst, .parquet.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of this call alone; the same call goes on where it was killed.")],
    remove: Annotated[bool, typer.Option("--remove", help="Write the documents, the contaminated apart.")] = False,
    ngram: Annotated[int, typer.Option(min=2, help="Of words, or characters of Chinese.")] = 13,
    max_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Contaminated above this share of its n-grams; 0: any one.")
    ] = 0.0,
    benchmark_key: Annotated[
        list[str] | None,
        typer.Option(help="Key of the benchmarks' texts, may be repeated; default: known ones.", show_default=False),
    ] = None,
    text_key: Annotated[str, typer.Option(help="Key of the text.")] = "text",
    source_key: Annotated[
        str | None, typer.Option(help="Key to count by; default: the file's folder.", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")] = 1,
    max_bad_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Refuse the input above this share of bad lines.")
    ] = 0.01,
    max_bad_lines: Annotated[int, typer.Option(min=0, help="So many bad lines are always accepted.")] = 10,
) -> None:
    """Report the documents that share n-grams with benchmarks; with --remove, write the others."""
    from tools.data.decontaminate import DecontaminateOptions, benchmark_table
    from tools.data.decontaminate import decontaminate as run_decontaminate
    from tools.data.selection import table

    log_to_stderr()
    report, found = run_decontaminate(
        DecontaminateOptions(
            inputs=tuple(inputs),
            benchmarks=tuple(benchmarks),
            out=out,
            ngram=ngram,
            max_share=max_share,
            benchmark_keys=tuple(benchmark_key or ()),
            remove=remove,
            text_key=text_key,
            source_key=source_key,
            max_bad_share=max_bad_share,
            max_bad_lines=max_bad_lines,
            workers=workers,
        )
    )
    typer.echo(f"{table(report)}\n{benchmark_table(found)}")


@data_app.command(epilog=example("syne data fetch llama-3-syne --slice cn_web --max-files 2 --out pages"))
def fetch(
    name: Annotated[str, typer.Argument(help="llama-3-syne, dolma, c4 or c4-multilingual.")],
    out: Annotated[Path, typer.Option(help="Folder; sources.json in it tells where every file is from.")],
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", help="Bucket, version or language, may be repeated.", show_default=False),
    ] = None,
    match: Annotated[str, typer.Option(help="Only files whose path fits this glob.")] = "*",
    max_files: Annotated[int | None, typer.Option(min=1, help="The first so many.", show_default=False)] = None,
    revision: Annotated[str, typer.Option(help="Of the repository.")] = "main",
    endpoint: Annotated[
        str | None, typer.Option(help="A mirror of the hub; default: HF_ENDPOINT, else the hub.", show_default=False)
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only look whether the files are there.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Show files and sizes, fetch none.")] = False,
    connections: Annotated[int, typer.Option(min=1, max=8, help="Files at a time.")] = 2,
    retry_seconds: Annotated[float, typer.Option(min=0.0, help="First pause before another attempt.")] = 1.0,
) -> None:
    """Bring published data here; a call that was cut goes on where it stood."""
    from tools.data.fetch import FetchOptions, list_files
    from tools.data.fetch import fetch as run_fetch

    log_to_stderr()
    options = FetchOptions(
        name=name,
        out=out,
        slices=tuple(slices or ()),
        match=match,
        max_files=max_files,
        revision=revision,
        endpoint=endpoint,
        offline=offline,
        connections=connections,
        pause_seconds=retry_seconds,
    )
    if list_only:
        for remote in list_files(options):
            typer.echo(f"{'?' if remote.size_bytes is None else remote.size_bytes:>15}  {remote.path}")
        return
    for path in run_fetch(options):
        typer.echo(str(path))


@data_app.command(epilog=example("syne data stats --data data/stage1 --plot stage1.png"))
def stats(
    data: Annotated[Path, typer.Option(help="Folder of token files, with or without a manifest.")],
    plot: Annotated[Path | None, typer.Option(help="Draw it into this .png file.", show_default=False)] = None,
    format: Annotated[Literal["text", "json"], typer.Option(help="Of the output.")] = "text",
    scores: Annotated[
        str | None, typer.Option(help="A second model's scores, by their name.", show_default=False)
    ] = None,
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
    scores: Annotated[
        str | None, typer.Option(help="A second model's scores, by their name.", show_default=False)
    ] = None,
    text_key: Annotated[str, typer.Option(help="Key of the text in --input.")] = "text",
    max_characters: Annotated[int, typer.Option(min=1, help="Shown of each text.")] = 1000,
) -> None:
    """Show documents by source, topic and PPL percentile, with their ids and places."""
    from data_mixers.errors import ConfigError
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
