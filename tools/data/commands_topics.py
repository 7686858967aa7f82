"""`syne data`: topic labels. Nothing heavy is imported before a command runs."""

from dataclasses import replace
from typing import Annotated

import typer

from tools.cli_options import example, log_to_stderr, takes
from tools.data.app import data_app
from tools.data.options import AskOptions, LabelOptions
from tools.data.slurm_options import with_slurm_options
from tools.data.topic_options import ClassifierOptions, TrainingOptions


@data_app.command(
    name="ask-topics",
    epilog=example(
        "syne data ask-topics --input sample.jsonl --url http://localhost:8000/v1 --model Qwen2.5-72B-Instruct",
        "--language zh --passes 2 --out labelled/zh",
    ),
)
@takes(AskOptions)
def ask_topics_(options: AskOptions) -> None:
    """A small labelled set from language models, and how far they agree. The key is read from OPENAI_API_KEY."""
    from tools.data.ask_topics import AGREEMENT, ask_topics

    log_to_stderr()
    ask_topics(options)
    typer.echo(str(options.out / AGREEMENT))


@data_app.command(
    name="train-classifier",
    epilog=example("syne data train-classifier --input labelled/zh/labelled.jsonl.zst --out topics-zh"),
)
@takes(ClassifierOptions)
def train_classifier_(
    options: ClassifierOptions,
    word_steps: Annotated[int, typer.Option(min=0, help="First steps on labels, with word embeddings alone.")] = 800,
    steps: Annotated[
        int, typer.Option(min=1, help="Of the whole encoder: with --teacher, or on labels without --init.")
    ] = 2000,
    batch_documents: Annotated[int, typer.Option(min=1, help="Documents of a step.")] = 32,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Highest; default: 5e-4, with --teacher 2e-4.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and the dev split.")] = 0,
) -> None:
    """A TinyBERT-shaped topic classifier, with a report on sources it has not seen."""
    from tools.data.train_classifier import train_classifier

    log_to_stderr()
    rate = learning_rate if learning_rate is not None else 5e-4 if options.teacher == "none" else 2e-4
    training = TrainingOptions(
        steps=steps, word_steps=word_steps, batch_documents=batch_documents, learning_rate=rate, seed=seed
    )
    train_classifier(replace(options, training=training))
    typer.echo(str(options.out / "report.md"))


@data_app.command(
    name="label-topics",
    epilog=example(
        "syne data label-topics --input 'clean/*.jsonl.zst' --classifier topics-zh --out labelled --workers 2"
    ),
)
@with_slurm_options
@takes(LabelOptions)
def label_topics_(options: LabelOptions) -> None:
    """Documents in, the same documents with topic and topic_confidence out."""
    from tools.data.label_topics import label_topics

    log_to_stderr()
    counts = label_topics(options)
    for topic, number in sorted(counts.items(), key=lambda item: -item[1]):
        typer.echo(f"{number:>12,}  {topic}")
