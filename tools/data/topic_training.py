"""Trains the encoder: labelled text, and, if a teacher is given, that teacher's sentence vectors.

The teacher (TinyBERT's idea, arXiv 1909.10351, with a sentence encoder in place of BERT) gives two things: the first
value of each token's embedding (the teacher's vector of that token, in as many principal components as we have), and
a vector of every document that ours must be able to predict.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from tools.data.progress import LiveProgress
from tools.data.topic_labels import Labelled
from tools.data.topic_model import MASK, SPECIAL_TOKENS, TopicClassifier, padded

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts -> vectors of length 1, [texts, dimensions]."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    steps: int
    word_steps: int = 0
    """Before them, with the embeddings and the head alone: a step costs a fiftieth. The layers of a new BERT change
    their input little, so that what is learnt holds when they join (ours; none with given weights)."""
    word_learning_rate: float = 1e-3
    batch_documents: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    token_dropout: float = 0.1
    """Share of tokens replaced by [MASK]: no single word may carry a topic (ours)."""
    train_length: int = 64
    """Tokens of a training window; a longer document gives another random window each time it comes (ours)."""
    label_smoothing: float = 0.05
    teacher_weight: float = 4.0
    """Of the mean cosine distance to the teacher's vector, beside the cross entropy."""
    seed: int = 0


def train(
    model: TopicClassifier,
    tokenizer: Tokenizer,
    documents: Sequence[Labelled],
    rows: Sequence[list[int]],
    *,
    labels: Sequence[str],
    options: TrainingOptions,
    teacher: NDArray[np.float32] | None = None,
    project: nn.Linear | None = None,
    device: str = "cpu",
) -> None:
    """Trains in place.

    rows: token ids of the documents, [CLS] and [SEP] included. teacher: [documents, dimensions], vectors of length 1.
    project: from our vectors to the teacher's, trained too.
    """
    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    place = {label: index for index, label in enumerate(labels)}
    truth = torch.tensor([place[document.topic] for document in documents])
    mask_id, of_document = tokenizer.get_vocab()[MASK], chances(documents)

    def loss_of_step(words_only: bool) -> Tensor:
        chosen = random.choice(len(documents), options.batch_documents, p=of_document)
        ids, mask = padded([_window(rows[index], options, random, mask_id) for index in chosen])
        on_device = None if mask is None else mask.to(device)
        features = model.features(ids.to(device), on_device, words_only=words_only)  # [b, h]
        loss = nn.functional.cross_entropy(
            model.head(model.dropout(features)), truth[chosen].to(device), label_smoothing=options.label_smoothing
        )
        if project is not None and teacher is not None:
            wanted = torch.from_numpy(teacher[chosen]).to(device)
            distance = 1 - nn.functional.cosine_similarity(project(features), wanted, dim=1).mean()
            loss = loss + options.teacher_weight * distance
        return loss

    given = [*model.parameters(), *(project.parameters() if project is not None else ())]
    parameters = [parameter for parameter in given if parameter.requires_grad]
    model.train()
    for words_only, steps in ((True, options.word_steps), (False, options.steps)):
        rate = options.word_learning_rate if words_only else options.learning_rate
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=options.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps, options.warmup_share))
        title = "training, words alone" if words_only else "training"
        with LiveProgress(title, total=steps, unit="steps", scale=1.0) as progress:
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                loss_of_step(words_only).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                progress.advance(1)
    model.eval()


def embed_tokens(model: TopicClassifier, tokenizer: Tokenizer, encode: Encode) -> None:
    """Sets each token's embedding to the teacher's vector of it, in principal components.

    Five times as large as BERT's own start, so that a token outweighs its place (ours; a norm follows anyway).

    Cost: one call of the teacher per token of the vocabulary, all of them short.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [(number, token.removeprefix("##")) for token, number in vocabulary if token not in SPECIAL_TOKENS]
    vectors = encode([word for _, word in words])  # [words, dimensions]
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    width = min(model.head.in_features, centred.shape[1])
    reduced = centred @ directions[:, ::-1][:, :width]
    table = model.encoder.embeddings.word_embeddings.weight
    with torch.no_grad():
        scale = 5 * model.encoder.config.initializer_range / float(reduced.std())
        table[[number for number, _ in words], :width] = torch.from_numpy(np.ascontiguousarray(reduced * scale)).to(
            table
        )


def chances(documents: Sequence[Labelled]) -> NDArray[np.float64]:
    """How much each document counts; they sum to 1.

    Every topic of a language counts by the square root of its documents, and the topics' sources likewise, so that
    neither a large topic nor a large source drowns the rest (ours).
    """
    topics = Counter((d.language, d.topic) for d in documents)
    sources = Counter((d.language, d.topic, d.source) for d in documents)
    of_topic: Counter[tuple[str, str]] = Counter()
    for (language, topic, _), count in sources.items():
        of_topic[(language, topic)] += math.sqrt(count)  # type: ignore[assignment]
    weights = np.array(
        [
            math.sqrt(topics[(d.language, d.topic)])
            / of_topic[(d.language, d.topic)]
            / math.sqrt(sources[(d.language, d.topic, d.source)])
            for d in documents
        ]
    )
    return np.asarray(weights / weights.sum())


def _rate(steps: int, warmup_share: float, step: int) -> float:
    warmup = max(1, round(warmup_share * steps))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def _window(row: list[int], options: TrainingOptions, random: np.random.Generator, mask_id: int) -> list[int]:
    inner = row[1:-1]
    room = options.train_length - 2
    if len(inner) > room:
        start = int(random.integers(0, len(inner) - room + 1))
        inner = inner[start : start + room]
    dropped = random.random(len(inner)) < options.token_dropout
    return [row[0], *(mask_id if drop else token for token, drop in zip(inner, dropped, strict=True)), row[-1]]
