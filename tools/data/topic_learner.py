"""Classifiers from labelled documents: a head on given weights, then the whole encoder; or all of it from scratch.

    --init    ─ head alone, on features that are computed once ─ fine-tuned from there ─ a mix of both
    scratch   ─ word embeddings and head ─ whole encoder
The head first, so that fine-tuning does not begin with a random head that bends the encoder (LP-FT, arXiv 2202.10054);
the mean of the weights before and after holds better on new sources than either (WiSE-FT, arXiv 2109.01903).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import BertConfig

from tools.data.kept import Tensors
from tools.data.topic_baselines import frozen_encoder
from tools.data.topic_head import Vectors, fit_head, logits_of
from tools.data.topic_labels import Labelled
from tools.data.topic_model import (
    TopicClassifier,
    load_encoder,
    new_config,
    predict_features,
    predict_logits,
    read_init,
    tokenise,
    train_tokenizer,
)
from tools.data.topic_options import ClassifierOptions
from tools.data.topic_training import embed_tokens, train

SHARES = (0.0, 0.5, 1.0)
"""Of the fine-tuned weights in a mix with the given ones: 0 is the head alone. Tried in trials (ours)."""
PENALTIES = (0.003, 0.01, 0.03, 0.1)
"""On the squared weights of the head alone. Tried in trials (ours)."""
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
    def shares(self) -> tuple[float, ...]:
        """What there is to choose from."""
        if self.options.init is None:
            return (1.0,)
        return (0.0,) if self.options.freeze_encoder else SHARES


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


def given_features(learner: Learner, rows: Sequence[list[int]]) -> torch.Tensor:
    """What --init says of documents: [documents, h]."""
    model = new_model(learner).to(learner.options.device)
    return predict_features(model, rows, device=learner.options.device)


def head_alone(learner: Learner, features: Vectors, train_places: Sequence[int], *, penalty: float) -> Tensors:
    """The head that logistic regression finds, as weights of the classifier."""
    chosen = [learner.documents[place] for place in train_places]
    truth, languages = [learner.labels.index(d.topic) for d in chosen], [d.language for d in chosen]
    layer = fit_head(features[list(train_places)], truth, languages, num_topics=len(learner.labels), penalty=penalty)
    return {"head.weight": layer.weight.detach(), "head.bias": layer.bias.detach()}


def tuned(learner: Learner, train_places: Sequence[int], *, head: Tensors | None, teacher: Vectors | None) -> Tensors:
    """Every weight that training changes, after it. head: where it begins; None: at random."""
    options = learner.options
    model = new_model(learner)
    if head is not None:
        model.load_state_dict(head, strict=False)
    elif options.teacher != "none":
        encode = frozen_encoder()
        assert not isinstance(encode, str)  # there are its vectors
        embed_tokens(model, learner.tokenizer, encode)
    model.to(options.device)
    train(
        model, learner.tokenizer, [learner.documents[place] for place in train_places],
        [learner.windows[place] for place in train_places], labels=learner.labels, options=options.training,
        teacher=None if teacher is None else teacher[list(train_places)], device=options.device,
    )  # fmt: skip
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def mixed(learner: Learner, head: Tensors | None, after: Tensors | None, share: float) -> TopicClassifier:
    """The classifier whose weights are `share` fine-tuned ones and the rest given ones with the head alone."""
    model = new_model(learner)
    if head is not None:
        model.load_state_dict(head, strict=False)
    if after is not None:
        before = model.state_dict()
        model.load_state_dict({name: before[name].lerp(after[name], share) for name in after}, strict=False)
    return model.to(learner.options.device).eval()


def logits_of_mix(
    learner: Learner,
    rows: Sequence[list[int]],
    features: Vectors | None,
    head: Tensors | None,
    after: Tensors | None,
    share: float,
) -> Logits:
    """features: of the same documents; the head alone needs no more."""
    if share == 0 and features is not None and head is not None:
        layer = torch.nn.Linear(features.shape[1], len(learner.labels))
        layer.load_state_dict({"weight": head["head.weight"], "bias": head["head.bias"]})
        return logits_of(layer, features)
    model = mixed(learner, head, after, share)
    return np.asarray(predict_logits(model, rows, device=learner.options.device).double().numpy())
