"""What came out of training: report.json for programs, report.md for people, the confusion as table and figure."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_mixers.errors import DataError
from tools.data.topic_difference import RESAMPLES, Difference
from tools.data.topic_labels import Labelled
from tools.data.topic_metrics import Array, Scores, calibration_error, choose_threshold, fit_temperature, softmax

REPORT = "report.json"
OURS = "ours"
INTERVAL = (
    f"In brackets the 95 % of a paired bootstrap over the test's documents ({RESAMPLES:,} resamples, within each "
    "source): other documents of these sources, not other sources."
)


@dataclass(frozen=True)
class Confidence:
    """Temperature and threshold, chosen on held documents, and what they do. Keys: "held en", "test zh", …"""

    temperature: float
    threshold: float
    accuracy: float
    """What the held documents above the threshold had to reach."""
    errors: Mapping[str, tuple[float, float]]
    """Expected calibration error, raw and after temperature scaling."""
    kept: Mapping[str, tuple[float, float]]
    """(Share of the documents above the threshold, accuracy among them)."""


def confidence_of(
    documents: dict[str, Sequence[Labelled]], logits: dict[str, Array], labels: tuple[str, ...], *, accuracy: float
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


@dataclass(frozen=True)
class Way:
    title: str
    is_chosen: bool
    held: Mapping[str, float]
    """Macro-F1 on the held documents: what the choice is made by."""
    test: Mapping[str, float]
    """The same on the test, which decides nothing."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Keys of report.json, but for those of `confidence`."""

    settings: Mapping[str, Any]
    split: Mapping[str, Any]
    untested: Mapping[str, str]
    left_out: Mapping[str, int]
    results: Mapping[str, Mapping[str, Scores]]
    """Classifier -> language -> scores on the test sources, every document labelled with its most likely topic."""
    sources: Mapping[str, Mapping[str, Scores]]
    """Classifier -> "language/source" -> the same."""
    differences: Mapping[str, Mapping[str, Difference]]
    """Baseline -> language -> macro-F1 of ours minus that of the baseline."""
    not_measured: Mapping[str, str]
    """Baseline -> why there is no figure."""
    ways: Sequence[Way]
    baselines: Sequence[Way]
    """The same trials."""
    held: Scores
    """On documents that the trials did not learn from."""
    confidence: Confidence
    seconds: Mapping[str, float]


def write_report(report: Report, folder: Path) -> None:
    """report.json, report.md, confusion.csv and confusion.png into `folder`."""
    text = json.dumps(_content(report), ensure_ascii=False, indent=1, default=_plain)
    (folder / REPORT).write_text(text, encoding="utf-8")
    (folder / "report.md").write_text(as_markdown(report), encoding="utf-8")
    (folder / "confusion.csv").write_text(_as_csv(report.results[OURS]), encoding="utf-8")
    if report.results[OURS]:
        _plot(report.results[OURS], folder / "confusion.png")


def _content(report: Report) -> dict[str, Any]:
    """report.json; unrounded."""
    confidence = report.confidence
    others = {name: value for name, value in vars(report).items() if name not in ("confidence", "seconds")}
    return others | {
        "temperature": confidence.temperature,
        "threshold": confidence.threshold,
        "threshold_accuracy": confidence.accuracy,
        "calibration_error": {
            part: {"raw": raw, "scaled": scaled} for part, (raw, scaled) in confidence.errors.items()
        },
        "kept": {part: {"share": share, "accuracy": right} for part, (share, right) in confidence.kept.items()},
        "seconds": report.seconds,
    }


def _plain(value: Scores | Difference | Way) -> dict[str, Any]:
    if isinstance(value, Way):
        return {"way": value.title, "chosen": value.is_chosen, "held": value.held, "test": value.test}
    if isinstance(value, Difference):
        return asdict(value) | {"verdict": value.verdict}
    return {
        "num_documents": value.num_documents,
        "accuracy": value.accuracy,
        "macro_f1": value.macro_f1,
        "f1": {topic: value.f1(topic) for topic in value.tested},
        "topics": value.topics,
        "confusion": value.confusion.tolist(),
    }


def as_markdown(report: Report) -> str:
    lines = ["## Split", ""]
    lines += [f"- {key}: {value}" for key, value in report.split.items()]
    for language in report.results[OURS]:
        lines += ["", *_language(report, language)]
    if len(report.ways) > 1:
        lines += ["", *_ways(report.ways, report.baselines)]
    if report.sources[OURS]:
        lines += ["", *_by_source(report)]
    lines += [f"\n{name} is not measured: {reason}" for name, reason in report.not_measured.items()]
    lines += ["", *confidence_lines(report.confidence)]
    lines += ["", f"Held documents: accuracy {report.held.accuracy:.3f}, macro-F1 {report.held.macro_f1:.3f}."]
    if report.untested:
        lines += ["", "## Untested", ""]
        lines += [f"- {name}: {reason}" for name, reason in report.untested.items()]
    if report.left_out:
        lines += ["", "Lines left out: " + ", ".join(f"{reason} ({n})" for reason, n in report.left_out.items())]
    return "\n".join(lines) + "\n"


def _language(report: Report, language: str) -> list[str]:
    ours = report.results[OURS][language]
    names = list(report.results)
    of_name = {name: report.results[name][language] for name in names}
    support = dict(zip(ours.topics, ours.confusion.sum(axis=1).tolist(), strict=True))
    rows = [("accuracy", [of_name[name].accuracy for name in names])]
    rows += [("**macro-F1**", [of_name[name].macro_f1 for name in names])]
    rows += [(f"F1 {topic} ({support[topic]:,})", [of_name[name].f1(topic) for name in names]) for topic in ours.tested]
    lines = [f"## {language}: {ours.num_documents:,} documents of new sources, {len(ours.tested)} topics", ""]
    lines += ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    lines += [f"| {title} | " + " | ".join(f"{value:.3f}" for value in values) + " |" for title, values in rows]
    for name, differences in report.differences.items():
        found = differences[language]
        lines += ["", f"Ours is {found.verdict} {name}: macro-F1 {found}."]
    if report.differences:
        lines += ["", INTERVAL]
    return lines


def _by_source(report: Report) -> list[str]:
    names = list(report.sources)
    lines = ["## By test source", "", "Accuracy, and macro-F1 over the topics that the source has.", ""]
    lines += ["| source | documents | topics | " + " | ".join(names) + " |", "|---|---:|---:|" + "---:|" * len(names)]
    for source, ours in report.sources[OURS].items():
        cells = [report.sources[name][source] for name in names]
        shown = " | ".join(f"{cell.accuracy:.3f}, {cell.macro_f1:.3f}" for cell in cells)
        lines.append(f"| {source} | {ours.num_documents:,} | {len(ours.tested)} | {shown} |")
    return lines


def _ways(ways: Sequence[Way], baselines: Sequence[Way]) -> list[str]:
    """What the held documents say, and what the test says of it afterwards."""
    languages = list(ways[0].held)
    lines = [
        "## Ways of training",
        "",
        "Macro-F1. The held documents decide, by its mean over the languages; the test, shown beside it, decides "
        "nothing. The baselines, in the same trials, are not chosen from.",
        "",
    ]
    titles = [f"held {language}" for language in languages] + ["held, mean"] + [f"test {name}" for name in languages]
    lines += [f"| | {' | '.join(titles)} |", "|---|" + "---:|" * len(titles)]
    for way in (*ways, *baselines):
        cells = [f"{value:.3f}" for value in (*way.held.values(), sum(way.held.values()) / len(languages))]
        cells += [f"{way.test[language]:.3f}" if language in way.test else "untested" for language in languages]
        lines.append(f"| {way.title}{' (chosen)' if way.is_chosen else ''} | {' | '.join(cells)} |")
    chosen = next(way for way in ways if way.is_chosen)
    for language in languages:
        best = max(ways, key=lambda way: way.held[language])
        lines += ["", f"For {language} alone the held documents recommend: {best.title}."]
        better = [way for way in ways if way.test.get(language, 0.0) > chosen.test.get(language, 1.0)]
        lines += [
            f"On the test {way.title} is better for {language} than what was chosen: "
            f"{way.test[language]:.3f} against {chosen.test[language]:.3f}."
            for way in better
        ]
    return lines


def confidence_lines(confidence: Confidence) -> list[str]:
    """Calibration and threshold, and what of it does not hold on the test."""
    lines = [
        "## Confidence", "",
        "| documents | calibration error, raw | after temperature scaling | keep a topic | of these right |",
        "|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for part, (raw, scaled) in confidence.errors.items():
        share, right = confidence.kept[part]
        lines.append(f"| {part} | {raw:.3f} | {scaled:.3f} | {share:.1%} | {right:.1%} |")
    lines += ["", f"Temperature {confidence.temperature:.3f}. {threshold_sentence(confidence)}"]
    for part, (raw, scaled) in confidence.errors.items():
        share, right = confidence.kept[part]
        if part.startswith("test") and scaled > raw:
            lines += ["", f"The temperature does NOT carry over to {part}: {raw:.3f} without it, {scaled:.3f} with it."]
        if part.startswith("test") and share and right < confidence.accuracy:
            missed = f"{right:.1%} of what keeps a topic is right, not {confidence.accuracy:.0%}"
            lines += ["", f"The threshold does NOT carry over to {part}: {missed}."]
    return lines


def threshold_sentence(confidence: Confidence) -> str:
    """What the threshold does, or that there is none."""
    if confidence.threshold >= 1:
        return (
            f"At NO confidence are {confidence.accuracy:.0%} of the held documents right, so every document becomes "
            "Others; lower --accuracy, give `syne data label-topics` a --threshold, or label more."
        )
    return (
        f"Below confidence {confidence.threshold:.3f} a document becomes Others: from there on "
        f"{confidence.accuracy:.0%} of the held documents are right."
    )


def _as_csv(languages: Mapping[str, Scores]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for language, scores in languages.items():
        writer.writerow(["language", "true topic", *scores.topics])
        for topic, row in zip(scores.topics, scores.confusion.tolist(), strict=True):
            if sum(row):
                writer.writerow([language, topic, *row])
    return stream.getvalue()


def _plot(languages: Mapping[str, Scores], file: Path) -> None:
    from matplotlib.figure import Figure  # not pyplot: that keeps every figure in global state

    figure = Figure(figsize=(8 * len(languages), 7))
    axes = figure.subplots(1, len(languages), squeeze=False)
    for axis, (language, scores) in zip(axes.flat, languages.items(), strict=True):
        rows = [scores.topics.index(topic) for topic in scores.tested]
        counts = scores.confusion[rows].astype(float)
        shares = counts / counts.sum(axis=1, keepdims=True)
        axis.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for (y, x), share in np.ndenumerate(shares):
            if share >= 0.01:
                axis.text(x, y, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.5 else "black")
        axis.set_xticks(range(len(scores.topics)), scores.topics, rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(len(rows)), scores.tested, fontsize=8)
        axis.set_title(f"{language}: share of true topic (row) labelled as (column)")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def read_confusion(file: Path, language: str) -> tuple[tuple[str, ...], Array]:
    """(tested topics, share of each true topic's documents that got each label [true, label]) of a report.json.

    Labels that are no tested topic are left out and the rows scaled to 1: such pages leave the mixture.
    Errors: DataError naming the file, or the language it does not have.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))["results"][OURS]
        found = content[language]
        topics, counts = tuple(found["topics"]), np.array(found["confusion"], dtype=float)
        if counts.shape != (len(topics), len(topics)):
            raise ValueError(f"a confusion of shape {counts.shape} for {len(topics)} topics")
    except KeyError as error:
        raise DataError(f"{file} has no confusion of {error}; name another language or report.json") from error
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file} is no report of `syne data train-classifier`: {error}") from error
    tested = np.flatnonzero(counts.sum(axis=1))
    square = counts[np.ix_(tested, tested)]
    if len(tested) < 2 or not square.sum(axis=1).all():
        raise DataError(
            f"{file}, {language}: fewer than two topics were tested, or one is never labelled as any of them"
        )
    return tuple(topics[index] for index in tested), square / square.sum(axis=1, keepdims=True)
