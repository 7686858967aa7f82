"""`syne data train-classifier`: labelled documents to a classifier folder with its report, beside two baselines.

labelled ─ split_by_source ─┬ documents ─ search: trials on held sources, final training ─┐
                            └ test ─────── labels of each way and of the baselines ───────┴─ report
"""

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch

from data_mixers.atomic import sync
from data_mixers.errors import ConfigError
from tools.data.kept import Kept, Tensors
from tools.data.readers import find_inputs
from tools.data.stage import fingerprint_of, only_one
from tools.data.topic_baselines import Given, fasttext, frozen_encoder, logistic_regression
from tools.data.topic_difference import Difference, macro_f1_difference
from tools.data.topic_head import Vectors
from tools.data.topic_labels import (
    DEV_SHARE,
    OTHERS,
    Labelled,
    Split,
    Topics,
    near_copies,
    read_labelled,
    read_topics,
    split_by_source,
)
from tools.data.topic_learner import GIVEN, Learner, new_learner
from tools.data.topic_metrics import Scores, score
from tools.data.topic_model import Trained, save_classifier, tokenise
from tools.data.topic_options import ClassifierOptions, check
from tools.data.topic_report import OURS, Report, Way, confidence_of, threshold_sentence, write_report
from tools.data.topic_search import Plan, Searched, search
from tools.data.topic_trials import Trial, fold_sources, held_of, macro_f1_by_language, scores_by, trials_of_folds

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


def train_classifier(options: ClassifierOptions) -> Report:
    """Writes <out> as a whole: weights, tokenizer, topics.json, report.json, report.md, confusion.csv, confusion.png.

    Beside them test_labels.jsonl: what each classifier says of each document of the test.
    What its steps gave is kept in <out>.work until then, so that a call that was killed goes on from its last step.
    Errors: ConfigError or DataError as split_by_source and read_labelled say, ConfigError if <out> is there already or
    options contradict each other.
    """
    check(options)
    if options.out.exists():
        raise ConfigError(f"--out {options.out} is there already; choose another, or remove it")
    topics = read_topics(options.topics)
    labelled, left_out = read_labelled(options.inputs, topics=topics, text_key=options.text_key)
    split = split_by_source(
        labelled, test_sources=options.test_sources, dev_sources=options.dev_sources,
        dev_share=0.0 if options.folds else DEV_SHARE, seed=options.training.seed,
    )  # fmt: skip
    work = options.out.with_name(f"{options.out.name}.work")
    with only_one(work):
        report = _train(options, topics, left_out, split, Kept(work / "kept", _fingerprint(options)))
    shutil.rmtree(work, ignore_errors=True)
    return report


def _train(options: ClassifierOptions, topics: Topics, left_out: Mapping[str, int], split: Split, kept: Kept) -> Report:
    seconds: dict[str, float] = {}
    near = _timed(seconds, "near copies", lambda: near_copies(split))
    if near:
        logger.warning(
            "%d documents of training sources hold half of a test document's text or more (%s), which flatters the "
            "report: is it one source under two names? Leave one out, or keep both for the test with --test-source",
            near.total(), _by_source(near),
        )  # fmt: skip
    there = {d.topic for d in split.train}  # in the order of topics.json
    labels = tuple(topic for topic in dict.fromkeys(chain.from_iterable(topics.values())) if topic in there)
    learner = new_learner(options, [*split.train, *split.dev], labels)
    vectors = _timed(seconds, "sentence vectors", lambda: _vectors(options, learner, split, kept))
    plan = _plan(learner, split)
    searched = _timed(seconds, "training", lambda: search(learner, plan, kept))
    held = held_of(learner.documents, plan.trials)
    confidence = confidence_of(
        {"held": held, "test": split.test},
        {"held": searched.held[searched.way], "test": searched.test[searched.way]},
        learner.labels, accuracy=options.accuracy,
    )  # fmt: skip
    trained = Trained(
        searched.model, learner.tokenizer, topics, learner.labels, confidence.temperature, confidence.threshold,
        options.max_length,
    )  # fmt: skip
    baselines, not_measured = _timed(seconds, "baselines", lambda: _baselines(learner, plan, split, vectors, kept))
    given = {OURS: learner.topics_of(searched.test[searched.way])}
    given |= {name: labels.test for name, labels in baselines.items()}
    topics_and_others = tuple(dict.fromkeys((*learner.labels, OTHERS)))

    def by(group_of: Callable[[Labelled], str]) -> dict[str, dict[str, Scores]]:
        return {name: scores_by(group_of, split.test, labels, topics_and_others) for name, labels in given.items()}

    def way(title: str, is_chosen: bool, of_held: Sequence[str], of_test: Sequence[str]) -> Way:
        f1 = (macro_f1_by_language(d, labels, learner.labels) for d, labels in ((held, of_held), (split.test, of_test)))
        return Way(title, is_chosen, *f1)

    report = Report(
        settings=_settings(learner, trained, searched),
        split=_described(options, split, near),
        untested=split.untested,
        left_out=left_out,
        results=by(lambda document: document.language),
        sources=by(lambda document: f"{document.language}/{document.source}"),
        differences={name: _differences(split.test, given[OURS], labels.test) for name, labels in baselines.items()},
        not_measured=not_measured,
        ways=[
            way(name, name == searched.way, learner.topics_of(logits), learner.topics_of(searched.test[name]))
            for name, logits in searched.held.items()
        ],
        baselines=[way(name, False, labels.held, labels.test) for name, labels in baselines.items()],
        held=score([d.topic for d in held], learner.topics_of(searched.held[searched.way]), topics=learner.labels),
        confidence=confidence,
        seconds=seconds,
    )
    if confidence.threshold >= 1:
        logger.warning("%s", threshold_sentence(confidence))
    _write(options.out, trained, report, _test_labels(split.test, given))
    return report


def _differences(test: Sequence[Labelled], ours: Sequence[str], other: Sequence[str]) -> dict[str, Difference]:
    """Of each language."""
    of_language: dict[str, list[tuple[str, str, str, str]]] = {}
    for document, first, second in zip(test, ours, other, strict=True):
        of_language.setdefault(document.language, []).append((document.topic, first, second, document.source))
    return {language: macro_f1_difference(*zip(*rows, strict=True)) for language, rows in sorted(of_language.items())}


def _fingerprint(options: ClassifierOptions) -> str:
    """Of the options, and of the files they name by size and time."""
    files = [*find_inputs(options.inputs), *([options.topics] if options.topics else [])]
    files += find_inputs(options.unlabelled, option="--unlabelled") if options.unlabelled else []
    files += sorted(options.init.iterdir()) if options.init is not None and options.init.is_dir() else []
    there = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return fingerprint_of([asdict(options), there])


def _vectors(options: ClassifierOptions, learner: Learner, split: Split, kept: Kept) -> dict[str, Vectors] | str:
    """The frozen encoder's, of the learner's documents and of the test; or why there are none."""
    if not options.baselines:
        return "not asked for"
    encode = frozen_encoder()
    if isinstance(encode, str):
        return encode

    def made() -> Tensors:
        asked = {"documents": learner.documents, "test": split.test}
        return {part: torch.from_numpy(encode([d.text for d in asked[part]])) for part in asked}

    return {part: vectors.numpy() for part, vectors in kept.tensors("sentence-vectors", made).items()}


def _plan(learner: Learner, split: Split) -> Plan:
    options = learner.options
    if options.folds:
        trials = trials_of_folds(learner.documents, num_folds=options.folds)
        if not any(trial.held for trial in trials):
            raise ConfigError(
                f"--folds {options.folds}: no topic has training sources in two groups, so nothing can be chosen on "
                "sources that are new; label a second source of some topics, or leave --folds out"
            )
        train = list(range(len(learner.documents)))
    else:
        train = list(range(len(split.train)))
        trials = [Trial(train, list(range(len(split.train), len(learner.documents))))]
    test_rows = tokenise(learner.tokenizer, [d.text for d in split.test], max_length=options.max_length)
    return Plan(trials, train, test_rows)


def _by_source(counts: Counter[str]) -> str:
    return ", ".join(f"{source} {count}" for source, count in counts.most_common())


def _described(options: ClassifierOptions, split: Split, near: Counter[str]) -> dict[str, Any]:
    documents = [*split.train, *split.dev]
    by_folds = fold_sources(documents, num_folds=options.folds) if options.folds else []
    trials = [(f"sources held in trial {number}", ", ".join(group)) for number, group in enumerate(by_folds, start=1)]
    dev = {"dev documents": len(split.dev), "dev documents left out, their text is in training": split.num_dev_copies}
    return {
        "training documents": len(split.train),
        **({} if options.folds else dev),
        "training sources": ", ".join(sorted({d.source for d in split.train})),
        **dict(trials),
        "test sources": ", ".join(split.test_sources),
        "test documents left out, their text is in training or came twice": split.num_duplicates,
        **({"training documents that hold half of a test document's text or more": _by_source(near)} if near else {}),
    }


def _settings(learner: Learner, trained: Trained, searched: Searched) -> dict[str, Any]:
    options = learner.options
    encoder = trained.model.encoder.config
    return {
        "layers": encoder.num_hidden_layers,
        "hidden": encoder.hidden_size,
        "heads": encoder.num_attention_heads,
        "ffn": encoder.intermediate_size,
        "vocabulary": encoder.vocab_size,
        "max_length": options.max_length,
        "steps": 0 if learner.ways == (GIVEN,) else options.training.steps,
        "batch_documents": options.training.batch_documents,
        "learning_rate": options.training.learning_rate,
        "seed": options.training.seed,
        "teacher": options.teacher,
        "init": None if options.init is None else options.init.name,
        "word_embeddings": "learnt" if options.init is None else "as given",
        "way": searched.way,
        "head_penalty": searched.penalties.get(searched.way),
        "folds": options.folds,
        "threshold_accuracy": options.accuracy,
    }


def _baselines(
    learner: Learner, plan: Plan, split: Split, vectors: dict[str, Vectors] | str, kept: Kept
) -> tuple[dict[str, Given], dict[str, str]]:
    """(baseline -> what it gives, baseline -> why not)."""
    if not learner.options.baselines or not split.test:
        reason = "not asked for" if split.test else "there is no test source"
        return {}, {"fastText": reason, "frozen encoder": reason}

    given: dict[str, Given | str] = {
        "fastText": fasttext(learner.documents, plan.trials, plan.train, split.test, learner.labels, kept),
        "frozen encoder": vectors
        if isinstance(vectors, str)
        else logistic_regression(
            vectors["documents"], learner.documents, plan.trials, plan.train, vectors["test"], learner.labels
        ),
    }
    found = {name: labels for name, labels in given.items() if not isinstance(labels, str)}
    return found, {name: reason for name, reason in given.items() if isinstance(reason, str)}


def _test_labels(test: Sequence[Labelled], given: Mapping[str, Sequence[str]]) -> str:
    """A line a document: its truth, and what each classifier says. Other questions than the report's can be asked."""
    rows = []
    for place, document in enumerate(test):
        row = {"id": document.id, "language": document.language, "source": document.source, "topic": document.topic}
        rows.append(row | {name: labels[place] for name, labels in given.items()})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(out: Path, trained: Trained, report: Report, test_labels: str) -> None:
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_classifier(trained, partial)
    write_report(report, partial)
    (partial / "test_labels.jsonl").write_text(test_labels, encoding="utf-8")
    for path in (*partial.iterdir(), partial):
        sync(path)
    partial.rename(out)
    sync(out.parent)


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Result]) -> Result:
    started = time.monotonic()
    result = work()
    seconds[name] = round(time.monotonic() - started, 1)
    return result
