"""Item 0, 1, 2, ... of a kind: its topics in turn, each through a keyed permutation of its problems.

No problem comes twice, and the first N items are the same for every number of items that is asked for.
"""

import importlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from data_mixers.errors import ConfigError
from data_mixers.permutation import Permutation, keyed_hash
from tools.data.documents import DocumentWriter
from tools.data.progress import LiveProgress
from tools.synthesis.output import check_out
from tools.synthesis.record import QaRecord
from tools.synthesis.verifiable import wording
from tools.synthesis.verifiable.topic import Kind, Topic

ITEMS_PER_REPORT = 100


def topics_of(kind: Kind) -> list[Topic]:
    """The topics of a kind. Errors: ConfigError if a package with its facts is missing."""
    found: list[Topic] = importlib.import_module(f"tools.synthesis.verifiable.{kind}").topics()
    return found


def item_space(kind: Kind) -> dict[str, int]:
    """How many different problems each topic has."""
    return {topic.name: topic.size for topic in topics_of(kind)}


def items(kind: Kind, language: str, *, seed: int) -> Iterator[QaRecord]:
    """All problems of a kind, topics in turn as long as each lasts.

    Cost: 0.05 (arithmetic) to 0.4 ms (calculus) of one core an item.
    Errors: ConfigError for a language without wordings.
    """
    topics = topics_of(kind)
    orders = {topic.name: Permutation(topic.size, "verifiable", seed, topic.name) for topic in topics}
    for turn in range(max(topic.size for topic in topics)):
        for topic in topics:
            if turn < topic.size:
                yield _record(kind, topic, orders[topic.name][turn], language, seed)


def write_items(kind: Kind, language: str, *, num: int, seed: int, out: Path) -> str:
    """Write the first `num` items of a kind and say what was written.

    Errors: ConfigError if there are not so many, for an unknown language, or if `out` cannot be written.
    """
    space = item_space(kind)
    total = sum(space.values())
    if num > total:
        sizes = ", ".join(f"{name} {size}" for name, size in space.items())
        raise ConfigError(f"--num {num}: {kind} has {total} different problems ({sizes})")
    check_out(out)
    counts = dict.fromkeys(space, 0)
    stream = islice(items(kind, language, seed=seed), num)
    with LiveProgress(f"{kind} {language}", total=num, unit="pairs", scale=1) as progress, DocumentWriter(out) as file:
        for number, record in enumerate(stream, start=1):
            file.write(record.to_json())
            counts[record.generator.rpartition("/")[2]] += 1
            if number % ITEMS_PER_REPORT == 0:
                progress.advance(ITEMS_PER_REPORT)
    written = ", ".join(f"{name} {count} of {space[name]}" for name, count in counts.items() if count)
    return f"{out}: {num} pairs ({written})"


def _record(kind: Kind, topic: Topic, number: int, language: str, seed: int) -> QaRecord:
    values = topic.make(number, language)
    question = wording.question(language, topic.name, values, keyed_hash("phrasing", seed, number))
    return QaRecord(
        id=f"{kind}/{topic.name}/{language}/{number}",
        discipline=topic.discipline,
        language=language,
        question=question[:1].upper() + question[1:],
        answer=wording.answer(language, topic.name, values),
        generator=f"verifiable:{kind}/{topic.name}",
        final_answer=values["final"],
    )
