"""Every way of training tried on sources that were new to it; the best one trained on everything.

trials ─ head alone, fine-tuned, half of each ─ labels of held documents ─ the best mean macro-F1
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tools.data.kept import Kept, Tensors
from tools.data.topic_head import Vectors
from tools.data.topic_labels import Labelled
from tools.data.topic_learner import PENALTIES, Learner, Logits, head_alone, logits_of_mix, mixed, tuned
from tools.data.topic_model import TopicClassifier
from tools.data.topic_trials import Trial, best_of


@dataclass(frozen=True)
class Plan:
    """Documents of the learner to try on and, at last, to learn from; documents to test on."""

    trials: Sequence[Trial]
    train: Sequence[int]
    test_rows: Sequence[list[int]]
    """Token ids."""
    features: Vectors | None
    """What given weights say of the learner's documents; None from scratch."""
    test_features: Vectors | None
    teacher: Vectors | None


@dataclass(frozen=True)
class Searched:
    """Logits by share of fine-tuning, and the share that the trials chose."""

    held: Mapping[float, Logits]
    """Of the held documents, trial after trial."""
    test: Mapping[float, Logits]
    share: float
    penalty: float | None
    """Of the head alone."""
    model: TopicClassifier


def held_documents(learner: Learner, plan: Plan) -> list[Labelled]:
    """In the order of Searched.held."""
    return [learner.documents[place] for trial in plan.trials for place in trial.held]


def search(learner: Learner, plan: Plan, kept: Kept) -> Searched:
    """Tries, chooses, trains. Every training is a step of its own in `kept`.

    Cost: a training a trial, and one more unless the only trial learns from the same documents.
    """
    penalty = None
    if plan.features is not None:
        penalty = _best_penalty(learner, plan, plan.features)
    found: dict[float, list[Logits]] = {share: [] for share in learner.shares}
    for number, trial in enumerate(plan.trials):
        head, after = _trained(learner, plan, trial.train, f"trial-{number}", penalty, kept)
        rows = [learner.rows[place] for place in trial.held]
        features = None if plan.features is None else plan.features[trial.held]
        for share in found:
            name = f"trial-{number}-{share}"
            found[share].append(_labelled(learner, name, kept, rows, features, head, after, share))
    held = {share: np.concatenate(logits) for share, logits in found.items()}
    share = _best_share(learner, plan, held)
    is_trained = len(plan.trials) == 1 and plan.trials[0].train == list(plan.train)
    head, after = _trained(learner, plan, plan.train, "trial-0" if is_trained else "final", penalty, kept)
    test = {
        each: _labelled(learner, f"test-{each}", kept, plan.test_rows, plan.test_features, head, after, each)
        for each in learner.shares
    }
    return Searched(held, test, share, penalty, mixed(learner, head, after, share))


def _best_penalty(learner: Learner, plan: Plan, features: Vectors) -> float:
    def label(penalty: float, trial: Trial) -> list[str]:
        head = head_alone(learner, features, trial.train, penalty=penalty)
        logits = logits_of_mix(learner, [], features[trial.held], head, None, 0.0)
        return [learner.labels[index] for index in logits.argmax(axis=1)]

    return best_of(PENALTIES, learner.documents, plan.trials, label, learner.labels)


def _trained(
    learner: Learner, plan: Plan, train: Sequence[int], step: str, penalty: float | None, kept: Kept
) -> tuple[Tensors | None, Tensors | None]:
    """(head alone, fine-tuned weights), each None where the options have none."""
    head = None
    if plan.features is not None and penalty is not None:
        head = head_alone(learner, plan.features, train, penalty=penalty)
    if learner.options.freeze_encoder:
        return head, None
    return head, kept.tensors(step, lambda: tuned(learner, train, head=head, teacher=plan.teacher))


def _labelled(
    learner: Learner,
    step: str,
    kept: Kept,
    rows: Sequence[list[int]],
    features: Vectors | None,
    head: Tensors | None,
    after: Tensors | None,
    share: float,
) -> Logits:
    def made() -> Tensors:
        return {"logits": torch.from_numpy(logits_of_mix(learner, rows, features, head, after, share))}

    return np.asarray(kept.tensors(step, made)["logits"].numpy())


def _best_share(learner: Learner, plan: Plan, held: Mapping[float, Logits]) -> float:
    """Of equals the one that is nearest to the given weights."""
    starts = np.cumsum([0, *(len(trial.held) for trial in plan.trials)])

    def label(share: float, trial: Trial) -> list[str]:
        start = int(starts[[trial is other for other in plan.trials].index(True)])
        return [learner.labels[index] for index in held[share][start : start + len(trial.held)].argmax(axis=1)]

    return best_of(learner.shares, learner.documents, plan.trials, label, learner.labels)
