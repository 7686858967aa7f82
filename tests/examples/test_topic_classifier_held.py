"""What the sentences of programs add on held documents, where it can be told by hand."""

import numpy as np
from torch import nn

from examples.topic_classifier.held import tried
from tools.data.topic_head import fit_linear
from tools.data.topic_labels import Labelled

A, B = "history_and_geography", "law_and_policy"
PLACES = {("en_x", A): [1, 0, 0], ("en_x", B): [0, 1, 0], ("zh_word_lists", B): [0, 1, 0]}  # of a text, by its topic
CHINESE_A = [0, 0.2, 1]  # in English nothing is there, and the nearest is a B


def test_what_only_a_programs_sentences_show_is_found_with_them_and_missed_without() -> None:
    """The word lists, 10 of either topic: all right, or all called B: F1 0 and 2 · 10 / (10 + 20)."""
    counts = {("en_x", A): 6, ("en_x", B): 6, ("zh_word_lists", A): 10, ("zh_word_lists", B): 10, ("zh_nations", A): 4}
    documents = [
        Labelled(f"{source}-{topic}-{number}", f"{topic} {number}", source[:2], topic, source)
        for (source, topic), count in counts.items()
        for number in range(count)
    ]
    vectors = np.array([PLACES.get((d.source, d.topic), CHINESE_A) for d in documents], np.float32)

    def fit(places: list[int], penalty: float) -> nn.Linear:
        wanted = [(A, B).index(documents[place].topic) for place in places]
        return fit_linear(vectors[places], wanted, num_topics=2, penalty=penalty)

    found = [row.split(" | ") for row in tried(documents, vectors, (A, B), fit, (1e-3,))]
    assert [(row[0], row[-1]) for row in found] == [("| with", "1.000 |"), ("| without", "0.333 |")]
