"""`syne data`: the commands' options. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tools.cli_options import example, log_to_stderr

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

    log_to_stderr()
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
