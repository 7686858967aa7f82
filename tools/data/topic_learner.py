"""What trainings share, and the encoders they begin with: given, taught, or from scratch.

    --init    ─ as it is ─────────────┐
    --teacher ─ on unlabelled text ───┴ an encoder that no label has touched ─ logistic regression on its features
    scratch   ─ word embeddings ─ whole encoder ─ the head that was trained along
Labels of a few sources bend an encoder towards those sources' style. So the head alone learns from them, wherever the
encoder has learnt from something else; one encoder then serves every trial.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from transformers import BertConfig

from data_mixers.errors import ConfigError
from tools.data.kept import Kept, Tensors
from tools.data.progress import LiveProgress
from tools.data.readers import find_inputs
from tools.data.topic_baselines import frozen_encoder
from tools.data.topic_distillation import distil, texts_of
from tools.data.topic_head import Vectors, fit_head
from tools.data.topic_labels import Kind, Labelled
from tools.data.topic_model import (
    MASK,
    TopicClassifier,
    load_encoder,
    new_config,
    padded,
    read_init,
    tokenise,
    train_tokenizer,
)
from tools.data.topic_options import WEIGHT_DECAY, ClassifierOptions

GIVEN, TAUGHT, FROM_LABELS = "given encoder", "taught encoder", "from labels alone"
PENALTIES = (0.3, 0.1, 0.03, 0.01, 0.003)
"""On the squared weights of the head, tried in trials; of equals the strongest (ours)."""
WORD_LEARNING_RATE = 1e-3
WARMUP_SHARE = 0.1
TOKEN_DROPOUT = 0.1  # share of tokens replaced by [MASK]: no single word may carry a topic (ours)
LABEL_SMOOTHING = 0.05
Logits = NDArray[np.float64]
"""[documents, topics]."""


@dataclass(frozen=True)
class Learner:
    options: ClassifierOptions
    labels: tuple[str, ...]
    documents: Sequence[Labelled]
    """All that training may see; those of one training are numbered in it."""
    config: BertConfig
    tokenizer: Tokenizer
    windows: list[list[int]]
    """Token ids of the documents, as long as training may see."""
    rows: list[list[int]]
    """The same, as long as the classifier reads."""

    @property
    def ways(self) -> tuple[str, ...]:
        """What there is to choose from."""
        given = (GIVEN,) if self.options.init is not None else ()
        taught = (TAUGHT,) if self.options.teacher != "none" else ()
        return given + taught or (FROM_LABELS,)

    def topics_of(self, logits: Logits) -> list[str]:
        return [self.labels[index] for index in logits.argmax(axis=1)]


def new_learner(options: ClassifierOptions, documents: Sequence[Labelled], labels: tuple[str, ...]) -> Learner:
    """Tokenizer and shape: of --init, or new ones."""
    texts = [document.text for document in documents]
    if options.init is not None:
        config, tokenizer = read_init(options.init, max_length=options.max_length, num_layers=options.init_layers)
    else:
        tokenizer = train_tokenizer(texts, vocab_size=options.vocab_size, max_length=options.max_length)
        config = new_config(options.shape, vocab_size=tokenizer.get_vocab_size(), max_length=options.max_length)
    # Long documents too, so that training meets windows from anywhere in them.
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    windows = tokenise(whole, texts, max_length=4 * options.max_length)
    rows = tokenise(tokenizer, texts, max_length=options.max_length)
    return Learner(options, labels, documents, config, tokenizer, windows, rows)


def new_model(learner: Learner) -> TopicClassifier:
    """The classifier before any training: --init with an empty head, or random weights by the seed."""
    torch.manual_seed(learner.options.training.seed)
    model = TopicClassifier(learner.config, num_topics=len(learner.labels))
    if learner.options.init is not None:
        load_encoder(learner.options.init, model)
        # Their words stay as given: text that has only the common ones would bend those away from the rest, and a
        # vocabulary of 100,000 costs more to update than the layers.
        model.encoder.embeddings.word_embeddings.weight.requires_grad_(False)
    return model


def head_of(
    learner: Learner, features: Vectors, train_places: Sequence[int], *, weights: Tensors, penalty: float
) -> Tensors:
    """The head that logistic regression finds, as weights of the classifier. features: of all the documents.

    With a taught encoder it sees the features and, beside them, the teacher's vector as foretold from them. Both are
    linear in the features, so that one layer on these does what it has found.
    """
    chosen = [learner.documents[place] for place in train_places]
    truth, languages = [learner.labels.index(d.topic) for d in chosen], [d.language for d in chosen]
    seen, project = features[list(train_places)], np.eye(features.shape[1], dtype=np.float32)
    if "project.weight" in weights:  # without the constant of the projection: fit_head centres
        project = np.concatenate([project, weights["project.weight"].numpy()])
    layer = fit_head(seen @ project.T, truth, languages, num_topics=len(learner.labels), penalty=penalty)
    return {"head.weight": layer.weight.detach() @ torch.from_numpy(project), "head.bias": layer.bias.detach()}


def taught(learner: Learner, kept: Kept) -> Tensors:
    """What distillation on the unlabelled text makes of the encoder."""
    options, teacher = learner.options, frozen_encoder()
    if isinstance(teacher, str):
        raise ConfigError(f"--teacher {options.teacher}: {teacher}")
    texts = [texts_of(file, options.text_key) for file in find_inputs(options.unlabelled, option="--unlabelled")]
    return distil(
        new_model(learner), learner.tokenizer, texts, teacher,
        options=options.training, kept=kept, device=options.device,
    )  # fmt: skip


def trained_on_labels(learner: Learner, train_places: Sequence[int], step: str, kept: Kept) -> Tensors:
    """Every weight, after training on labelled documents; a step of `kept`."""

    def made() -> Tensors:
        model = new_model(learner).to(learner.options.device)
        _train(model, learner, train_places)
        return dict(model.state_dict())

    return kept.tensors(step, made)


def model_of(learner: Learner, *weights: Tensors) -> TopicClassifier:
    """The classifier with these weights in place of those before any training."""
    model = new_model(learner)
    for given in weights:
        model.load_state_dict(given, strict=False)
    return model.to(learner.options.device).eval()


def logits_by(head: Tensors, features: Vectors) -> Logits:
    """What the classifier with this head says of documents with these features."""
    found = features.astype(np.float64) @ head["head.weight"].double().numpy().T + head["head.bias"].double().numpy()
    return np.asarray(found)


def _train(model: TopicClassifier, learner: Learner, places: Sequence[int]) -> None:
    """On these of the labelled documents, in place."""
    options, device = learner.options.training, learner.options.device
    documents = [learner.documents[place] for place in places]
    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    truth = torch.tensor([learner.labels.index(document.topic) for document in documents])
    longest = min(options.train_length, learner.config.max_position_embeddings)
    mask_id, of_document = learner.tokenizer.get_vocab()[MASK], _chances(documents)

    def loss_of_step(words_only: bool) -> torch.Tensor:
        chosen = random.choice(len(documents), options.batch_documents, p=of_document)
        windows = [_window(learner.windows[places[index]], longest, random, mask_id) for index in chosen]
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
                loss_of_step(words_only).backward()  # type: ignore[no-untyped-call]  # torch's own has no types
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                progress.advance(1)
    model.eval()


def _chances(documents: Sequence[Labelled]) -> NDArray[np.float64]:
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
