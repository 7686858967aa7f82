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
class Searched:
    """Logits of the held documents by way of training, and of the test by the way that the trials chose."""

    held: Mapping[str, Logits]
    """Trial after trial."""
    test: Logits
    penalties: Mapping[str, float]
    """Of the head."""
    way: str
    model: TopicClassifier


def held_documents(learner: Learner, plan: Plan) -> list[Labelled]:
    """In the order of Searched.held."""
    return [learner.documents[place] for trial in plan.trials for place in trial.held]


def search(learner: Learner, plan: Plan, kept: Kept) -> Searched:
    """Tries, chooses, trains. Every training and every pass over the documents is a step of its own in `kept`.

    Cost: a training a trial, and one more if fine-tuning is chosen and no trial learnt from all documents.
    """
    of_trials: dict[str, list[Vectors]] = {}
    penalties: dict[str, float] = {}
    if HEAD_ALONE in learner.ways:
        given = _features(learner, plan, kept, "given", {})
        of_trials[HEAD_ALONE] = [given["documents"]] * len(plan.trials)
        penalties[HEAD_ALONE] = _best_penalty(learner, plan, of_trials[HEAD_ALONE])

    def encoder(train: Sequence[int], step: str) -> Tensors:
        head = None
        if HEAD_ALONE in learner.ways:
            head = head_of(learner, given["documents"], train, penalty=penalties[HEAD_ALONE])
        return tuned(learner, train, step, kept, head=head, teacher=plan.teacher)

    if FINE_TUNED in learner.ways:
        of_trials[FINE_TUNED] = [
            _features(learner, plan, kept, f"trial-{number}", encoder(trial.train, f"trial-{number}"), trial)[
                "documents"
            ]
            for number, trial in enumerate(plan.trials)
        ]
        penalties[FINE_TUNED] = _best_penalty(learner, plan, of_trials[FINE_TUNED])
    held = {
        way: [
            _held(learner, trial, features, penalties[way])
            for trial, features in zip(plan.trials, of_trials[way], strict=True)
        ]
        for way in learner.ways
    }

    def label(way: str, number: int) -> list[str]:
        return [learner.labels[index] for index in held[way][number].argmax(axis=1)]

    way = best_of(learner.ways, learner.documents, plan.trials, label, learner.labels)
    step = "trial-0" if plan.is_trained_in_trial else "final"
    after = encoder(plan.train, step) if way == FINE_TUNED else {}
    found = _features(learner, plan, kept, step, after) if way == FINE_TUNED else given
    head = head_of(learner, found["documents"], plan.train, penalty=penalties[way])
    of_held = {each: np.concatenate(logits) for each, logits in held.items()}
    return Searched(of_held, logits_by(head, found["test"]), penalties, way, model_of(learner, after, head))


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


def _best_penalty(learner: Learner, plan: Plan, features: Sequence[Vectors]) -> float:
    def label(penalty: float, number: int) -> list[str]:
        logits = _held(learner, plan.trials[number], features[number], penalty)
        return [learner.labels[index] for index in logits.argmax(axis=1)]

    return best_of(PENALTIES, learner.documents, plan.trials, label, learner.labels)


def _held(learner: Learner, trial: Trial, features: Vectors, penalty: float) -> Logits:
    return logits_by(head_of(learner, features, trial.train, penalty=penalty), features[trial.held])
