"""`syne data`: text to token ids. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_mixers.errors import ConfigError
from tools.cli_options import MaxBadLines, MaxBadShare, TextKey, Workers, example, log_to_stderr
from tools.data.app import data_app
from tools.data.slurm_options import SlurmArray, with_slurm_options


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
    text_key: TextKey = "text",
    language: Annotated[str, typer.Option(help="zh, en, ...; und: undetermined.")] = "und",
    source: Annotated[str, typer.Option(help="web, book, code, ...")] = "web",
    topic: Annotated[str | None, typer.Option(help="One topic for all documents.", show_default=False)] = None,
    topic_key: Annotated[str | None, typer.Option(help="Key of each document's topic.", show_default=False)] = None,
    topic_confidence_key: Annotated[
        str, typer.Option(help="Key of how sure the topic is, where a document has it; for the sidecar.")
    ] = "topic_confidence",
    workers: Workers = 1,
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
    max_bad_share: MaxBadShare = 0.01,
    max_bad_lines: MaxBadLines = 10,
    array: SlurmArray | None = None,
) -> None:
    """Raw text to .bin/.idx per (language, source, topic), manifest.json, quarantine.jsonl; resumable."""
    from tools.data.preprocess import PreprocessOptions
    from tools.data.preprocess import preprocess as run_preprocess

    log_to_stderr()
    num_held_out, sd = _holdout(holdout, holdout_scores)
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
            holdout_sd=sd,
            holdout=num_held_out,
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


def _holdout(wanted: str, scores: tuple[Path, Path] | None) -> tuple[int | Literal["auto"], float]:
    """(documents per topic, deviation of one document's change), as PreprocessOptions has them."""
    from tools.data.holdout import SD_OF_DOCUMENT, measured_sd

    if wanted != "auto" and not wanted.isdecimal():
        raise ConfigError(f"--holdout {wanted} must be a number of documents, or auto")
    sd = SD_OF_DOCUMENT
    if scores is not None:
        if wanted == "0":
            raise ConfigError("--holdout-scores has no effect without --holdout")
        sd = measured_sd(*scores)
        typer.echo(f"the change of a document's mean NLL varies by {sd:.3g} nats per token", err=True)
    return "auto" if wanted == "auto" else int(wanted), sd


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
