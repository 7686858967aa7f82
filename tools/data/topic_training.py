"""Trains the encoder and its head on labelled text alone, from random weights."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from tools.data.progress import LiveProgress
from tools.data.topic_labels import Kind, Labelled
from tools.data.topic_model import MASK, TopicClassifier, padded
from tools.data.topic_options import WEIGHT_DECAY, TrainingOptions

WORD_LEARNING_RATE = 1e-3
WARMUP_SHARE = 0.1
TOKEN_DROPOUT = 0.1  # share of tokens replaced by [MASK]: no single word may carry a topic (ours)
LABEL_SMOOTHING = 0.05


def train(
    model: TopicClassifier,
    tokenizer: Tokenizer,
    documents: Sequence[Labelled],
    rows: Sequence[list[int]],
    *,
    labels: Sequence[str],
    options: TrainingOptions,
    device: str = "cpu",
) -> None:
    """Trains in place. rows: token ids of the documents, [CLS] and [SEP] included."""
    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    place = {label: index for index, label in enumerate(labels)}
    truth = torch.tensor([place[document.topic] for document in documents])
    longest = min(options.train_length, model.encoder.config.max_position_embeddings)
    mask_id, of_document = tokenizer.get_vocab()[MASK], chances(documents)

    def loss_of_step(words_only: bool) -> Tensor:
        chosen = random.choice(len(documents), options.batch_documents, p=of_document)
        windows = [_window(rows[index], longest, random, mask_id) for index in chosen]
        features = model.features(*padded(windows, device=device), words_only=words_only)  # [b, h]
        return nn.functional.cross_entropy(
            model.head(model.dropout(features)), truth[chosen].to(device), label_smoothing=LABEL_SMOOTHING
        )

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    for words_only, steps in ((True, options.word_steps), (False, options.steps)):
        rate = WORD_LEARNING_RATE if words_only else options.learning_rate
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps))
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


def chances(documents: Sequence[Labelled]) -> NDArray[np.float64]:
    """How much each document counts; they sum to 1.

    Every topic of a language counts by the square root of its documents, and the topics' sources likewise, so that
    neither a large topic nor a large source drowns the rest (ours).
    """
    topics = Counter(d.kind for d in documents)
    sources = Counter((d.kind, d.source) for d in documents)
    of_topic: dict[Kind, float] = defaultdict(float)
    for (kind, _), count in sources.items():
        of_topic[kind] += math.sqrt(count)
    weights = np.array(
        [math.sqrt(topics[d.kind]) / of_topic[d.kind] / math.sqrt(sources[d.kind, d.source]) for d in documents]
    )
    return np.asarray(weights / weights.sum())


def _rate(steps: int, step: int) -> float:
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def _window(row: list[int], longest: int, random: np.random.Generator, mask_id: int) -> list[int]:
    inner = row[1:-1]
    room = longest - 2
    if len(inner) > room:
        start = int(random.integers(0, len(inner) - room + 1))
        inner = inner[start : start + room]
    dropped = random.random(len(inner)) < TOKEN_DROPOUT
    return [row[0], *(mask_id if drop else token for token, drop in zip(inner, dropped, strict=True)), row[-1]]
