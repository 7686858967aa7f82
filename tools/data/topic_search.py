"""Every way of training tried on sources that were new to it; the best one trained on everything.

trials ─ head alone, fine-tuned ─ penalty of the head ─ labels of held documents ─ the best mean macro-F1
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from tools.data.kept import Kept, Tensors
from tools.data.topic_head import Vectors
from tools.data.topic_labels import Labelled
from tools.data.topic_learner import (
    FINE_TUNED,
    HEAD_ALONE,
    PENALTIES,
    Learner,
    Logits,
    features_of,
    head_of,
    logits_by,
    model_of,
    tuned,
)
from tools.data.topic_model import TopicClassifier
from tools.data.topic_trials import Trial, best_of

PASS_ROWS = 2000
"""Documents of a step that is kept in a pass over all of them: half a minute of a core (ours)."""


@dataclass(frozen=True)
class Plan:
    """Documents of the learner to try on and, at last, to learn from; documents to test on."""

    trials: Sequence[Trial]
    train: Sequence[int]
    test_rows: Sequence[list[int]]
    """Token ids."""
    teacher: Vectors | None

    @property
    def is_trained_in_trial(self) -> bool:
        """The only trial learns from the very documents of the final training."""
        return len(self.trials) == 1 and self.trials[0].train == list(self.train)


@dataclass(frozen=True)
class Encoded:
    """An encoder and what it says."""

    weights: Tensors
    """Those that training changed."""
    features: Mapping[str, Vectors]
    """documents, test: as _features says."""


@dataclass(frozen=True)
class Searched:
    """Logits of the held documents and of the test by way of training, and what the trials chose."""

    held: Mapping[str, Logits]
    """Trial after trial."""
    test: Mapping[str, Logits]
    """Of the ways that were trained on everything: the chosen one, and the head alone, which costs nothing more."""
    penalties: Mapping[str, float]
    """Of the heads that were fitted on features."""
    way: str
    model: TopicClassifier


def held_documents(learner: Learner, plan: Plan) -> list[Labelled]:
    """In the order of Searched.held."""
    return [learner.documents[place] for trial in plan.trials for place in trial.held]


def search(learner: Learner, plan: Plan, kept: Kept) -> Searched:
    """Tries, chooses, trains. Every training and every pass over the documents is a step of its own in `kept`.

    Cost: a training a trial, and one more if fine-tuning is chosen and no trial learnt from all documents.
    """
    given = _features(learner, plan, kept, "given", {}) if HEAD_ALONE in learner.ways else {}
    of_trials: dict[str, list[Encoded]] = {}
    penalties: dict[str, float] = {}
    if given:
        of_trials[HEAD_ALONE] = [Encoded({}, given)] * len(plan.trials)
        penalties[HEAD_ALONE] = _best_penalty(learner, plan, of_trials[HEAD_ALONE])

    def encoded(train: Sequence[int], step: str, trial: Trial | None) -> Encoded:
        head = head_of(learner, given["documents"], train, penalty=penalties[HEAD_ALONE]) if given else None
        weights = tuned(learner, train, step, kept, head=head, teacher=plan.teacher)
        return Encoded(weights, _features(learner, plan, kept, step, weights, trial))

    if FINE_TUNED in learner.ways:
        of_trials[FINE_TUNED] = [encoded(trial.train, f"trial-{n}", trial) for n, trial in enumerate(plan.trials)]
        if learner.is_head_refitted:
            penalties[FINE_TUNED] = _best_penalty(learner, plan, of_trials[FINE_TUNED])
    held = {
        way: [
            _held(learner, trial, found, penalties.get(way))
            for trial, found in zip(plan.trials, of_trials[way], strict=True)
        ]
        for way in learner.ways
    }

    def label(way: str, number: int) -> list[str]:
        return [learner.labels[index] for index in held[way][number].argmax(axis=1)]

    way = best_of(learner.ways, learner.documents, plan.trials, label, learner.labels)
    finals = {HEAD_ALONE: Encoded({}, given)} if given else {}
    if way == FINE_TUNED:
        in_trial = plan.is_trained_in_trial
        finals[FINE_TUNED] = of_trials[FINE_TUNED][0] if in_trial else encoded(plan.train, "final", None)
    heads = {each: _head(learner, plan.train, found, penalties.get(each)) for each, found in finals.items()}
    return Searched(
        {each: np.concatenate(logits) for each, logits in held.items()},
        {each: logits_by(heads[each], found.features["test"]) for each, found in finals.items()},
        penalties,
        way,
        model_of(learner, finals[way].weights, heads[way]),
    )


def _features(
    learner: Learner, plan: Plan, kept: Kept, step: str, weights: Tensors, trial: Trial | None = None
) -> dict[str, Vectors]:
    """Of the documents (of a trial: of its own, zeros elsewhere) and, but for a trial's, of the test."""
    is_final = trial is None or plan.is_trained_in_trial

    def made() -> Tensors:
        places = list(range(len(learner.rows))) if trial is None else sorted({*trial.train, *trial.held})
        rows = [*(learner.rows[place] for place in places), *(plan.test_rows if is_final else ())]
        found = torch.cat(
            [
                kept.tensors(
                    f"{step}-rows-{start}", partial(_of_rows, learner, weights, rows[start : start + PASS_ROWS])
                )["features"]
                for start in range(0, len(rows), PASS_ROWS)
            ]
        )
        documents = found.new_zeros(len(learner.rows), found.shape[1])
        documents[places] = found[: len(places)]
        return {"documents": documents, "test": found[len(places) :].clone()}

    return {part: tensor.numpy() for part, tensor in kept.tensors(f"{step}-features", made).items()}


def _of_rows(learner: Learner, weights: Tensors, rows: Sequence[list[int]]) -> Tensors:
    return {"features": features_of(learner, weights, rows)}


def _best_penalty(learner: Learner, plan: Plan, found: Sequence[Encoded]) -> float:
    def label(penalty: float, number: int) -> list[str]:
        logits = _held(learner, plan.trials[number], found[number], penalty)
        return [learner.labels[index] for index in logits.argmax(axis=1)]

    return best_of(PENALTIES, learner.documents, plan.trials, label, learner.labels)


def _head(learner: Learner, train: Sequence[int], found: Encoded, penalty: float | None) -> Tensors:
    """Fitted on the features; without a penalty the one that was trained along."""
    if penalty is None:
        return {name: weight for name, weight in found.weights.items() if name.startswith("head.")}
    return head_of(learner, found.features["documents"], train, penalty=penalty)


def _held(learner: Learner, trial: Trial, found: Encoded, penalty: float | None) -> Logits:
    return logits_by(_head(learner, trial.train, found, penalty), found.features["documents"][trial.held])
