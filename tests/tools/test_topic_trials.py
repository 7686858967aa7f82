"""Trials on sources that are new: how sources are parted, what is held, how a choice is made, what is kept."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_mixers.errors import ConfigError
from tools.data.kept import Kept
from tools.data.topic_baselines import logistic_regression
from tools.data.topic_labels import Labelled
from tools.data.topic_report import confidence_lines, confidence_of
from tools.data.topic_trials import MOST_HELD, Trial, best_of, fold_sources, held_of, mean_macro_f1, trials_of_folds

PAIRS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xyz")), min_size=1, max_size=60)


def labelled(source: str, topic: str, count: int, language: str = "en") -> list[Labelled]:
    return [
        Labelled(f"{source}-{topic}-{i}", f"{topic} {i} of {source}", language, topic, source) for i in range(count)
    ]


@given(PAIRS, st.integers(2, 4))
def test_what_labels_a_held_document_has_learnt_from_other_sources(pairs: list[tuple[str, str]], folds: int) -> None:
    documents = [Labelled(str(i), f"text {i}", "en", topic, source) for i, (source, topic) in enumerate(pairs)]
    if len({source for source, _ in pairs}) < folds:
        with pytest.raises(ConfigError, match="training sources"):
            fold_sources(documents, num_folds=folds)
        return
    groups = fold_sources(documents, num_folds=folds)
    assert sorted(name for group in groups for name in group) == sorted({source for source, _ in pairs})
    trials = trials_of_folds(documents, num_folds=folds)
    assert len(trials) == folds and all(trial.train for trial in trials)
    for trial in trials:
        sources = {documents[place].source for place in trial.train}
        learnt = {documents[place].topic for place in trial.train}
        assert all(documents[place].source not in sources for place in trial.held)
        assert all(documents[place].topic in learnt for place in trial.held)
    held = Counter(place for trial in trials for place in trial.held)
    assert set(held.values()) <= {1}
    lost = [documents[place] for place in range(len(documents)) if place not in held]
    for document in lost:  # no other group has its topic (there are too few to be cut by MOST_HELD)
        (group,) = (group for group in groups if document.source in group)
        assert not any(other.topic == document.topic and other.source not in group for other in documents)


def test_a_held_document_has_no_copy_among_what_is_learnt_from() -> None:
    of_a, of_b = labelled("a", "x", 20), labelled("b", "x", 20)
    copies = [Labelled(f"copy-{i}", of_a[i].text.upper() + "\n", "en", "x", "b") for i in range(5)]
    documents = [*of_a, *of_b, *copies]
    for trial in trials_of_folds(documents, num_folds=2):
        held = {documents[place].id for place in trial.held}
        learnt_from_a = documents[trial.train[0]].source == "a"
        assert held == {d.id for d in (of_b if learnt_from_a else of_a[5:])}


def test_two_sources_of_many_topics_label_each_other_and_large_sources_are_cut() -> None:
    documents = [
        *(d for topic in "xyz" for d in labelled("dictionary", topic, 30)),
        *(d for topic in "xyz" for d in labelled("wordnet", topic, 10)),
        *labelled("exam", "x", MOST_HELD + 20), *labelled("list", "y", 5, "zh"),
    ]  # fmt: skip
    groups = fold_sources(documents, num_folds=2)
    assert [("dictionary" in group, "wordnet" in group) for group in groups] == [(True, False), (False, True)]
    held = [documents[place] for trial in trials_of_folds(documents, num_folds=2) for place in trial.held]
    counts = Counter((d.source, d.topic) for d in held)
    assert counts["exam", "x"] == MOST_HELD and counts["wordnet", "z"] == 10
    assert counts["list", "y"] == 5  # of another language, whose topic English sources teach


def test_a_choice_goes_by_the_mean_over_languages_of_all_trials_together() -> None:
    """By hand: 4 English documents, 2 Chinese. "one" is right in English alone: (1 + 0) / 2; "two" has half of either
    language: in each F1 of x 2/3 and of y 0, so 1/3."""
    documents = [
        *labelled("a", "x", 2), *labelled("b", "y", 2), *labelled("c", "x", 1, "zh"), *labelled("d", "y", 1, "zh"),
    ]  # fmt: skip
    given_labels = {"one": ["x", "x", "y", "y", "y", "x"], "two": ["x", "x", "x", "x", "x", "x"]}
    assert mean_macro_f1(documents, given_labels["one"], "xy") == pytest.approx(1 / 2)
    assert mean_macro_f1(documents, given_labels["two"], "xy") == pytest.approx(1 / 3)
    assert held_of(documents, [Trial([], [2, 0]), Trial([], [3])]) == [documents[place] for place in (2, 0, 3)]
    assert best_of(["two", "one"], documents, given_labels.__getitem__, "xy") == ("one", given_labels["one"])


def test_a_baseline_keeps_what_it_gave_to_the_held_documents_trial_after_trial() -> None:
    """A direction a topic; but for one held document, whose vector is that of the other topic."""
    documents = [*labelled("one", "a", 4), *labelled("one", "b", 4), *labelled("two", "a", 4), *labelled("two", "b", 4)]
    vectors = np.array([[1.0, 0.0] if document.topic == "a" else [0.0, 1.0] for document in documents], np.float32)
    vectors[9] = [0.0, 1.0]  # an a of the second source
    first, second = list(range(8)), list(range(8, 16))
    trials = [Trial(second, first), Trial(first, second)]
    test = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    found = logistic_regression(vectors, documents, trials, first, test, ("a", "b"))
    assert "".join(found.held) == "aaaabbbb" + "abaabbbb"
    assert found.test == ["b", "a"]


def test_confidence_is_fitted_on_held_documents_and_told_by_language() -> None:
    """Held: two logits of distance 2, right 3 times of 4: the odds are 3, so that the distance must become ln 3. Test:
    the same distance, never right in Chinese."""
    held = labelled("a", "x", 3) + labelled("b", "y", 1)
    test = labelled("c", "x", 2) + labelled("d", "y", 2, "zh")
    found = confidence_of(
        {"held": held, "test": test},
        {"held": np.array([[2.0, 0.0]] * 4), "test": np.array([[2.0, 0.0]] * 4)},
        ("x", "y"), accuracy=0.7,
    )  # fmt: skip
    assert found.temperature == pytest.approx(2 / np.log(3), rel=1e-3)
    assert found.threshold == 0.0
    certain = confidence_of({"held": held[:3]}, {"held": np.array([[2.0, 0.0]] * 3)}, ("x", "y"), accuracy=0.7)
    assert certain.temperature == 1.0  # nothing was wrong, which says nothing of how sure to be
    raw = np.exp(2) / (np.exp(2) + 1)
    assert found.errors["held en"] == pytest.approx((raw - 0.75, 0.0), abs=1e-3)
    assert found.errors["test zh"] == pytest.approx((raw, 0.75), abs=1e-3)
    assert found.kept == {"held en": (1.0, 0.75), "test en": (1.0, 1.0), "test zh": (1.0, 0.0)}
    said = "\n".join(confidence_lines(found))
    assert "The temperature does NOT carry over to test en: 0.119 without it, 0.250 with it." in said
    assert "The threshold does NOT carry over to test zh: 0.0% of what keeps a topic is right, not 70%." in said
    assert (
        "Below confidence 0.000 a document becomes Others: from there on 70% of the held documents are right." in said
    )
    unsure = confidence_of({"held": held}, {"held": np.array([[2.0, 0.0]] * 4)}, ("x", "y"), accuracy=0.9)
    assert unsure.threshold == 1.0  # three of four are right, whatever is asked of their confidence
    said = "\n".join(confidence_lines(unsure))
    assert "At NO confidence are 90% of the held documents right, so every document becomes Others" in said
    assert "from there on" not in said


def test_a_step_is_made_once_and_again_for_another_fingerprint(tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> dict[str, torch.Tensor]:
        made.append("")
        return {"weights": torch.arange(4.0).view(2, 2).T, "none": torch.zeros(0, 3)}

    for _ in range(2):
        found = Kept(tmp_path / "kept", "one").tensors("step", make)
        assert found["weights"].tolist() == [[0.0, 2.0], [1.0, 3.0]] and found["none"].shape == (0, 3)
    assert len(made) == 1
    Kept(tmp_path / "kept", "two").tensors("step", make)
    assert len(made) == 2
