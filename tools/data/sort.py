"""`syne data sort`: the difficulty order written physically, per topic as buckets of equally many tokens.

scores ─ key per document ─ order of each topic ─ token files and sidecars written anew ─> <out>/manifest.json
A topic is one (language, source, topic) of the training sources; all else of the folder is carried over unchanged.
"""

import glob
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import (
    MANIFEST_NAME,
    DatasetManifest,
    ShardEntry,
    SourceEntry,
    read_manifest,
    source_name,
    write_manifest,
)
from tools.data.folder import link_or_copy
from tools.data.labels import file_stem
from tools.data.options import SortOptions
from tools.data.redistribute import Rewriting, Sidecar, Written, redistribute
from tools.data.scores_file import ScoresOrigin, names_of, open_scores, read_origin, scores_path, scores_suffix
from tools.data.sidecar import SUFFIX, sidecar_path
from tools.data.signals import SIGNALS
from tools.data.sort_order import SortKey, keys_of, lengths_of, order_of, sort_key
from tools.data.stage import Report, Stage, fingerprint_of, is_done, only_one, refuse_foreign, run_stage

logger = logging.getLogger(__name__)

REPORT_NAME = "sort_report.json"
_CARRIED = (".bin", ".idx", ".digests", SUFFIX)


@dataclass(frozen=True, kw_only=True)
class _Topic:
    language: str
    source: str
    topic: str
    text_bytes: int
    shards: tuple[tuple[Path, ShardEntry], ...]

    @property
    def name(self) -> str:
        return source_name(language=self.language, source=self.source, topic=self.topic)

    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for _, shard in self.shards)


def sort(options: SortOptions) -> Path:
    """Write `options.out`: every chosen topic in buckets "00", "01", …, documents in the order of their key.

    Returns its manifest.
    Errors: ConfigError for options that do not fit, DataError for scores that are missing, stale or incomplete, or
    data that cannot be sorted.
    Memory: 100 MB, and some 60 bytes per document of the largest topic, for each worker.
    """
    key = _checked_key(options)
    manifest = read_manifest(options.data)
    topics = _topics(options, manifest)
    for topic in topics:
        for prefix, shard in topic.shards:
            for name in key.names:
                open_scores(prefix, shard, name)
    _check_one_model(topics, key)
    with only_one(options.out):
        stage = _stage(options, manifest, topics, key)
        _check_replaceable(options, stage)
        results = run_stage(stage, workers=options.workers, array=options.array)
        _remove_left(options.out, "spool-*", [target for topic in topics for target in _targets(options, topic)])
        written = list(zip(topics, results, strict=True))
        chosen = {prefix for topic in topics for prefix, _ in topic.shards}
        carried = [entry for entry in manifest.sources if chosen.isdisjoint(map(manifest.shard_prefix, entry.shards))]
        for entry in carried:
            _carry_over(manifest, entry, options.out)
        tails = {topic.name: result["tails"] for topic, result in written}
        content = json.dumps(tails, ensure_ascii=False, indent=1) + "\n"
        write_atomic(options.out / REPORT_NAME, content.encode())
        entries = [entry for topic, result in written for entry in _entries(topic, result, key)]
        ordered = sorted((*carried, *entries), key=lambda entry: entry.name)
        path = write_manifest(replace(manifest, folder=options.out, sources=tuple(ordered)))
    for name, found in tails.items():
        _tell(name, found, key)
    return path


def _checked_key(options: SortOptions) -> SortKey:
    low, high = options.drop_tails
    if not (0 <= low < 1 and 0 <= high < 1 and low + high < 1):
        raise ConfigError(f"--drop-tails {low},{high}: two shares of the tokens, from 0 on, with a sum below 1")
    if not 0 < options.keep_share <= 1:
        raise ConfigError(f"--keep-share {options.keep_share} must be above 0 and at most 1")
    if options.out.resolve() == options.data.resolve():
        raise ConfigError(f"--out {options.out} is the data itself; sorting writes another folder")
    return sort_key(options.by, options.name, descending=options.descending)


def _topics(options: SortOptions, manifest: DatasetManifest) -> list[_Topic]:
    train = manifest.with_role("train")
    grouped: dict[tuple[str, str, str], list[SourceEntry]] = {}
    for entry in train:
        grouped.setdefault((entry.language, entry.source, entry.topic), []).append(entry)
    topics = []
    for (language, source, topic), entries in sorted(grouped.items()):
        matching = [entry for entry in entries if fnmatchcase(entry.name, options.sources)]
        if not matching:
            continue
        if len(matching) < len(entries):
            raise ConfigError(
                f"--sources {options.sources!r} takes {matching[0].name} and leaves "
                f"{next(e.name for e in entries if e not in matching)} of the same topic; a topic is sorted as a whole"
            )
        for entry in entries:
            if entry.packed_seq_length is not None:
                raise ConfigError(
                    f"{entry.name} is packed into windows of {entry.packed_seq_length} tokens: in another order its "
                    "documents would be cut; sort before packing, or leave it out with --sources"
                )
        shards = tuple((manifest.shard_prefix(shard), shard) for entry in entries for shard in entry.shards)
        text_bytes = sum(entry.text_bytes for entry in entries)
        topics.append(_Topic(language=language, source=source, topic=topic, text_bytes=text_bytes, shards=shards))
    if not topics:
        known = ", ".join(entry.name for entry in train[:6])
        raise ConfigError(
            f"--sources {options.sources!r} matches none of the training sources of {manifest.folder} ({known})"
        )
    return topics


def _origins(topics: Sequence[_Topic], name: str, *, has_signals: bool = True) -> set[ScoresOrigin]:
    """What the scores of this name come from, but for their token files.

    has_signals: no: whether some of them have signals beside the NLL is left away too.
    """
    paths = [scores_path(prefix, name) for topic in topics for prefix, _ in topic.shards]
    found = {replace(read_origin(path), bin_sha256="") for path in paths}
    return found if has_signals else {replace(origin, tokenizer_digest=None) for origin in found}


def _check_one_model(topics: Sequence[_Topic], key: SortKey) -> None:
    for name in key.names:
        if len(_origins(topics, name, has_signals=key.by in SIGNALS)) > 1:
            raise DataError(
                f"the scores named {name} come from different models, windows or precisions, so they cannot be "
                "compared; run `syne data score-ppl` over all sources in one call"
            )
    read = {name: next(iter(_origins(topics, name))) for name in key.names}
    ways = {name: (origin.seq_length, origin.overlap, origin.precision) for name, origin in read.items()}
    if len(set(ways.values())) > 1:
        raise DataError(
            f"--by {key.by}: the two sets were scored in unlike windows or precisions (seq_length, overlap, precision: "
            f"{ways}), by which long documents differ too; score both with the same --seq-length, --overlap and so on"
        )


def _stage(options: SortOptions, manifest: DatasetManifest, topics: Sequence[_Topic], key: SortKey) -> Stage:
    decided = {
        "key": asdict(key),
        "buckets": options.buckets,
        "drop_tails": options.drop_tails,
        "keep_share": options.keep_share,
        "topics": [[topic.name, [shard.bin_sha256 for _, shard in topic.shards]] for topic in topics],
        "scores": {name: sorted(str(origin) for origin in _origins(topics, name)) for name in key.names},
    }
    fingerprint = fingerprint_of(decided)
    sizes = tuple(2 * topic.num_tokens for topic in topics)
    do = partial(_sort_topic, options, tuple(topics), key, manifest.dtype)
    work = options.out / ".work" / "sort"
    return Stage(name="sort", work=work, fingerprint=fingerprint, sizes=sizes, do=do, unit="M tokens", scale=2e6)


def _check_replaceable(options: SortOptions, stage: Stage) -> None:
    refuse_foreign(options.out, is_begun=stage.work.is_dir() or (options.out / MANIFEST_NAME).exists())
    is_ours = stage.work.is_dir() and all(is_done(stage, task) for task in range(len(stage.sizes)))
    if (options.out / MANIFEST_NAME).exists() and not is_ours:
        raise ConfigError(f"{options.out} holds other data; choose another --out, or remove it")


def _sort_topic(
    options: SortOptions, topics: tuple[_Topic, ...], key: SortKey, dtype: Any, task: int, report: Report
) -> dict[str, Any]:
    """One task: a topic's buckets, finished under their names in the new folder."""
    topic = topics[task]
    keys, lengths = keys_of(topic.shards, key), lengths_of(topic.shards)
    order, tails = order_of(
        keys,
        lengths,
        topic.shards,
        descending=key.descending,
        num_buckets=options.buckets,
        drop=options.drop_tails,
        keep_share=options.keep_share,
        where=topic.name,
    )
    del keys
    targets = _targets(options, topic)
    _remove_left(options.out, f"spool-{task}-*", targets)
    # Under a name of its own: an older copy of a requeued element may live on, on a node that SLURM believes lost.
    spool = Path(tempfile.mkdtemp(prefix=f"spool-{task}-", dir=options.out / ".work"))
    given = Rewriting(lengths=lengths, sidecars=_sidecars(topic, key), spool=spool, dtype=dtype, on_tokens=report)
    written = redistribute(given, topic.shards, order, targets)
    shutil.rmtree(spool, ignore_errors=True)
    return {"shards": _shards(topic, targets, written), "tails": asdict(tails)}


def _targets(options: SortOptions, topic: _Topic) -> list[Path]:
    return [options.out / file_stem(f"{topic.name}/{bucket}") for bucket in _bucket_names(options.buckets)]


def _remove_left(out: Path, spools: str, targets: Sequence[Path]) -> None:
    """What other copies of a task have left, on whatever machine. One that still lives fails on it."""
    for spool in (out / ".work").glob(spools):
        shutil.rmtree(spool, ignore_errors=True)
    for left in (left for target in targets for left in out.glob(f".{glob.escape(target.name)}.*.tmp")):
        left.unlink(missing_ok=True)


def _bucket_names(count: int) -> list[str]:
    """Names that sort as numbers do, as the curriculum reads them."""
    width = max(2, len(str(count - 1)))
    return [f"{bucket:0{width}d}" for bucket in range(count)]


def _sidecars(topic: _Topic, key: SortKey) -> list[Sidecar]:
    """What all token files of the topic have beside them and can be carried into the new order."""
    prefixes = [prefix for prefix, _ in topic.shards]
    sidecars = []
    if all(sidecar_path(prefix).is_file() for prefix in prefixes):
        sidecars.append(Sidecar(suffix=SUFFIX, origin=None))
    for name in sorted(set().union(*map(names_of, prefixes))):
        is_current = all(
            (path := scores_path(prefix, name)).is_file() and read_origin(path).bin_sha256 == shard.bin_sha256
            for prefix, shard in topic.shards
        )
        origins = _origins([topic], name) if is_current else set()
        if len(origins) > 1:
            origins = _origins([topic], name, has_signals=False)
        if len(origins) == 1:
            sidecars.append(Sidecar(suffix=scores_suffix(name), origin=origins.pop()))
        else:
            assert name not in key.names
            logger.warning(
                "%s: the scores named %s are stale, mixed or of a part of it, so they are left behind", topic.name, name
            )
    return sidecars


def _shards(topic: _Topic, targets: Sequence[Path], written: Sequence[Written]) -> list[dict[str, Any]]:
    """ShardEntry as JSON. text_bytes: the documents' own, else the topic's, shared out by tokens."""
    entries: list[dict[str, Any]] = []
    share = topic.text_bytes / max(1, topic.num_tokens)
    tokens = 0
    for target, (pair, text_bytes) in zip(targets, written, strict=True):
        shared = round((tokens + pair.num_tokens) * share) - round(tokens * share)
        tokens += pair.num_tokens
        entries.append(
            {"prefix": target.name, "text_bytes": shared if text_bytes is None else text_bytes, **asdict(pair)}
        )
    return entries


def _entries(topic: _Topic, result: dict[str, Any], key: SortKey) -> list[SourceEntry]:
    names = _bucket_names(len(result["shards"]))
    return [
        SourceEntry(
            name=f"{topic.name}/{bucket}",
            language=topic.language,
            source=topic.source,
            topic=topic.topic,
            bucket=bucket,
            role="train",
            shards=(ShardEntry(**shard),),
            sorted_by=key.label,
        )
        for bucket, shard in zip(names, result["shards"], strict=True)
    ]


def _carry_over(manifest: DatasetManifest, entry: SourceEntry, out: Path) -> None:
    for shard in entry.shards:
        prefix = manifest.shard_prefix(shard)
        files = [Path(f"{prefix}{suffix}") for suffix in _CARRIED]
        files += [scores_path(prefix, name) for name in names_of(prefix)]
        for file in files:
            if file.is_file():
                target = out / Path(shard.prefix).parent / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(file, target)


def _tell(name: str, tails: dict[str, Any], key: SortKey) -> None:
    """One line per topic; all of it is in sort_report.json."""
    shown = ", ".join(
        f"{100 * float(share):g} %: {value:.3f}" for share, value in tails["quantiles"].items() if value is not None
    )
    logger.info(
        "%s: %s at shares of the tokens %s; cut: %d documents, %d tokens; thinned out: %d; without a key: %d",
        name, key.label, shown, tails["num_dropped_documents"], tails["num_dropped_tokens"],
        tails["num_thinned_documents"], tails["num_without_key"],
    )  # fmt: skip
