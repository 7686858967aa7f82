"""A Megatron-LM `--data-path` list turned into a manifest and a schedule; the token files stay where they are.

30 /data/a_text_document 70 /data/b_text_document ─> OUT/manifest.json, OUT/schedule.json, and links OUT/*.bin, *.idx
"""

import hashlib
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    TOKEN_BYTES,
    DatasetManifest,
    ShardEntry,
    SourceEntry,
    TokenizerIdentity,
    read_manifest,
    source_name,
    write_manifest,
)
from data_mixers.ratios import quantise
from data_mixers.schedule import SCHEDULE_NAME, Schedule, read_schedule, scheduled_source
from megatron_synE.data.build_schedule import check_epochs
from megatron_synE.data.indexed import IndexedFile
from megatron_synE.data.tokenizers import load_tokenizer
from tools.data.download import sha256_of
from tools.data.labels import is_label
from tools.data.progress import LiveProgress
from tools.mix_commands import DataPathOptions

logger = logging.getLogger(__name__)

SUFFIX = "_text_document"  # what Megatron's preprocess_data.py adds to --output-prefix with its default key
_CHUNK_TOKENS = 1 << 22


def import_data_path(options: DataPathOptions) -> Schedule:
    """Describe the files, write manifest and schedule into `options.out`, and give the schedule.

    A file that was described by an earlier call and is unchanged since is not read again, so a call that was
    interrupted goes on where it was.
    Errors: ConfigError for weights, names or a schedule that do not fit; DataError naming a file that is damaged, whose
    sequences do not lie end to end, or with an id that the tokenizer does not have.
    Cost: every new .bin is read once.
    """
    weights = parse_data_path(_words_of(options.data_path, options.data_args_path))
    if not (math.isfinite(options.tokens) and options.tokens >= 1):
        raise ConfigError(f"--tokens {options.tokens} is not a number of tokens to read; write e.g. 100e9")
    before = _schedule_before(options)
    identity = load_tokenizer(options.tokenizer, eos_token=options.eos_token).identity()
    options.out.mkdir(parents=True, exist_ok=True)
    manifest, names = _described(options.out, list(weights), identity)
    given = {names[prefix]: weight for prefix, weight in weights.items()}
    entries = {entry.name: entry for entry in manifest.sources}
    exact = {
        name: Fraction(entries[name].num_tokens) if weight is None else Fraction(str(weight))
        for name, weight in sorted(given.items())
    }
    known = {source.name for source in before.sources}
    schedule = before.append_weights(
        f"data-path {len(before.phases) + 1}",
        num_samples=math.ceil(options.tokens / options.seq_length),
        weights=quantise(exact),
        new_sources=tuple(scheduled_source(entries[name]) for name in exact if name not in known),
    )
    key, cure = f"--max-epochs {options.max_epochs:g}", "raise --max-epochs if you mean it"
    check_epochs(schedule, limit=options.max_epochs, key=key, cure=cure)
    write_atomic(options.out / SCHEDULE_NAME, (schedule.to_json() + "\n").encode())
    return schedule


def _words_of(data_path: Sequence[str], data_args_path: Path | None) -> tuple[str, ...]:
    """The list as given, or the words of a file. Errors: ConfigError if it is both, or the file cannot be read."""
    if data_args_path is None:
        return tuple(data_path)
    if data_path:
        raise ConfigError("give the list or --data-args-path, not both")
    try:
        return tuple(data_args_path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--data-args-path {data_args_path} cannot be read: {error}") from error


def parse_data_path(words: Sequence[str]) -> dict[str, float | None]:
    """Prefix -> weight (None where none are given), by Megatron-LM's rule; a prefix named twice gets both weights.

    Errors: ConfigError for an empty list, or a weight that is negative, not finite, missing, or with no other above 0.
    """
    if not words:
        raise ConfigError("the list of --data-path is empty; write weights and prefixes in turn, or prefixes")
    heads = [_number(word) for word in words[::2]]
    if len(words) % 2 == 1 or all(head is None for head in heads):
        if any(_number(word) is not None for word in words):
            raise ConfigError(f"--data-path {' '.join(words)}: weights and prefixes must stand in turn, in pairs")
        return dict.fromkeys(words)
    weights: dict[str, float] = {}
    for head, word, prefix in zip(heads, words[::2], words[1::2], strict=True):
        if head is None or not math.isfinite(head) or head < 0:
            raise ConfigError(f"--data-path: {word!r} before {prefix} is not a weight; it must be a number from 0 on")
        weights[prefix] = weights.get(prefix, 0.0) + head
    positive: dict[str, float | None] = {prefix: weight for prefix, weight in weights.items() if weight > 0}
    if not positive:
        raise ConfigError(f"--data-path: all weights are 0 ({', '.join(weights)}); give one of them more")
    for prefix in weights.keys() - positive.keys():
        logger.warning("%s has weight 0 and is left out", prefix)
    return positive


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _schedule_before(options: DataPathOptions) -> Schedule:
    """What the new phase is appended to."""
    path = options.out / SCHEDULE_NAME
    if options.from_sample is None:
        if path.is_file():
            raise ConfigError(
                f"{path} exists: a run may have read from it. Append with --from-sample, or choose another --out"
            )
        return Schedule(seed=options.seed, seq_length=options.seq_length, sources=())
    schedule = read_schedule(path)
    if schedule.seq_length != options.seq_length:
        raise ConfigError(f"--seq-length {options.seq_length} is not {schedule.seq_length}, that of {path}")
    return schedule.until(options.from_sample)


def _described(
    out: Path, prefixes: Sequence[str], identity: TokenizerIdentity
) -> tuple[DatasetManifest, dict[str, str]]:
    """The manifest of `out` with these files in it, and prefix -> source name. Written after each file."""
    found = read_manifest(out, check_files=False) if (out / MANIFEST_NAME).is_file() else None
    if found is not None and found.tokenizer != identity:
        raise ConfigError(f"{out} holds data of another tokenizer ({found.tokenizer}, not {identity})")
    entries = {entry.name: entry for entry in found.sources} if found is not None else {}
    names = _source_names(prefixes)
    files = {prefix: IndexedFile(Path(prefix), checks_all=True) for prefix in prefixes}
    dtypes = {file.dtype.name: prefix for prefix, file in files.items()}
    if found is not None:
        dtypes[found.dtype] = str(out)
    if len(dtypes) > 1 or not dtypes.keys() <= TOKEN_BYTES.keys():
        raise DataError(
            f"the files hold {' and '.join(f'{dtype} ({prefix})' for dtype, prefix in dtypes.items())}; one folder "
            "holds one of uint16 and int32: write the others again with one tokenizer"
        )
    manifest = found or DatasetManifest(
        schema_version=SCHEMA_VERSION,
        folder=out,
        tokenizer=identity,
        dtype="uint16" if "uint16" in dtypes else "int32",
        sources=(),
    )
    total = sum(file.num_tokens * file.dtype.itemsize for file in files.values())
    with LiveProgress("read token files", total=total) as progress:
        for prefix, file in files.items():
            entry = entries.get(names[prefix])
            if entry is not None and _is_as_described(manifest, entry, file):
                progress.advance(entry.shards[0].bin_size_bytes)
                continue
            if entry is not None and (out / SCHEDULE_NAME).is_file():
                raise DataError(
                    f"{file.bin_path} is not the file that {out / MANIFEST_NAME} describes as {entry.name}, and "
                    f"{out / SCHEDULE_NAME} reads that one; restore it, or choose another --out"
                )
            entry = _describe(file, names[prefix], identity, progress.advance)
            _link(out, entry.shards[0], file)
            entries[entry.name] = entry
            manifest = replace(manifest, sources=tuple(entries[name] for name in sorted(entries)))
            write_manifest(manifest)
    return manifest, names


def _source_names(prefixes: Sequence[str]) -> dict[str, str]:
    """zh__web__law_text_document is zh/web/law; any other file name becomes a topic of und/web."""
    names: dict[str, str] = {}
    for prefix in prefixes:
        stem = Path(prefix).name.removesuffix(SUFFIX)
        labels = stem.split("__")
        if len(labels) != 3 or not all(map(is_label, labels)):
            labels = ["und", "web", re.sub(r"_{2,}", "_", re.sub(r"[^\w.+-]", "-", stem)).strip("_-.+")[:60]]
        if not is_label(labels[-1]):
            raise ConfigError(f"{prefix}: no source name can be made of {stem!r}; rename or link the pair")
        language, source, topic = labels
        names[prefix] = source_name(language=language, source=source, topic=topic)
    for name in names.values():
        same = [prefix for prefix in prefixes if names[prefix] == name]
        if len(same) > 1:
            raise ConfigError(f"{' and '.join(same)} would both be the source {name}; rename or link one of them")
    return names


def _is_as_described(manifest: DatasetManifest, entry: SourceEntry, file: IndexedFile) -> bool:
    """Whether the links lead to this pair, and it is no newer than the manifest and as large as it says."""
    (shard,) = entry.shards
    written = (manifest.folder / MANIFEST_NAME).stat().st_mtime_ns
    prefix = manifest.shard_prefix(shard)
    for path, size in ((file.bin_path, shard.bin_size_bytes), (file.idx_path, shard.idx_size_bytes)):
        link, stat = Path(f"{prefix}{path.suffix}"), path.stat()
        if not link.exists() or not link.samefile(path) or stat.st_size != size or stat.st_mtime_ns > written:
            return False
    return True


def _describe(file: IndexedFile, name: str, identity: TokenizerIdentity, advance: Callable[[int], None]) -> SourceEntry:
    """Sizes, hashes and counts of a pair, read once. Errors: DataError for an id that the tokenizer does not have."""
    digest = hashlib.sha256()
    for start in range(0, file.num_tokens, _CHUNK_TOKENS):
        tokens = file.tokens(start, min(start + _CHUNK_TOKENS, file.num_tokens))
        outside = np.flatnonzero((tokens >= identity.vocab_size) | (tokens < 0))
        if outside.size:
            place = int(outside[0])
            raise DataError(
                f"{file.bin_path}: token id {int(tokens[place])} at token {start + place} is outside the vocabulary of "
                f"{identity.vocab_size}; the file was made with another tokenizer: name that one with --tokenizer"
            )
        digest.update(np.ascontiguousarray(tokens).data.cast("B"))
        advance(tokens.nbytes)
    _say_what_documents_end_with(file, identity.eos_id)
    language, source, topic = name.split("/")
    shard = ShardEntry(
        prefix=name.replace("/", "__") + SUFFIX,
        num_documents=file.num_documents,
        num_tokens=file.num_tokens,
        text_bytes=0,  # unknown, and asked for validation sets alone
        bin_size_bytes=file.num_tokens * file.dtype.itemsize,
        idx_size_bytes=file.idx_path.stat().st_size,
        bin_sha256=digest.hexdigest(),
        idx_sha256=sha256_of(file.idx_path),
    )
    return SourceEntry(
        name=name, language=language, source=source, topic=topic, bucket=None, role="train", shards=(shard,)
    )


def _say_what_documents_end_with(file: IndexedFile, eos_id: int) -> None:
    ranges = file.document_ranges()
    ends = ranges[1:][np.diff(ranges) > 0]  # of documents that are not empty
    if not ends.size:
        return
    asked = ends[np.linspace(0, ends.size - 1, min(ends.size, 1000)).astype(np.int64)]  # each may cost a page
    with_eos = sum(int(file.tokens(int(end) - 1, int(end))[0]) == eos_id for end in asked)
    if with_eos < asked.size:
        logger.warning(
            "%s: %d of %d documents looked at do not end with EOS (id %d); Megatron's preprocess_data.py puts it there "
            "with --append-eod",
            file.bin_path, asked.size - with_eos, asked.size, eos_id,
        )  # fmt: skip


def _link(out: Path, shard: ShardEntry, file: IndexedFile) -> None:
    for path in (file.bin_path, file.idx_path):
        target = out / f"{shard.prefix}{path.suffix}"
        if target.exists() and target.samefile(path):
            continue  # the pair lies in the folder itself
        if target.exists() and not target.is_symlink():
            raise DataError(f"{target} is another file than {path} and would be replaced; choose another --out")
        temporary = out / f".{target.name}.{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(path.resolve())
        temporary.replace(target)
