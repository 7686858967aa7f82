"""`syne data`: commands on documents. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

from tools.cli_options import MaxBadLines, MaxBadShare, OwnFolder, TextKey, Workers, example, log_to_stderr
from tools.data.app import data_app
from tools.data.slurm_options import SlurmArray, with_slurm_options

Documents = Annotated[
    list[str], typer.Option("--input", help="File or glob, may be repeated: .jsonl, .gz, .zst, .parquet.")
]
SourceKey = Annotated[str | None, typer.Option(help="Key to count by; default: the file's folder.", show_default=False)]


@data_app.command(
    epilog=example(
        "syne data clean --input 'pages/*.parquet' --out cleaned --language zh --workers 2",
    )
)
@with_slurm_options
def clean(
    inputs: Documents,
    out: OwnFolder,
    rules: Annotated[
        Path | None, typer.Option(help="Rules; default: tools/data/clean_rules.yaml.", show_default=False)
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Keep this language (zh, en, ...), may be repeated.", show_default=False)
    ] = None,
    text_key: TextKey = "text",
    source_key: SourceKey = None,
    near_duplicates: Annotated[bool, typer.Option(help="MinHash; exact duplicates always go.")] = True,
    report_only: Annotated[bool, typer.Option("--report-only", help="Count, write no documents.")] = False,
    workers: Workers = 1,
    max_bad_share: MaxBadShare = 0.01,
    max_bad_lines: MaxBadLines = 10,
    array: SlurmArray | None = None,
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
            array=array,
        )
    )
    typer.echo(table(report))


@data_app.command(
    epilog=example(
        "syne data decontaminate --input 'cleaned/*.jsonl.zst' --benchmarks 'benchmarks/*.jsonl' --out decontaminated",
        "--remove --workers 2",
    )
)
@with_slurm_options
def decontaminate(
    inputs: Documents,
    benchmarks: Annotated[
        list[str], typer.Option(help="File or glob, may be repeated: .jsonl, .json, .gz, .zst, .parquet.")
    ],
    out: OwnFolder,
    remove: Annotated[bool, typer.Option("--remove", help="Write the documents, the contaminated apart.")] = False,
    ngram: Annotated[int, typer.Option(min=2, help="Of words, or characters of Chinese.")] = 13,
    max_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Contaminated above this share of its n-grams; 0: any one.")
    ] = 0.0,
    benchmark_key: Annotated[
        list[str] | None,
        typer.Option(help="Key of the benchmarks' texts, may be repeated; default: known ones.", show_default=False),
    ] = None,
    text_key: TextKey = "text",
    source_key: SourceKey = None,
    workers: Workers = 1,
    max_bad_share: MaxBadShare = 0.01,
    max_bad_lines: MaxBadLines = 10,
    array: SlurmArray | None = None,
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
            array=array,
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
