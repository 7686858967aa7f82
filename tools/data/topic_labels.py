"""Labelled documents: read, checked against the list of topics, and split so that the test's sources are new."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from data_mixers.errors import ConfigError, DataError
from tools.data.documents import TOPIC_KEY, TaskDocuments
from tools.data.labels import check_label
from tools.data.near_copies import NearCopies
from tools.data.readers import find_inputs, plan_tasks
from tools.data.units import hashes_of, units_of

OTHERS = "others"
"""The topic of what no other topic fits, and of every document whose label is not confident enough."""

DEV_SHARE = 0.1
"""Of the training documents, where no dev source is named (ours)."""

Kind = tuple[str, str]
"""(language, topic)."""

Topics = Mapping[str, Mapping[str, str]]
"""Language -> topic -> title."""


@dataclass(frozen=True)
class Labelled:
    id: str
    text: str
    language: str
    topic: str
    source: str

    @property
    def kind(self) -> Kind:
        return self.language, self.topic


@dataclass(frozen=True)
class Split:
    """Train and dev come from the training sources (dev from dev sources, if any), test from sources of its own."""

    train: list[Labelled]
    dev: list[Labelled]
    test: list[Labelled]
    test_sources: tuple[str, ...]
    untested: dict[str, str]
    """"language/topic" -> why there is no figure for it."""
    num_duplicates: int
    """Documents left out because the same text is in training, or came before in the test."""
    num_dev_copies: int
    """Documents of dev left out because the same text is in training: what is chosen on them would be chosen on it."""


def read_topics(path: Path | None) -> Topics:
    """The topics of a file like topics.json, or the project's own.

    Errors: ConfigError naming the file if it is not language -> topic -> title, has no "others", or holds a name that
    preprocess could not make a source of.
    """
    if path is None:
        path = Path(__file__).with_name("topics") / "topics.json"
    try:
        topics: dict[str, dict[str, str]] = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigError(f"--topics {path} cannot be read: {error}") from error
    is_table = isinstance(topics, dict) and all(
        isinstance(titles, dict) and titles and all(isinstance(title, str) for title in titles.values())
        for titles in topics.values()
    )
    if not topics or not is_table:
        raise ConfigError(f"--topics {path} must be an object: language -> topic -> title")
    for language, titles in topics.items():
        if OTHERS not in titles:
            raise ConfigError(f'--topics {path}: language {language} has no topic "{OTHERS}", the home of the rest')
        for name in (language, *titles):
            check_label(name, option=f"--topics {path}: language {language}:")
    return topics


def read_labelled(inputs: Sequence[str], *, topics: Topics, text_key: str) -> tuple[list[Labelled], Counter[str]]:
    """(Every labelled document of these files, in order; lines that are none, by reason).

    Errors: DataError naming file and line for a missing or unknown language, topic or source.
    """
    found: list[Labelled] = []
    left_out: Counter[str] = Counter()
    for task in plan_tasks(find_inputs(tuple(inputs))):
        documents = TaskDocuments(task, text_key=text_key)
        for document in documents:
            where = f"{task.path}, document {document.id}"
            keys = ("language", TOPIC_KEY, "source")
            for key in keys:
                if not isinstance(value := document.fields.get(key), str) or not value:
                    raise DataError(f"{where}: {key!r} must be text, it is {value!r}")
            language, topic, source = (document.fields[key] for key in keys)
            if language not in topics:
                raise DataError(f"{where}: language {language!r} has no topics; known: {', '.join(topics)}")
            if topic not in topics[language]:
                raise DataError(f"{where}: unknown topic {topic!r}; known: {', '.join(topics[language])}")
            found.append(Labelled(document.id, document.text, language, topic, source))
        left_out.update(reason for _, reason in documents.bad)
    if not found:
        raise DataError(f"{', '.join(inputs)}: no labelled document was found; {dict(left_out)}")
    return found, left_out


def split_by_source(
    documents: Sequence[Labelled],
    *,
    test_sources: Sequence[str] = (),
    dev_sources: Sequence[str] = (),
    dev_share: float = DEV_SHARE,
    seed: int = 0,
) -> Split:
    """Whole sources go to the test: a model that only knows a source's style fails there.

    test_sources: default: small sources first, each source that leaves every topic of its own at least one training
    source and gives a topic its first test.
    dev: documents of dev_sources, or, without any, a share of the training documents by the hash of their id; a share
    of 0: none.
    Errors: ConfigError for a source that is not there, or if nothing is left to train, develop or test on; DataError
    if there is only one topic.
    """
    kinds = {d.kind for d in documents}
    if len({topic for _, topic in kinds}) < 2:
        raise DataError(
            f"all {len(documents)} documents have the topic {documents[0].topic!r}; two are needed to learn"
        )
    there = {d.source for d in documents}
    for option, names in (("--test-source", test_sources), ("--dev-source", dev_sources)):
        for name in names:
            if name not in there:
                raise ConfigError(f"{option} {name} is no source; there are {', '.join(sorted(there))}")
    if set(test_sources) & set(dev_sources):
        raise ConfigError(f"--test-source and --dev-source share {sorted(set(test_sources) & set(dev_sources))}")
    chosen = set(test_sources) or _choose_test_sources(documents, set(dev_sources))
    train, dev, candidates = [], [], []
    for document in documents:
        if document.source in chosen:
            candidates.append(document)
        elif document.source in dev_sources or (not dev_sources and _unit(document.id, seed) < dev_share):
            dev.append(document)
        else:
            train.append(document)
    learned = {d.kind for d in train}
    texts = {settled_text(d) for d in train}
    learnt_dev = [d for d in dev if d.kind in learned]
    dev = [d for d in learnt_dev if settled_text(d) not in texts]
    num_dev_copies = len(learnt_dev) - len(dev)
    seen = {settled_text(d) for d in (*train, *dev)}
    test, num_duplicates = [], 0
    for document in candidates:
        if settled_text(document) in seen:
            num_duplicates += 1
        elif document.kind in learned:
            seen.add(settled_text(document))
            test.append(document)
    untested = _untested(documents, kinds, {d.kind for d in test}, learned)
    if not train or not (dev or dev_share == 0) or len({d.topic for d in train}) < 2:
        raise ConfigError(
            f"{len(train)} documents of {len({d.topic for d in train})} topics are left to train on and {len(dev)} to "
            "develop on; name fewer --test-source and --dev-source, or label more"
        )
    return Split(train, dev, test, tuple(sorted(chosen)), untested, num_duplicates, num_dev_copies)


def _choose_test_sources(documents: Sequence[Labelled], kept: set[str]) -> set[str]:
    topics_of: dict[str, set[Kind]] = {}
    sources_of: dict[Kind, set[str]] = {}
    for document in documents:
        if document.source not in kept:
            topics_of.setdefault(document.source, set()).add(document.kind)
            sources_of.setdefault(document.kind, set()).add(document.source)
    sizes = Counter(d.source for d in documents)
    chosen: set[str] = set()
    tested: set[Kind] = set()
    for source in sorted(topics_of, key=lambda name: (sizes[name], name)):
        leaves_one = all(sources_of[kind] - chosen - {source} for kind in topics_of[source])
        if leaves_one and topics_of[source] - tested:
            chosen.add(source)
            tested |= topics_of[source]
    return chosen


def _untested(documents: Sequence[Labelled], kinds: set[Kind], tested: set[Kind], learned: set[Kind]) -> dict[str, str]:
    reasons = {}
    for language, topic in sorted(kinds - tested):
        sources = sorted({d.source for d in documents if d.kind == (language, topic)})
        if len(sources) == 1:
            reason = f"one source only ({sources[0]})"
        elif (language, topic) not in learned:
            reason = f"no training source (its sources: {', '.join(sources)})"
        else:
            reason = f"no test source (its sources: {', '.join(sources)})"
        reasons[f"{language}/{topic}"] = reason
    return reasons


def _unit(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on name and seed alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def near_copies(split: Split) -> Counter[str]:
    """How many documents of each training source hold half of a test document's 5-grams of units (near_copies.py).

    They stay where they are: what is near may still say something else, or be a phrase that anybody uses.
    """
    if not split.test:
        return Counter()
    table = NearCopies.of([hashes_of(units_of(document.text)) for document in split.test])
    learnt = (*split.train, *split.dev)
    return Counter(document.source for document in learnt if table.is_near(hashes_of(units_of(document.text))))


def settled_text(document: Labelled) -> str:
    """In lower case, with single blanks: documents that share it are copies."""
    return " ".join(document.text.lower().split())
