"""python -m examples.topic_classifier.held: what the sentences of programs add, on held documents alone.

The trials of the example on the frozen encoder's own vectors, with those sentences among what is learnt and without
them; the same documents are labelled. Nothing of the test is encoded or labelled.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from data_mixers.errors import DataError
from examples.quickstart.assets import fetch
from examples.quickstart.steps import exit_code_of
from examples.topic_classifier.__main__ import ASSETS, LOCK, TEST_SOURCES, write_labelled
from examples.topic_classifier.programs import NAMES
from tools.data.kept import Kept, Tensors
from tools.data.topic_baselines import PENALTIES, frozen_encoder
from tools.data.topic_head import Vectors, fit_head, fit_linear, logits_of
from tools.data.topic_labels import Labelled, read_labelled, read_topics
from tools.data.topic_learner import PENALTIES as HEAD_PENALTIES
from tools.data.topic_trials import Trial, best_of, held_of, scores_by, trials_of_folds

Fit = Callable[[list[int], float], nn.Linear]
"""(places of the documents to learn from, penalty)."""
ALONE = "zh_word_lists"  # the other source of those topics


def documents_of(labelled: Path) -> list[Labelled]:
    """Those of the training sources."""
    found, _ = read_labelled((str(labelled),), topics=read_topics(None), text_key="text")
    return [document for document in found if document.source not in TEST_SOURCES]


def vectors_of(documents: Sequence[Labelled], build: Path) -> Vectors:
    """The frozen encoder's, kept in `build`. Errors: DataError if it is not installed."""
    encode = frozen_encoder()
    if isinstance(encode, str):
        raise DataError(encode)
    texts = [document.text for document in documents]

    def made() -> Tensors:
        return {"documents": torch.from_numpy(encode(texts))}

    fingerprint = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    vectors: Vectors = Kept(build / "held", fingerprint).tensors("sentence-vectors", made)["documents"].numpy()
    return vectors


def tried(
    documents: Sequence[Labelled], vectors: Vectors, labels: Sequence[str], fit: Fit, penalties: Sequence[float]
) -> list[str]:
    """A row of the table with the sentences, and one without."""
    trials = trials_of_folds(documents, num_folds=2)
    held = held_of(documents, trials)
    rows = []
    for title in ("with", "without"):

        def given_by(penalty: float, title: str = title) -> list[str]:
            found: list[str] = []
            for trial in trials:
                layer = fit(_learnt(documents, trial, has_programs=title == "with"), penalty)
                found += [labels[index] for index in logits_of(layer, vectors[trial.held]).argmax(axis=1)]
            return found

        _, given = best_of(penalties, held, given_by, labels)
        of_language = scores_by(lambda document: document.language, held, given, labels)
        alone = scores_by(lambda document: document.source, held, given, labels)[ALONE]
        cells = [f"{found.macro_f1:.3f}" for found in (*of_language.values(), alone)]
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return rows


def _learnt(documents: Sequence[Labelled], trial: Trial, *, has_programs: bool) -> list[int]:
    programs = {f"zh_{name}" for name in NAMES}
    return [place for place in trial.train if has_programs or documents[place].source not in programs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path("build/topic_classifier"), help="the example's folder")
    build: Path = parser.parse_args().build
    fetch(build / "assets", ASSETS, LOCK)
    write_labelled(build / "assets", build / "labelled.jsonl")
    documents = documents_of(build / "labelled.jsonl")
    vectors = vectors_of(documents, build)
    labels = sorted({document.topic for document in documents})
    truth, languages = [labels.index(d.topic) for d in documents], [d.language for d in documents]

    def frozen(places: list[int], penalty: float) -> nn.Linear:
        wanted = [truth[place] for place in places]
        return fit_linear(vectors[places], wanted, num_topics=len(labels), penalty=penalty)

    def ours(places: list[int], penalty: float) -> nn.Linear:
        wanted, spoken = [truth[place] for place in places], [languages[place] for place in places]
        return fit_head(vectors[places], wanted, spoken, num_topics=len(labels), penalty=penalty)

    print(f"| macro-F1 | held en | held zh | {ALONE} |\n|---|---:|---:|---:|")
    for title, fit, penalties in (("frozen encoder", frozen, PENALTIES), ("our head", ours, HEAD_PENALTIES)):
        for row in tried(documents, vectors, labels, fit, penalties):
            print(row.replace("| ", f"| {title}, ", 1), flush=True)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
