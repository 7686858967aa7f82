"""Which way of training, and how sure of its labels: what trials on sources that were new to them say.

    sources ─ fold_sources ─ groups ─ trials_of_folds ─ each group is labelled by what learnt from the others
Documents are numbered in one list; a trial holds numbers.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from data_mixers.errors import ConfigError
from tools.data.topic_labels import Kind, Labelled, settled_text
from tools.data.topic_metrics import Scores, score

Choice = TypeVar("Choice")
MOST_HELD = 40
"""Documents of a source and topic that are labelled in a trial: they count alike, and labelling takes time (ours)."""


@dataclass(frozen=True)
class Trial:
    train: list[int]
    held: list[int]


def fold_sources(documents: Sequence[Labelled], *, num_folds: int) -> list[tuple[str, ...]]:
    """All sources in num_folds groups, so that each topic of a language is in as many groups as can be.

    Sources of many topics first, each to the group that has the fewest documents of its topics, then to the smallest.
    Errors: ConfigError if there are fewer sources than groups.
    """
    topics_of: dict[str, Counter[Kind]] = {}
    for document in documents:
        topics_of.setdefault(document.source, Counter())[document.kind] += 1
    if len(topics_of) < num_folds:
        raise ConfigError(
            f"--folds {num_folds} needs as many training sources; there are {len(topics_of)}: {', '.join(topics_of)}"
        )
    groups: list[Counter[Kind]] = [Counter() for _ in range(num_folds)]
    names: list[list[str]] = [[] for _ in range(num_folds)]
    for source in sorted(topics_of, key=lambda name: (-len(topics_of[name]), -topics_of[name].total(), name)):
        kinds = topics_of[source]
        chosen = min(range(num_folds), key=lambda i: (sum(groups[i][kind] for kind in kinds), groups[i].total(), i))
        groups[chosen] += kinds
        names[chosen].append(source)
    return [tuple(sorted(group)) for group in names]


def trials_of_folds(documents: Sequence[Labelled], *, num_folds: int) -> list[Trial]:
    """A trial a group of sources.

    Held documents have a topic that is learnt, maybe in another language, and no copy among what is learnt from.
    """
    trials = []
    for group in fold_sources(documents, num_folds=num_folds):
        train = [place for place, document in enumerate(documents) if document.source not in group]
        learnt = {documents[place].topic for place in train}
        texts = {settled_text(documents[place]) for place in train}
        candidates = [
            place
            for place, document in enumerate(documents)
            if document.source in group and document.topic in learnt and settled_text(document) not in texts
        ]
        trials.append(Trial(train, _some(documents, candidates)))
    return trials


def _some(documents: Sequence[Labelled], candidates: list[int]) -> list[int]:
    """At most MOST_HELD of a source and topic: those whose id hashes lowest."""
    order = sorted(candidates, key=lambda place: hashlib.sha256(documents[place].id.encode()).digest())
    taken: Counter[tuple[Kind, str]] = Counter()
    kept = []
    for place in order:
        like = documents[place].kind, documents[place].source
        taken[like] += 1
        if taken[like] <= MOST_HELD:
            kept.append(place)
    return sorted(kept)


def scores_by(
    group_of: Callable[[Labelled], str], documents: Sequence[Labelled], given: Sequence[str], labels: Sequence[str]
) -> dict[str, Scores]:
    groups: dict[str, list[tuple[str, str]]] = {}
    for document, label in zip(documents, given, strict=True):
        groups.setdefault(group_of(document), []).append((document.topic, label))
    return {
        group: score([true for true, _ in pairs], [label for _, label in pairs], topics=labels)
        for group, pairs in sorted(groups.items())
    }


def macro_f1_by_language(
    documents: Sequence[Labelled], given: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    found = scores_by(lambda document: document.language, documents, given, labels)
    return {language: scores.macro_f1 for language, scores in found.items()}


def mean_macro_f1(documents: Sequence[Labelled], given: Sequence[str], labels: Sequence[str]) -> float:
    """Macro-F1, its mean over the languages: what every choice here is made by."""
    found = macro_f1_by_language(documents, given, labels)
    return sum(found.values()) / max(1, len(found))


def held_of(documents: Sequence[Labelled], trials: Sequence[Trial]) -> list[Labelled]:
    """Trial after trial."""
    return [documents[place] for trial in trials for place in trial.held]


def best_of(
    choices: Sequence[Choice], held: Sequence[Labelled], given_by: Callable[[Choice], list[str]], labels: Sequence[str]
) -> tuple[Choice, list[str]]:
    """(The first choice with the highest mean macro-F1 over the held documents, the topics it gives them)."""
    given = {choice: given_by(choice) for choice in choices}
    best = max(choices, key=lambda choice: mean_macro_f1(held, given[choice], labels))
    return best, given[best]
