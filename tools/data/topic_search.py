"""Every way of training tried on sources that were new to it; the best one on everything.

trials ─ encoders ─ penalty of the head ─ labels of held documents ─ the best mean macro-F1
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from tools.data.kept import Kept, Tensors
from tools.data.topic_head import Vectors
from tools.data.topic_learner import (
    FROM_LABELS,
    PENALTIES,
    TAUGHT,
    Learner,
    Logits,
    head_of,
    logits_by,
    model_of,
    taught,
    trained_on_labels,
)
from tools.data.topic_model import TopicClassifier, predict_features
from tools.data.topic_trials import Trial, best_of, held_of

PASS_ROWS = 2000
"""Documents of a step that is kept in a pass over all of them: half a minute of a core (ours)."""


@dataclass(frozen=True)
class Plan:
    trials: Sequence[Trial]
    train: Sequence[int]
    test_rows: Sequence[list[int]]

    @property
    def is_trained_in_trial(self) -> bool:
        """The only trial learns from the very documents of the final training."""
        return len(self.trials) == 1 and self.trials[0].train == list(self.train)


@dataclass(frozen=True)
class Encoded:
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
    penalties: Mapping[str, float]
    """Of the heads that were fitted on features."""
    way: str
    model: TopicClassifier


def search(learner: Learner, plan: Plan, kept: Kept) -> Searched:
    """Tries, chooses, trains. Every training and every pass over the documents is a step of its own in `kept`.

    Cost: a distillation if there is a teacher. From labels alone: a training a trial, and a last one unless the trial
    learnt from all documents.
    """
    of_trials: dict[str, list[Encoded]] = {}
    finals: dict[str, Encoded] = {}
    penalties: dict[str, float] = {}
    for way in learner.ways:
        if way == FROM_LABELS:
            of_trials[way], finals[way] = _from_labels(learner, plan, kept)
            continue
        weights = taught(learner, kept) if way == TAUGHT else {}
        finals[way] = Encoded(weights, _features(learner, plan, kept, way.split()[0], weights))
        of_trials[way] = [finals[way]] * len(plan.trials)
        penalties[way] = _best_penalty(learner, plan, of_trials[way])
    held = {way: _held(learner, plan, found, penalties.get(way)) for way, found in of_trials.items()}
    topics = {way: learner.topics_of(logits) for way, logits in held.items()}
    way, _ = best_of(learner.ways, held_of(learner.documents, plan.trials), topics.__getitem__, learner.labels)
    heads = {each: _head(learner, plan.train, found, penalties.get(each)) for each, found in finals.items()}
    return Searched(
        held,
        {each: logits_by(heads[each], found.features["test"]) for each, found in finals.items()},
        penalties,
        way,
        model_of(learner, finals[way].weights, heads[way]),
    )


def _from_labels(learner: Learner, plan: Plan, kept: Kept) -> tuple[list[Encoded], Encoded]:
    """(of each trial, of the last training)."""

    def encoded(train: Sequence[int], step: str, trial: Trial | None) -> Encoded:
        weights = trained_on_labels(learner, train, step, kept)
        return Encoded(weights, _features(learner, plan, kept, step, weights, trial))

    tried = [encoded(trial.train, f"trial-{number}", trial) for number, trial in enumerate(plan.trials)]
    return tried, tried[0] if plan.is_trained_in_trial else encoded(plan.train, "final", None)


def _features(
    learner: Learner, plan: Plan, kept: Kept, step: str, weights: Tensors, trial: Trial | None = None
) -> dict[str, Vectors]:
    """Of the documents (of a trial: of its own, zeros elsewhere) and, but for a trial's, of the test."""
    is_final = trial is None or plan.is_trained_in_trial

    def made() -> Tensors:
        places = list(range(len(learner.rows))) if trial is None else sorted({*trial.train, *trial.held})
        rows = [*(learner.rows[place] for place in places), *(plan.test_rows if is_final else ())]

        def of_rows(start: int) -> Tensors:
            model, some = model_of(learner, weights), rows[start : start + PASS_ROWS]
            return {"features": predict_features(model, some, device=learner.options.device)}

        starts = range(0, len(rows), PASS_ROWS)
        found = torch.cat(
            [kept.tensors(f"{step}-rows-{start}", partial(of_rows, start))["features"] for start in starts]
        )
        documents = found.new_zeros(len(learner.rows), found.shape[1])
        documents[places] = found[: len(places)]
        return {"documents": documents, "test": found[len(places) :].clone()}

    return {part: tensor.numpy() for part, tensor in kept.tensors(f"{step}-features", made).items()}


def _best_penalty(learner: Learner, plan: Plan, found: Sequence[Encoded]) -> float:
    def given_by(penalty: float) -> list[str]:
        return learner.topics_of(_held(learner, plan, found, penalty))

    return best_of(PENALTIES, held_of(learner.documents, plan.trials), given_by, learner.labels)[0]


def _head(learner: Learner, train: Sequence[int], found: Encoded, penalty: float | None) -> Tensors:
    """Fitted on the features; without a penalty the one that was trained along."""
    if penalty is None:
        return {name: weight for name, weight in found.weights.items() if name.startswith("head.")}
    return head_of(learner, found.features["documents"], train, weights=found.weights, penalty=penalty)


def _held(learner: Learner, plan: Plan, found: Sequence[Encoded], penalty: float | None) -> Logits:
    """Of the held documents, trial after trial. found: of each trial."""
    of_trials = [
        logits_by(_head(learner, trial.train, each, penalty), each.features["documents"][trial.held])
        for trial, each in zip(plan.trials, found, strict=True)
    ]
    return np.concatenate(of_trials)
