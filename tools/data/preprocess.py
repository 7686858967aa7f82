"""Raw documents to token files: .bin/.idx pairs per (language, source, topic), sidecars, a manifest, bad lines.

inputs ─ readers ─ tokenise into sorted runs ─ choose and write what is held out ─ merge per topic ─> folder + manifest
      [stage, a task per piece of input]         [stage, a task per topic]      [stage, a task per file]
Documents come out in a seeded shuffled order that does not depend on the number of workers; each ends in EOS, none
begins with BOS. The work lies in <out>/.work until it is done, so a call that was killed goes on where it stood. The
manifest is replaced last: the folder is as it was, or without the sources it was about to replace, never with half of
one.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import Role, ShardEntry, SourceEntry, source_name
from megatron_synE.data.indexed import token_dtype
from tools.data.calls import deciding
from tools.data.download import sha256_of
from tools.data.folder import DataFolder
from tools.data.holdout import SD_OF_DOCUMENT, HeldOut, choose
from tools.data.labels import file_stem
from tools.data.merge import (
    DIGEST_BYTES,
    PACKED_SHARD_TOKENS,
    SHARD_TOKENS,
    MergedShard,
    MergeSettings,
    RunReader,
    ShardTask,
    write_held_out,
    write_shard,
)
from tools.data.near_copies import NearCopies
from tools.data.options import PreprocessOptions, check
from tools.data.quarantine import bad_lines, check_bad_share, no_document
from tools.data.readers import find_inputs, plan_tasks
from tools.data.spool import TaskResult, TaskSettings, open_tokenizer, prepare_tokenizer, tokenise_task
from tools.data.stage import Report, Stage, WorkerPool, fingerprint_of, only_one, remove_work, run_stage

__all__ = ["PreprocessOptions", "PreprocessReport", "preprocess"]
logger = logging.getLogger(__name__)

FORMAT = 3  # of what lies in .work: raise it when a stage gives something else for the same options
MOST_WASTE = 0.02  # of packed windows, before a warning
Files = list[tuple[ShardTask, MergedShard]]
"""Token files, and what was written into them."""


@dataclass(frozen=True, kw_only=True)
class PreprocessReport:
    """What a call has written.

    num_records = num_documents + num_quarantined + num_too_long + num_duplicates_removed + num_near_copies_removed.
    """

    manifest_path: Path
    sources: tuple[SourceEntry, ...]
    num_records: int
    """Lines that are not blank."""
    num_documents: int
    """Written, for training or held out."""
    num_quarantined: int
    num_too_long: int
    """Longer than a window, where documents are kept whole."""
    num_duplicates_removed: int
    """Documents left out of training because a held-out document has the same text."""
    num_near_copies_removed: int
    """Documents left out of training because they hold most of a held-out document."""
    num_filler_tokens: int
    """EOS that fill up windows, where documents are kept whole."""


def preprocess(options: PreprocessOptions) -> PreprocessReport:
    """Tokenise the inputs into `options.out`; sources of the same name are replaced, others stay.

    Errors: ConfigError for options that do not fit, or while another call works in the folder; DataError for damaged
    input, too many bad lines, a topic that the holdout would empty, a full disk.
    Memory: about 0.4 GB per worker, whatever the size of the input. Disk: twice what is written, until it is done.
    """
    check(options)
    with only_one(options.out), WorkerPool(options.workers) as pool:
        return _Call(options, pool).run()


class _Call:
    def __init__(self, options: PreprocessOptions, pool: WorkerPool) -> None:
        self.options, self.pool = options, pool
        self.inputs = find_inputs(options.inputs)
        for path in self.inputs:
            if path.resolve().is_relative_to(options.out.resolve()):
                raise ConfigError(f"--input {path} lies inside --out {options.out}; choose another --out")
        self.tasks = tuple(plan_tasks(self.inputs))
        tokenizer: tuple[Path, str | None, Literal["auto"]] = (options.tokenizer, options.eos_token, "auto")
        if options.array is None and options.workers > 1 and len(self.tasks) > 1:
            pool.prepare(partial(prepare_tokenizer, *tokenizer))
        self.tokenizer = open_tokenizer(*tokenizer)
        self.identity = self.tokenizer.identity()
        self.dtype = token_dtype(self.tokenizer.vocab_size)
        self.folder = DataFolder(options.out, tokenizer=self.identity, dtype=self.dtype)
        self.name = self.source_name(options.topic or options.topic_key or "all")
        self.fingerprint = self.deciding()
        self.work = _only_folder(options.out / ".work" / f"preprocess-{file_stem(self.name)}", self.fingerprint)
        self.written = _only_folder(self.work / "written", fingerprint_of([options.holdout, options.holdout_sd]))
        self.runs, self.finished, self.held_out = self.work / "runs", self.written / "shards", self.written / "held_out"
        for path in (self.runs, self.finished, self.held_out):
            path.mkdir(parents=True, exist_ok=True)

    def run(self) -> PreprocessReport:
        self.results = results = self.tokenise()
        if self.deciding() != self.fingerprint:
            raise DataError(f"an input of {self.name} has changed since this call began; run the same command again")
        bad = bad_lines(
            self.tasks, [(result.num_lines, result.read_bad_lines(self.runs, n)) for n, result in enumerate(results)]
        )
        check_bad_share(
            bad,
            self.options,
            num_bad=sum(result.num_bad for result in results),
            num_records=sum(result.num_records for result in results),
            write=partial(self.folder.write_quarantine, bad, call=self.name),
        )
        self.segments = tuple(segment for result in results for segment in result.segments)
        if not self.segments:
            raise no_document(bad, self.options)
        self.num_tokens: Counter[str] = Counter()
        for segment in self.segments:
            self.num_tokens[segment.topic] += segment.num_tokens
        suffixes = (None, "holdout") if self.options.role == "train" else (None,)
        names = {self.source_name(topic, suffix) for topic in self.num_tokens for suffix in suffixes}
        before, prefixes = self.folder.held_out(replaced=names)
        self.chosen = self.choose_held_out(before)
        held_out = self.write_held_out()
        digests = before.union(*(entry.digests for entry in self.chosen.values()))
        table = self.held_out_table(digests, [*prefixes, *(task.prefix for task, _ in held_out)])
        training = self.write(table)
        new = self.new_sources(training, held_out)
        manifest_path = self.folder.replace_sources(new, self.finished, bad, call=self.name)
        self.warn(new)
        remove_work(self.work)
        shutil.rmtree(self.work.parent)
        with suppress(OSError):  # another call's work is in there
            self.work.parent.parent.rmdir()
        return self.report(manifest_path, new, [shard for _, shard in (*training, *held_out)])

    def deciding(self) -> str:
        """Hash of all that decides the result; thresholds and workers do not.

        Nor does the holdout: what depends on it lies in a folder of its own (`written`), so that a call with another
        one need not tokenise again.
        """
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.inputs]
        decided = [FORMAT, deciding(self.options, "tokenizer", "holdout", "holdout_sd"), stats, asdict(self.identity)]
        return fingerprint_of(decided)

    def tokenise(self) -> list[TaskResult]:
        engine: Literal["auto", "reference"] = "auto" if self.tokenizer.engine_name == "fastokens" else "reference"
        settings = TaskSettings(options=self.options, runs=self.runs, engine=engine, dtype=self.dtype)
        work, sizes = self.work / "tokenise", tuple(task.size_bytes for task in self.tasks)
        do = partial(tokenise_task, self.tasks, settings)
        stage = Stage(name="tokenise", work=work, fingerprint=self.fingerprint, sizes=sizes, do=do)
        results = run_stage(stage, workers=self.pool, array=self.options.array)
        return [TaskResult.from_json(result) for result in results]

    def choose_held_out(self, before: set[int]) -> dict[str, HeldOut]:
        if not self.options.holdout:
            return {}
        readers = {topic: RunReader(self.runs, self.segments, self.dtype, topic=topic) for topic in self.num_tokens}
        sd = SD_OF_DOCUMENT if self.options.holdout_sd is None else self.options.holdout_sd
        return choose(readers, self.options.holdout, sd=sd, without=before)

    def write_held_out(self) -> Files:
        """The validation files of this call, one per topic that holds something out."""
        topics = [topic for topic in sorted(self.chosen) if self.chosen[topic].digests]
        tasks = tuple(self.shard_task(topic, 0, 1, self.num_tokens[topic], suffix="holdout") for topic in topics)
        settings = self.merge_settings(held_out=None, keep_digests=True, window=None)
        digests = tuple(self.chosen[topic].digests for topic in topics)
        return self.write_files("hold out", tasks, partial(write_held_out, tasks, settings, digests), digests)

    def held_out_table(self, digests: set[int], prefixes: Sequence[Path]) -> Path | None:
        """What training documents are compared with; None if nothing is held out."""
        if self.options.role == "validation" or not digests:
            return None
        path = self.held_out / "digests"
        write_atomic(path, b"".join(digest.to_bytes(DIGEST_BYTES, "big") for digest in sorted(digests)))
        NearCopies.build(self.held_out, prefixes)
        return path

    def write(self, held_out: Path | None) -> Files:
        """The files of this call that are not chosen for the holdout."""
        window = self.options.seq_length
        tasks = []
        for topic, num_tokens in sorted(self.num_tokens.items()):
            count = -(-num_tokens // (SHARD_TOKENS if window is None else PACKED_SHARD_TOKENS))
            tasks += [self.shard_task(topic, n, count, num_tokens // count) for n in range(count)]
        keep_digests = self.options.role == "validation"
        settings = self.merge_settings(held_out=held_out, keep_digests=keep_digests, window=window)
        files = sorted(self.held_out.glob("[!.]*")) if held_out is not None else []
        table = [(path.name, sha256_of(path)) for path in files]
        return self.write_files("write", tasks, partial(write_shard, tasks, settings), table)

    def new_sources(self, training: Files, held_out: Files) -> list[SourceEntry]:
        """Errors: DataError if a topic has nothing left."""
        new = []
        validation: Role = "validation"
        for role, suffix, shards in ((self.options.role, None, training), (validation, "holdout", held_out)):
            for topic in sorted({task.topic for task, _ in shards}):
                entries = tuple(
                    ShardEntry(prefix=task.prefix.name, text_bytes=shard.text_bytes, **asdict(shard.pair))
                    for task, shard in shards
                    if task.topic == topic and shard.num_documents
                )
                if not entries:
                    raise DataError(
                        f"topic {topic}: every document is a copy of a held-out one; nothing is left to train on"
                    )
                entry = SourceEntry(
                    name=self.source_name(topic, suffix),
                    language=self.options.language,
                    source=self.options.source,
                    topic=topic,
                    bucket=None,
                    role=role,
                    shards=entries,
                    packed_seq_length=self.options.seq_length if suffix is None else None,
                )
                new.append(entry)
        return new

    def warn(self, new: Sequence[SourceEntry]) -> None:
        """What is wrong with the folder as a whole, though every call into it was right."""
        if uncompared := dict.fromkeys(f"{entry.language}/{entry.source}" for entry in self.folder.uncompared()):
            logger.warning(
                "%s: the training data of %s was written before some of what is held out here now, and may hold copies "
                "of it; when every source is here, run the calls of these again (each holds out the same as before)",
                self.options.out, ", ".join(uncompared),
            )  # fmt: skip
        written = [entry for entry in new if entry.role == "train"]
        siblings = self.folder.siblings(written)
        if self.options.topic is not None:  # a topic a call: the others are meant to stay, its own in buckets is not
            siblings = [entry for entry in siblings if entry.topic in ("all", self.options.topic)]
        if siblings:
            logger.warning(
                "%s: %s of earlier calls stays for training beside %s; if it holds the same pages, they are trained on "
                "twice: preprocess into another --out. Other pages should have another --source",
                self.options.out, _shown(siblings), _shown(written),
            )  # fmt: skip

    def report(
        self, manifest_path: Path, new: Sequence[SourceEntry], shards: Sequence[MergedShard]
    ) -> PreprocessReport:
        held_out_documents = sum(len(entry.digests) for entry in self.chosen.values())
        report = PreprocessReport(
            manifest_path=manifest_path,
            sources=tuple(new),
            num_records=sum(result.num_records for result in self.results),
            num_documents=sum(shard.num_documents for shard in shards),
            num_quarantined=sum(result.num_bad for result in self.results),
            num_too_long=sum(result.num_too_long for result in self.results),
            num_duplicates_removed=sum(shard.num_copies for shard in shards) - held_out_documents,
            num_near_copies_removed=sum(shard.num_near_copies for shard in shards),
            num_filler_tokens=sum(shard.num_filler_tokens for shard in shards),
        )
        for topic, entry in self.chosen.items():
            logger.info(
                "%s: %d documents, %d tokens held out; standard error of a change of log PPL about %.2g %%",
                self.source_name(topic), len(entry.digests), entry.num_tokens, 100 * entry.standard_error,
            )  # fmt: skip
        num_tokens = sum(entry.num_tokens for entry in report.sources)
        logger.info(
            "%s: %d documents, %d tokens from %d lines; left out: %d bad lines, %d too long for a window, "
            "%d copies and %d near copies of held-out documents",
            self.options.out, report.num_documents, num_tokens, report.num_records, report.num_quarantined,
            report.num_too_long, report.num_duplicates_removed, report.num_near_copies_removed,
        )  # fmt: skip
        if self.options.keep_documents_whole:
            packed = sum(entry.num_tokens for entry in new if entry.role == "train")
            waste = report.num_filler_tokens / packed
            level = logging.WARNING if waste > MOST_WASTE else logging.INFO
            logger.log(level, "%.2f %% of the windows' tokens fill them up", 100 * waste)
        return report

    def write_files(
        self, name: str, tasks: Sequence[ShardTask], do: Callable[[int, Report], Any], *parts: object
    ) -> Files:
        """A stage that writes token files; parts: what decides its results beside the runs."""
        decided = fingerprint_of([self.fingerprint, parts])
        work, sizes = self.written / name.replace(" ", "_"), tuple(task.num_tokens for task in tasks)
        stage = Stage(name=name, work=work, fingerprint=decided, sizes=sizes, do=do, unit="M tokens")
        results = run_stage(stage, workers=self.pool, array=self.options.array)
        return [(task, MergedShard.from_json(result)) for task, result in zip(tasks, results, strict=True)]

    def shard_task(
        self, topic: str, shard: int, num_shards: int, num_tokens: int, *, suffix: str | None = None
    ) -> ShardTask:
        stem = file_stem(self.source_name(topic, suffix))
        prefix = self.finished / (stem if num_shards == 1 else f"{stem}_{shard:05d}")
        return ShardTask(topic=topic, prefix=prefix, shard=shard, num_shards=num_shards, num_tokens=num_tokens)

    def merge_settings(self, *, held_out: Path | None, keep_digests: bool, window: int | None) -> MergeSettings:
        return MergeSettings(
            runs=self.runs,
            segments=self.segments,
            inputs=tuple(map(str, self.inputs)),
            dtype=self.dtype,
            eos_id=self.tokenizer.eos_id,
            held_out=held_out,
            keep_digests=keep_digests,
            window=window,
        )

    def source_name(self, topic: str, suffix: str | None = None) -> str:
        if suffix is None and self.options.role == "validation":
            suffix = "validation"
        return source_name(language=self.options.language, source=self.options.source, topic=topic, suffix=suffix)


def _shown(entries: Sequence[SourceEntry]) -> str:
    """The first names, and how many more there are."""
    names = [entry.name for entry in entries[:4]]
    return ", ".join(names if len(entries) == len(names) else [*names, f"{len(entries) - len(names)} more"])


def _only_folder(parent: Path, fingerprint: str) -> Path:
    """The folder in `parent` of work with this fingerprint; work of another one is removed."""
    name = fingerprint[:16]
    for other in parent.iterdir() if parent.is_dir() else ():
        if other.name != name:
            logger.info("%s was made with other options or inputs, or by another version: removed", other)
            remove_work(other)
    return parent / name
