"""Raw documents to token files: one .bin/.idx pair per (language, source, topic), a manifest, and a list of bad lines.

inputs ─ readers ─ tokenise into sorted runs (workers) ─ choose held-out texts ─ merge per topic ─> folder + manifest
Documents come out in a seeded shuffled order that does not depend on the number of workers; each ends in EOS, none
begins with BOS. The manifest is replaced last, so an interrupted call leaves the folder as it was, or without the
sources it was about to replace, never with half of one.
"""

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import Role, ShardEntry, SourceEntry, source_name
from megatron_synE.data.indexed import WrittenPair, token_dtype
from megatron_synE.data.tokenizers import Tokenizer, load_tokenizer
from tools.data.folder import DataFolder, NewSource, Quarantined
from tools.data.labels import check_label, file_stem
from tools.data.progress import LiveProgress
from tools.data.readers import InputTask, find_inputs, plan_tasks
from tools.data.spool import (
    MergedTopic,
    RunSegment,
    TaskResult,
    TaskSettings,
    merge_topic,
    smallest_digests,
    tokenise_task,
)
from tools.data.workers import Job, TokenizerSpec, run_jobs

logger = logging.getLogger(__name__)

KEPT_BAD_LINES = 100_000  # when more are bad, the input is not what it was taken for


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """What `syne data preprocess` is asked for."""

    inputs: tuple[str, ...]
    """File names or globs: .jsonl, .gz, .zst, .parquet."""
    tokenizer: Path
    """HF folder, tokenizer.json, or tokenizer.model."""
    out: Path
    """The folder; calls with other names of language, source or topic add to it."""
    text_key: str = "text"
    language: str = "und"
    """und: undetermined (ISO 639)."""
    source: str = "web"
    topic: str | None = None
    """One topic for all documents; neither this nor topic_key: "all"."""
    topic_key: str | None = None
    """The key that holds each document's topic."""
    workers: int = 1
    holdout: int = 0
    """Documents per topic kept from training, those with the smallest content hashes."""
    role: Role = "train"
    """validation: everything of this call is held out."""
    seed: int = 1234
    """Of the order of documents."""
    eos_token: str | None = None
    max_bad_share: float = 0.01
    """Ours: refuse the input when a larger share of its lines is bad, and more than max_bad_lines are."""
    max_bad_lines: int = 10


@dataclass(frozen=True, kw_only=True)
class PreprocessReport:
    """What a call has written."""

    manifest_path: Path
    sources: tuple[SourceEntry, ...]
    num_records: int
    """Lines that are not blank: documents written + quarantined + duplicates removed."""
    num_quarantined: int
    num_duplicates_removed: int
    """Documents left out of training because a held-out document has the same text."""
    engine: str
    """The tokenizer implementation that ran: fastokens or reference."""


def preprocess(options: PreprocessOptions) -> PreprocessReport:
    """Tokenise the inputs into `options.out`; sources of the same name are replaced, others stay.

    Errors: ConfigError for options that do not fit; DataError for damaged input, too many bad lines, a topic that the
    holdout would empty, or a folder made with another tokenizer.
    Memory: about 0.4 GB per worker, 32 bytes per document of a run, whatever the size of the input.
    """
    _check_options(options)
    tasks = plan_tasks(find_inputs(options.inputs))
    tokenizer = load_tokenizer(options.tokenizer, eos_token=options.eos_token)
    dtype = token_dtype(tokenizer.vocab_size)
    options.out.mkdir(parents=True, exist_ok=True)
    folder = DataFolder(options.out, tokenizer=tokenizer.identity(), dtype=dtype)
    spool = Path(tempfile.mkdtemp(prefix=".spool-", dir=options.out))
    try:
        settings = TaskSettings(
            spool=spool,
            dtype=dtype,
            text_key=options.text_key,
            topic_key=options.topic_key,
            topic=options.topic or "all",
            seed=options.seed,
        )
        results = _tokenise(options, tasks, tokenizer, settings)
        quarantine = _quarantine(options, tasks, results)
        num_records = sum(result.num_records for result in results)
        _check_bad_share(options, quarantine, num_records, folder)
        by_topic: dict[str, list[RunSegment]] = {}
        for result in results:
            for topic, segment in result.segments:
                by_topic.setdefault(topic, []).append(segment)
        if not by_topic:
            raise DataError(f"there is no document in {', '.join(options.inputs)}")
        held_out = _choose_held_out(options, by_topic, folder)
        merged = _merge(options, by_topic, held_out, spool, tokenizer, dtype)
        new_sources = _new_sources(options, merged, spool)
        manifest_path = folder.replace_sources(new_sources, quarantine, call=_call_name(options))
    finally:
        shutil.rmtree(spool, ignore_errors=True)
    report = PreprocessReport(
        manifest_path=manifest_path,
        sources=tuple(new.entry for new in new_sources),
        num_records=num_records,
        num_quarantined=len(quarantine),
        num_duplicates_removed=sum(topic.num_duplicates_removed for topic in merged.values()),
        engine=tokenizer.engine_name,
    )
    logger.info(
        "%s: %d documents, %d tokens, %d bad lines, %d copies of held-out documents removed",
        options.out,
        sum(entry.num_documents for entry in report.sources),
        sum(entry.num_tokens for entry in report.sources),
        report.num_quarantined,
        report.num_duplicates_removed,
    )
    return report


def _check_options(options: PreprocessOptions) -> None:
    if options.topic is not None and options.topic_key is not None:
        raise ConfigError("--topic and --topic-key exclude each other: a document has one topic")
    check_label(options.language, option="--language")
    check_label(options.source, option="--source")
    if options.topic is not None:
        check_label(options.topic, option="--topic")
    if options.workers < 1:
        raise ConfigError(f"--workers {options.workers} must be at least 1")
    if options.holdout < 0:
        raise ConfigError(f"--holdout {options.holdout} must be at least 0")
    if options.holdout and options.role == "validation":
        raise ConfigError("--holdout has no meaning with --role validation, which holds out everything")


def _tokenise(
    options: PreprocessOptions, tasks: list[InputTask], tokenizer: Tokenizer, settings: TaskSettings
) -> list[TaskResult]:
    jobs = [Job(_tokenise_job, (task, index, settings)) for index, task in enumerate(tasks)]
    results: list[TaskResult] = []
    num_bad = num_records = 0
    with (
        LiveProgress("tokenise", total=sum(task.size_bytes for task in tasks)) as progress,
        closing(_run_jobs(options, jobs, tokenizer, progress.advance)) as finished,
    ):
        for result in finished:
            results.append(result)
            num_bad, num_records = num_bad + len(result.bad), num_records + result.num_records
            if num_bad > max(KEPT_BAD_LINES, options.max_bad_share * num_records):
                break  # the check of the share stops the call
    return results


def _run_jobs(
    options: PreprocessOptions, jobs: list[Job], tokenizer: Tokenizer, on_progress: Callable[[int], None]
) -> Generator[Any, None, None]:
    """`run_jobs` with this call's tokenizer."""
    engine: Literal["auto", "reference"] = "auto" if tokenizer.engine_name == "fastokens" else "reference"
    spec = TokenizerSpec(path=options.tokenizer, eos_token=options.eos_token, engine=engine)
    return run_jobs(jobs, workers=options.workers, tokenizer=tokenizer, spec=spec, on_progress=on_progress)


def _tokenise_job(
    open_tokenizer: Callable[[], Tokenizer],
    report: Callable[[int], None],
    task: InputTask,
    index: int,
    settings: TaskSettings,
) -> TaskResult:
    return tokenise_task(task, index, tokenizer=open_tokenizer(), settings=settings, on_bytes=report)


def _quarantine(options: PreprocessOptions, tasks: list[InputTask], results: list[TaskResult]) -> list[Quarantined]:
    """The bad lines with line numbers of their files."""
    quarantine, lines_before, previous = [], 0, -1
    for task, result in zip(tasks, results, strict=False):
        lines_before = lines_before if task.file_index == previous else 0
        previous = task.file_index
        quarantine += [
            Quarantined(call=_call_name(options), file=str(task.path), line=lines_before + line, reason=reason)
            for line, reason in result.bad
        ]
        lines_before += result.num_lines
    return quarantine


def _check_bad_share(
    options: PreprocessOptions, quarantine: list[Quarantined], num_records: int, folder: DataFolder
) -> None:
    bad = len(quarantine)
    if bad <= options.max_bad_lines or bad <= options.max_bad_share * num_records:
        return
    folder.write_quarantine(quarantine, call=_call_name(options))
    counts = Counter(item.reason.split(":")[0] for item in quarantine)
    listed = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common(4))
    raise DataError(
        f"{bad} of {num_records} lines are bad, more than {options.max_bad_share:.1%}: {listed}; first: "
        f"{quarantine[0].file} line {quarantine[0].line}; all are in "
        f"{folder.quarantine_path}. Mend the input, or name the right --text-key"
    )


def _choose_held_out(
    options: PreprocessOptions, by_topic: Mapping[str, list[RunSegment]], folder: DataFolder
) -> dict[int, str]:
    """Content hash -> topic that holds it out; "" for texts held out by earlier calls into the same folder."""
    if options.role == "validation":
        return {}
    held_out = dict.fromkeys(folder.held_out_digests(replaced=_names(options, list(by_topic))), "")
    if options.holdout:
        for topic in sorted(by_topic):
            chosen = smallest_digests(by_topic[topic], options.holdout, without=held_out)
            total = sum(segment.num_documents for segment in by_topic[topic])
            if total <= len(chosen):
                raise DataError(
                    f"topic {topic} has {total} documents: --holdout {options.holdout} would leave none to train on; "
                    "hold out fewer, or give this topic more text"
                )
            held_out.update(dict.fromkeys(chosen, topic))
    return held_out


def _merge(
    options: PreprocessOptions,
    by_topic: Mapping[str, list[RunSegment]],
    held_out: Mapping[int, str],
    spool: Path,
    tokenizer: Tokenizer,
    dtype: Literal["uint16", "int32"],
) -> dict[str, MergedTopic]:
    topics = sorted(by_topic)
    jobs = [
        Job(
            _merge_job,
            (
                topic,
                by_topic[topic],
                spool / file_stem(_name(options, topic)),
                spool / file_stem(_name(options, topic, holdout=True)) if options.holdout else None,
                held_out,
                options.role == "validation",
                dtype,
            ),
        )
        for topic in topics
    ]
    total = sum(segment.num_tokens for segments in by_topic.values() for segment in segments)
    with LiveProgress("write", total=total, unit="M tokens") as progress:
        merged = dict(zip(topics, _run_jobs(options, jobs, tokenizer, progress.advance), strict=True))
    for topic, result in merged.items():
        if result.train is None or result.train.num_documents == 0:
            raise DataError(f"topic {topic}: every document is a copy of a held-out one; nothing is left to train on")
    return merged


def _merge_job(
    open_tokenizer: Callable[[], Tokenizer],
    report: Callable[[int], None],
    topic: str,
    segments: list[RunSegment],
    train_prefix: Path,
    held_out_prefix: Path | None,
    held_out: Mapping[int, str],
    keep_digests: bool,
    dtype: Literal["uint16", "int32"],
) -> MergedTopic:
    return merge_topic(
        topic,
        segments,
        train_prefix=train_prefix,
        held_out_prefix=held_out_prefix,
        held_out=held_out,
        keep_digests=keep_digests,
        dtype=dtype,
        on_tokens=report,
    )


def _new_sources(options: PreprocessOptions, merged: Mapping[str, MergedTopic], spool: Path) -> list[NewSource]:
    new = []
    for topic, result in merged.items():
        for pair, text_bytes, is_holdout in (
            (result.train, result.train_text_bytes, False),
            (result.held_out, result.held_out_text_bytes, True),
        ):
            if pair is None:
                continue
            role: Role = "validation" if is_holdout else options.role
            entry = _entry(options, topic, pair, text_bytes, role=role, holdout=is_holdout)
            new.append(NewSource(entry=entry, finished=spool / file_stem(entry.name), digests=result.held_out_digests))
    return new


def _entry(
    options: PreprocessOptions, topic: str, pair: WrittenPair, text_bytes: int, *, role: Role, holdout: bool
) -> SourceEntry:
    name = _name(options, topic, holdout=holdout)
    shard = ShardEntry(
        prefix=file_stem(name),
        num_documents=pair.num_documents,
        num_tokens=pair.num_tokens,
        text_bytes=text_bytes,
        bin_size_bytes=pair.bin_size_bytes,
        idx_size_bytes=pair.idx_size_bytes,
        bin_sha256=pair.bin_sha256,
        idx_sha256=pair.idx_sha256,
    )
    return SourceEntry(
        name=name,
        language=options.language,
        source=options.source,
        topic=topic,
        bucket=None,
        role=role,
        shards=(shard,),
    )


def _name(options: PreprocessOptions, topic: str, *, holdout: bool = False) -> str:
    suffix = "holdout" if holdout else ("validation" if options.role == "validation" else None)
    return source_name(language=options.language, source=options.source, topic=topic, suffix=suffix)


def _names(options: PreprocessOptions, topics: list[str]) -> set[str]:
    """Every name a training call over these topics may replace: the sources and what was held out of them."""
    return {_name(options, topic, holdout=holdout) for topic in topics for holdout in (False, True)}


def _call_name(options: PreprocessOptions) -> str:
    return _name(options, options.topic or options.topic_key or "all")
