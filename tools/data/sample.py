"""`syne data sample`: a few documents to look at, by source, topic and PPL percentile."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from data_mixers.errors import ConfigError, DataError
from megatron_synE.data.tokenizers import Tokenizer, load_tokenizer
from tools.data.described import DescribedSource, describe
from tools.data.documents import Document, TaskDocuments, source_of_file
from tools.data.options import SampleOptions
from tools.data.readers import find_inputs, plan_tasks

WINDOW = 0.01  # of the scored documents, on each side of a percentile


@dataclass(frozen=True, kw_only=True)
class Sample:
    source: str
    topic: str | None
    id: str | None
    """None where no .documents.parquet says it; likewise file and place."""
    file: str | None
    place: int | None
    text: str
    num_tokens: int | None = None
    ppl: float | None = None
    percentile: float | None = None
    """Share of its source's scored documents, in percent, that have a lower PPL."""


def samples(options: SampleOptions) -> list[Sample]:
    """`options.num` documents of each source that fits, in the order of their PPL, or of the file where none is known;
    of raw files, whose source is that of their name or folder, as many in all, each equally likely.

    Errors: ConfigError if the options or the tokenizer do not fit, or nothing fits them; DataError if a percentile is
    asked of a source without scores.
    """
    if options.inputs and options.data is None and options.percentile is None:
        return _of_files(options)
    if options.data is None or options.tokenizer is None or options.inputs:
        raise ConfigError("give --data with --tokenizer, or --input without --percentile")
    sources, identity = describe(options.data, scores_name=options.scores)
    tokenizer = load_tokenizer(options.tokenizer)
    if identity is not None and identity.digest != tokenizer.digest:
        raise ConfigError(
            f"{options.data} was made with another tokenizer than {options.tokenizer}; name the right --tokenizer"
        )
    chosen = [entry for entry in sources if fnmatchcase(entry.name, options.source)]
    if options.topic is not None:
        chosen = [entry for entry in chosen if entry.topic in (options.topic, None)]
    if not chosen:
        known = ", ".join(entry.name for entry in sources)
        asked = f"{options.source}{f' --topic {options.topic}' if options.topic else ''}"
        raise ConfigError(f"no source fits --source {asked}; there are {known}")
    found = [taken for entry in chosen for taken in _of_source(entry, tokenizer, options)]
    if not found:
        raise ConfigError(f"no document fits --source {options.source} and the other options in {options.data}")
    return found


def _of_source(source: DescribedSource, tokenizer: Tokenizer, options: SampleOptions) -> Iterator[Sample]:
    missing = [shard.scores_path for shard in source.shards if shard.ppl is None]
    if options.percentile is not None and missing:
        raise DataError(
            f"{missing[0]} is missing or has no NLL, so --percentile cannot be told: run `syne data score-ppl` first"
        )
    counts = [shard.num_documents for shard in source.shards]
    found = [shard.ppl for shard in source.shards]
    ppl = np.full(sum(counts), math.nan) if missing else np.concatenate([each for each in found if each is not None])
    is_wanted = np.concatenate([shard.is_text for shard in source.shards])
    if options.topic is not None and source.topic is None:  # no manifest says it
        is_wanted &= np.concatenate([shard.has_topic(options.topic) for shard in source.shards])
    texts = np.flatnonzero(is_wanted)
    num_scored = int(np.count_nonzero(~np.isnan(ppl[texts])))
    order = texts[np.argsort(ppl[texts], kind="stable")]  # those without a PPL are last, in the order of the file
    count = len(order) if options.percentile is None else num_scored
    for rank in _ranks(count, options, random.Random(f"{options.seed}:{source.name}")):
        number = int(order[rank])
        shard_index = int(np.searchsorted(np.cumsum(counts), number, side="right"))
        shard = source.shards[shard_index]
        inside = number - sum(counts[:shard_index])
        start, stop = (int(place) for place in shard.starts[inside : inside + 2])
        ids = shard.tokens.tokens(start, stop).tolist()
        row = shard.document(inside)
        is_scored = not math.isnan(ppl[number])
        yield Sample(
            source=source.name,
            topic=row.get("topic") or source.topic,
            id=row.get("id"),
            file=row.get("file"),
            place=row.get("place"),
            num_tokens=stop - start,
            ppl=float(ppl[number]) if is_scored else None,
            percentile=100 * rank / max(1, num_scored - 1) if is_scored else None,
            text=tokenizer.decode(ids[:-1] if ids and ids[-1] == tokenizer.eos_id else ids),
        )


def _ranks(count: int, options: SampleOptions, rng: random.Random) -> list[int]:
    """Ranks to look at, ascending: among the 2 % of the documents round the percentile, or among all."""
    percentile, num = options.percentile, options.num
    if percentile is None:
        return sorted(rng.sample(range(count), min(num, count)))
    centre = round(percentile / 100 * (count - 1))
    reach = max(math.ceil(WINDOW * count), num // 2 + 1)
    window = range(max(0, centre - reach), min(count, centre + reach + 1))
    return sorted(rng.sample(window, min(num, len(window))))


def _of_files(options: SampleOptions) -> list[Sample]:
    """All files are read once."""
    rng = random.Random(options.seed)
    kept: list[tuple[Path, Document]] = []
    seen = 0
    paths = find_inputs(options.inputs)
    for task in plan_tasks([path for path in paths if fnmatchcase(source_of_file(path), options.source)]):
        for document in TaskDocuments(task, text_key=options.text_key):
            if options.topic is not None and document.fields.get("topic") != options.topic:
                continue
            seen += 1
            place = rng.randrange(seen)
            if len(kept) < options.num:
                kept.append((task.path, document))
            elif place < options.num:
                kept[place] = (task.path, document)
    if not kept:
        known = ", ".join(dict.fromkeys(map(source_of_file, paths)))
        raise ConfigError(f"no document fits in {', '.join(options.inputs)}, whose sources are {known}")
    return [
        Sample(
            source=source_of_file(path),
            topic=found if isinstance(found := document.fields.get("topic"), str) else None,
            id=document.id,
            file=str(path),
            place=document.place,
            text=document.text,
        )
        for path, document in kept
    ]


def shown(entry: Sample, *, max_characters: int) -> str:
    """A document as a person reads it: a line of facts, then the text."""
    facts = [entry.source]
    if entry.topic is not None:
        facts.append(f"topic {entry.topic}")
    if entry.id is not None:
        facts.append(f"id {entry.id}")
    if entry.file is not None:
        facts.append(f"{entry.file}:{entry.place}")
    if entry.num_tokens is not None:
        facts.append(f"{entry.num_tokens:,} tokens")
    if entry.ppl is not None:
        facts.append(f"PPL {entry.ppl:,.2f} (percentile {entry.percentile:.1f})")
    rest = len(entry.text) - max_characters
    text = entry.text if rest <= 0 else f"{entry.text[:max_characters]}\n... {rest:,} more characters"
    return f"== {' · '.join(facts)}\n{text}"
