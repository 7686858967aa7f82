"""Classifiers from labelled documents: a head on given weights, then the whole encoder; or all of it from scratch.

    --init    ─ head alone, on features that are computed once ─ whole encoder ─ head fitted again on its features
    scratch   ─ word embeddings ─ whole encoder, its head trained along
The head first, so that fine-tuning does not begin with a random head that bends the encoder (LP-FT, arXiv 2202.10054);
the head again, because logistic regression with a strong penalty holds better on new sources than the head that was
trained along (in the two trials of examples/topic_classifier macro-F1 was en 0.39 and 0.67 against 0.36 and 0.67, zh
0.96 and 0.81 against 0.92 and 0.76).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from transformers import BertConfig

from tools.data.kept import Kept, Tensors
from tools.data.topic_baselines import frozen_encoder
from tools.data.topic_head import Vectors, fit_head
from tools.data.topic_labels import Labelled
from tools.data.topic_model import (
    TopicClassifier,
    load_encoder,
    new_config,
    predict_features,
    read_init,
    tokenise,
    train_tokenizer,
)
from tools.data.topic_options import ClassifierOptions
from tools.data.topic_training import TrainingOptions, embed_tokens, train

HEAD_ALONE, FINE_TUNED = "head alone", "fine-tuned"
PENALTIES = (0.1, 0.03, 0.01, 0.003, 0.0003)
"""On the squared weights of the head, tried in trials; of equals the strongest (ours)."""
Logits = NDArray[np.float64]
"""[documents, topics]."""


@dataclass(frozen=True)
class Learner:
    """What all trainings of one call share."""

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
        if self.options.init is None:
            return (FINE_TUNED,)
        return (HEAD_ALONE,) if self.options.freeze_encoder else (HEAD_ALONE, FINE_TUNED)

    @property
    def is_head_refitted(self) -> bool:
        """After fine-tuning; from scratch the head stays that was trained along."""
        return self.options.init is not None


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
        # Their words stay as given: few labelled documents would bend the common ones away from the rest, and a
        # vocabulary of 100,000 costs more to update than the layers.
        model.encoder.embeddings.word_embeddings.weight.requires_grad_(False)
    return model


def features_of(learner: Learner, weights: Tensors, rows: Sequence[list[int]]) -> torch.Tensor:
    """What the encoder says of documents: [documents, h]. weights: what training changed; empty: --init as it is."""
    return predict_features(model_of(learner, weights), rows, device=learner.options.device)


def head_of(learner: Learner, features: Vectors, train_places: Sequence[int], *, penalty: float) -> Tensors:
    """The head that logistic regression finds, as weights of the classifier. features: of all the documents."""
    chosen = [learner.documents[place] for place in train_places]
    truth, languages = [learner.labels.index(d.topic) for d in chosen], [d.language for d in chosen]
    layer = fit_head(features[list(train_places)], truth, languages, num_topics=len(learner.labels), penalty=penalty)
    return {"head.weight": layer.weight.detach(), "head.bias": layer.bias.detach()}


def tuned(
    learner: Learner,
    train_places: Sequence[int],
    step: str,
    kept: Kept,
    *,
    head: Tensors | None,
    teacher: Vectors | None,
) -> Tensors:
    """Every weight that training changes, after it. head: where it begins; None: at random.

    The steps with word embeddings alone and those of the whole encoder are each a step of `kept`.
    """
    training = learner.options.training
    model = new_model(learner)
    project = None if teacher is None else nn.Linear(model.head.in_features, teacher.shape[1])
    both = nn.ModuleDict({"model": model} | ({} if project is None else {"project": project}))
    chosen = [learner.documents[place] for place in train_places]

    def trained(options: TrainingOptions) -> Tensors:
        both.to(learner.options.device)
        train(
            model, learner.tokenizer, chosen, [learner.windows[place] for place in train_places],
            labels=learner.labels, options=options, project=project,
            teacher=None if teacher is None else teacher[list(train_places)], device=learner.options.device,
        )  # fmt: skip
        return {name: weight.detach() for name, weight in both.named_parameters() if weight.requires_grad}

    def of_words() -> Tensors:
        if teacher is not None:
            encode = frozen_encoder()
            assert not isinstance(encode, str)  # there are its vectors
            embed_tokens(model, learner.tokenizer, encode)
        return trained(replace(training, steps=0))

    def of_all() -> Tensors:
        if head is not None:
            model.load_state_dict(head, strict=False)
        else:
            both.load_state_dict(kept.tensors(f"{step}-words", of_words), strict=False)
        return trained(replace(training, word_steps=0))

    found = kept.tensors(step, of_all)
    prefix = "model."
    return {name.removeprefix(prefix): weight for name, weight in found.items() if name.startswith(prefix)}


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
