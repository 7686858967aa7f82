"""What trainings share, and the encoders they begin with: given, taught, or from scratch.

    --init    ─ as it is ─────────────┐
    --teacher ─ on unlabelled text ───┴ an encoder that no label has touched ─ logistic regression on its features
    scratch   ─ word embeddings ─ whole encoder ─ the head that was trained along
Labels of a few sources bend an encoder towards those sources' style. So the head alone learns from them, wherever the
encoder has learnt from something else; one encoder then serves every trial.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import BertConfig

from data_mixers.errors import ConfigError
from tools.data.kept import Kept, Tensors
from tools.data.readers import find_inputs
from tools.data.topic_baselines import frozen_encoder
from tools.data.topic_distillation import distil, texts_of
from tools.data.topic_head import Vectors, fit_head
from tools.data.topic_labels import Labelled
from tools.data.topic_model import TopicClassifier, load_encoder, new_config, read_init, tokenise, train_tokenizer
from tools.data.topic_options import ClassifierOptions
from tools.data.topic_training import train

GIVEN, TAUGHT, FROM_LABELS = "given encoder", "taught encoder", "from labels alone"
PENALTIES = (0.3, 0.1, 0.03, 0.01, 0.003)
"""On the squared weights of the head, tried in trials; of equals the strongest (ours)."""
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
        train(
            model, learner.tokenizer, [learner.documents[place] for place in train_places],
            [learner.windows[place] for place in train_places],
            labels=learner.labels, options=learner.options.training, device=learner.options.device,
        )  # fmt: skip
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
