"""How sure the classifier is, and below which confidence a document becomes Others: fitted on held documents."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tools.data.topic_labels import Labelled
from tools.data.topic_metrics import calibration_error, choose_threshold, fit_temperature, softmax
from tools.data.topic_report import Confidence


def confidence_of(
    documents: dict[str, Sequence[Labelled]],
    logits: dict[str, NDArray[np.float64]],
    labels: tuple[str, ...],
    *,
    accuracy: float,
) -> Confidence:
    """Temperature and threshold of the held documents, and what they do on the test's. Keys: held, test."""
    truth = {part: np.array([labels.index(d.topic) for d in documents[part]], dtype=np.int64) for part in logits}
    right = {part: logits[part].argmax(axis=1) == truth[part] for part in logits}
    # Where all are right the lowest temperature there is would fit best, and every label would be certain.
    temperature = 1.0 if right["held"].all() else fit_temperature(logits["held"], truth["held"])
    raw = {part: softmax(logits[part]).max(axis=1) for part in logits}
    scaled = {part: softmax(logits[part], temperature=temperature).max(axis=1) for part in logits}
    threshold = choose_threshold(scaled["held"], right["held"], accuracy=accuracy)
    errors, kept = {}, {}
    for part in logits:
        languages = np.array([d.language for d in documents[part]])
        for language in sorted(set(languages.tolist())):
            of_it = languages == language
            errors[f"{part} {language}"] = (
                calibration_error(raw[part][of_it], right[part][of_it]),
                calibration_error(scaled[part][of_it], right[part][of_it]),
            )
            above = of_it & (scaled[part] >= threshold)
            hits = float(right[part][above].mean()) if above.any() else 0.0
            kept[f"{part} {language}"] = (float(above.sum() / of_it.sum()), hits)
    return Confidence(temperature, threshold, accuracy, errors, kept)
