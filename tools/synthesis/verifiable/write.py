"""Items into a file: `syne synth verifiable`."""

from itertools import islice
from pathlib import Path

from data_mixers.errors import ConfigError
from tools.data.documents import DocumentWriter
from tools.data.progress import LiveProgress
from tools.synthesis.output import check_out
from tools.synthesis.verifiable.stream import item_space, items
from tools.synthesis.verifiable.topic import Kind

ITEMS_PER_REPORT = 100


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
