"""Text that was trained on in a range of steps: which documents stand behind a sample, decoded."""

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow

from data_mixers.errors import ConfigError, DataError, UserError
from data_mixers.manifest import DatasetManifest, SourceEntry
from data_mixers.sampling import Sampler
from megatron_synE.data.indexed import IndexedFile
from megatron_synE.data.tokenizers import Tokenizer, load_tokenizer
from tools.data.sidecar import read_row, sidecar_path
from tools.report.content import Block, Excerpt, Missing, Section, Text
from tools.report.data_behind import manifests_of
from tools.report.run_record import RunRecord

MOST_DOCUMENTS = 6
"""Of one sample that are shown; a window of short ones holds hundreds."""
MOST_CHARACTERS = 600
"""Of each document."""


def parse_steps(text: str | None) -> tuple[int, int] | None:
    """(A, B) of A:B, both included. Errors: ConfigError."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--steps {text}: give two steps A:B, both included, e.g. 1:100 for the first hundred")
    return int(first), int(last)


def samples(
    runs: Sequence[RunRecord], num: int, *, steps: tuple[int, int] | None = None, tokenizer: Path | None = None
) -> Section:
    """So many samples of each run, each equally likely, in the order they were read.

    steps: the first and the last, both included; None: all that was read.
    tokenizer: None: of the run's newest checkpoint, else of the weights it began with.
    """
    blocks: list[Block] = []
    for run in runs:
        try:
            blocks += _of_run(run, num, steps, tokenizer, many=len(runs) > 1)
        except (UserError, OSError, pyarrow.ArrowException) as error:
            blocks.append(Missing(f"{run.name}: no sample can be shown: {error}"))
    return Section("Text that was read", blocks)


def _of_run(run: RunRecord, num: int, steps: tuple[int, int] | None, folder: Path | None, *, many: bool) -> list[Block]:
    if run.schedule is None or run.config is None:
        raise DataError("schedule.json and run_config.yaml say which data it read, and one of them is missing")
    batch = run.config.training.global_batch_size
    consumed = min(int(run.metrics.last("consumed_samples") or 0), run.schedule.num_samples)
    begin, end = (0, consumed) if steps is None else ((steps[0] - 1) * batch, steps[1] * batch)
    if begin >= min(end, consumed):
        asked = "its samples" if steps is None else f"steps {steps[0]}:{steps[1]}"
        raise DataError(f"{asked} were not read; the run stands at step {run.iteration:,}")
    blocks: list[Block] = []
    if end > consumed:
        blocks.append(Text(f"{run.name} stands at step {run.iteration:,}; what comes later is not read yet."))
    there = range(begin, min(end, consumed))
    chosen = sorted(random.Random(run.schedule.seed).sample(there, k=min(num, len(there))))
    manifests, faults = manifests_of(run)
    blocks += [Missing(fault) for fault in faults]
    entries = {entry.name: (manifest, entry) for manifest in manifests for entry in manifest.sources}
    tokenizer, why = _tokenizer(run, folder, manifests)
    blocks += [Missing(f"{run.name}: {why}; token ids are shown instead")] if tokenizer is None else []
    sampler = Sampler(run.schedule)
    prefix = f"{run.name}, " if many else ""
    for number in chosen:
        blocks.append(_excerpt(run, sampler, entries, number, tokenizer, prefix=prefix))
    return blocks


def _excerpt(
    run: RunRecord,
    sampler: Sampler,
    entries: dict[str, tuple[DatasetManifest, SourceEntry]],
    number: int,
    tokenizer: Tokenizer | None,
    *,
    prefix: str,
) -> Block:
    """One sample; what stands behind it is said even where its text cannot be read."""
    assert run.schedule is not None and run.config is not None
    address = sampler.address(number)
    source = run.schedule.sources[address.source_index]
    step = number // run.config.training.global_batch_size + 1
    title = f"{prefix}step {step:,}, sample {number:,}: {source.name}"
    facts = [f"epoch {address.epoch + 1}", f"token {address.token_offset:,} of shard {address.shard_index}"]
    if source.name not in entries:
        return Excerpt(title=title, facts=[*facts, "its data folder cannot be read"], text="")
    manifest, entry = entries[source.name]
    if address.shard_index >= len(entry.shards):
        return Excerpt(title=title, facts=[*facts, f"{manifest.folder} was written again since: fewer files"], text="")
    shard = entry.shards[address.shard_index]
    if shard.bin_sha256 != source.shards[address.shard_index].sha256:
        return Excerpt(title=title, facts=[*facts, f"{shard.prefix} was written again since: other text"], text="")
    prefix_path = manifest.shard_prefix(shard)
    try:
        file = IndexedFile(prefix_path)
        told, text = _documents(file, prefix_path, address.token_offset, run.schedule.seq_length, tokenizer)
    except DataError as error:
        return Excerpt(title=title, facts=[*facts, str(error)], text="")
    return Excerpt(title=title, facts=[*facts, f"in {shard.prefix}", *told], text=text)


def _documents(
    file: IndexedFile, prefix: Path, start: int, seq_length: int, tokenizer: Tokenizer | None
) -> tuple[list[str], str]:
    """(what is known of each document in the window, their texts one after the other)."""
    stop = start + seq_length + 1
    inner = [int(place) for place in file.document_starts_in(start + 1, stop)]
    bounds = [start, *inner, stop]
    facts, texts = [], []
    for begin, end in list(zip(bounds[:-1], bounds[1:], strict=True))[:MOST_DOCUMENTS]:
        number = file.document_at(begin)
        facts.append(f"document {number:,}{_known(prefix, number)}")
        texts.append(_decoded(file.tokens(begin, end).tolist(), tokenizer))
    if len(bounds) - 1 > MOST_DOCUMENTS:
        facts.append(f"and {len(bounds) - 1 - MOST_DOCUMENTS} more documents")
    return facts, "\n――――――――\n".join(texts)


def _known(prefix: Path, number: int) -> str:
    row = read_row(prefix, number) if sidecar_path(prefix).is_file() else None
    if row is None:
        return ""
    known = [f"id {row['id']}" if row.get("id") else "", f"{row['file']}:{row.get('place')}" if row.get("file") else ""]
    return "".join(f", {part}" for part in known if part)


def _decoded(ids: list[int], tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        shown = " ".join(map(str, ids[:64]))
        return shown if len(ids) <= 64 else f"{shown} … {len(ids) - 64:,} more"
    text = tokenizer.decode(ids[:-1] if ids and ids[-1] == tokenizer.eos_id else ids)
    left = len(text) - MOST_CHARACTERS
    return text if left <= 0 else f"{text[:MOST_CHARACTERS]}… {left:,} more characters"


def _tokenizer(
    run: RunRecord, folder: Path | None, manifests: Sequence[DatasetManifest]
) -> tuple[Tokenizer | None, str]:
    """(the tokenizer of the data, why there is none). The first that has the data's digest is taken."""
    places = [folder] if folder is not None else _places(run)
    tried = []
    for place in places:
        try:
            tokenizer = load_tokenizer(place, engine="reference")
        except (UserError, OSError) as error:
            tried.append(str(error))
            continue
        if manifests and tokenizer.digest != manifests[0].tokenizer.digest:
            tried.append(f"{place} is another tokenizer than the data's")
            continue
        return tokenizer, ""
    return None, "; ".join(tried) or "no tokenizer is known; name one with --tokenizer"


def _places(run: RunRecord) -> list[Path]:
    places = [checkpoint.folder / "tokenizer" for checkpoint in reversed(run.checkpoints) if checkpoint.fault is None]
    if run.config is not None and run.config.init.path is not None:
        places += [run.config.init.path, run.config.init.path / "tokenizer"]
    return places
