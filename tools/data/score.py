"""`syne data score-ppl`: NLL and cheap signals of every document of token files, into `<prefix>.scores.parquet`.

plan ─ chunks of documents (tasks, kept when done) ─ model or signals ─> parts ─ a shard's parts in order ─> scores file
A process needs nobody: it takes whole chunks and holds the whole model. So it runs in --workers processes here, as
ranks of torchrun or srun, or as jobs of a SLURM array; whoever finds a shard's parts complete writes its scores file.
"""

import glob
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from data_mixers.atomic import publish, temporary_path
from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import DatasetManifest, read_manifest
from megatron_synE.runtime.environment import Ranks, independent_ranks
from tools.data.options import ScoreOptions
from tools.data.score_chunks import ModelWeights, ScoredFile, Settings, find_weights, score_chunk
from tools.data.scores_file import SCHEMA, ScoresOrigin, check_name, metadata_of, read_origin, scores_path
from tools.data.shares import enter, take_over
from tools.data.stage import Stage, fingerprint_of, forget, is_done, only_one, remove_work, run_stage, run_tasks

logger = logging.getLogger(__name__)

MIN_CHUNK_TOKENS = 1 << 18
"""Lost at most by a kill. Ours: four minutes of a small model on one core, half a second on a GPU."""
MAX_CHUNKS = 20_000
"""Of a call, about: chunks grow with the data, so that their files stay few enough for a shared file system."""
NUMERICS = 4
"""Raise it when the same model gives other last digits: a call must not join both."""
LONGEST_CONTEXT = 4096
"""Default of seq_length where a model has more: attention over longer windows costs more than it tells. Ours."""


def score_ppl(options: ScoreOptions) -> tuple[int, int]:
    """Score the documents of every token file of the manifest; files scored already, by the same model, are kept.

    (Token files, those of them whose scores file is there: fewer only while other processes are still working.)
    Errors: ConfigError for options that do not fit, DataError for data that does not, CheckpointError for weights.
    Memory: the model, one row's activations, one chunk of tokens.
    """
    _check(options)
    manifest = read_manifest(options.data)
    settings, origin = _settings(options, manifest)
    files = _files(options, manifest, origin)
    _check_not_poorer(files, settings)
    stage = _stage(options, settings, files)
    ranks = independent_ranks()
    if ranks is None:
        with only_one(stage.work):
            _run(stage, files, options, None)
            is_complete = all(file.is_current for file in files)
            if is_complete:
                for file in files:  # of a call that was killed while it joined
                    for left in file.target.parent.glob(f".{glob.escape(file.target.name)}.*.tmp"):
                        left.unlink(missing_ok=True)
        if is_complete:
            remove_work(stage.work)  # not before: NFS keeps a folder in which a file is open, here the lock
    else:
        enter(stage, ranks)
        _run(stage, files, options, ranks)
    num_complete = sum(file.is_current for file in files)
    logger.info(
        "%s: %d documents, %d tokens; scores of %d of %d token files are complete",
        options.data, sum(file.shard.num_documents for file in files), sum(file.shard.num_tokens for file in files),
        num_complete, len(files),
    )  # fmt: skip
    return len(files), num_complete


def _check(options: ScoreOptions) -> None:
    check_name(options.name)
    if options.checkpoint is not None and options.hf is not None:
        raise ConfigError("--checkpoint and --hf exclude each other: one model scores")
    if options.checkpoint is None and options.hf is None and options.tokenizer is None:
        raise ConfigError("nothing to compute: give --checkpoint or --hf for NLL, --tokenizer for the signals")


def _settings(options: ScoreOptions, manifest: DatasetManifest) -> tuple[Settings, ScoresOrigin]:
    """(settings, what the scores come from but for their token file)."""
    from megatron_synE.data.tokenizers import digest_of

    digest = None
    if options.tokenizer is not None:
        digest = digest_of(options.tokenizer)
        if digest is None:
            raise ConfigError(f"--tokenizer {options.tokenizer}: holds no tokenizer.json or tokenizer.model")
        _check_digest(digest, manifest, f"--tokenizer {options.tokenizer}")
    weights, seq_length, overlap = None, 0, 0
    precision: Literal["bf16", "fp32"] = "fp32"
    origin = ScoresOrigin(
        bin_sha256="", weights_sha256=None, seq_length=None, overlap=None, precision=None, tokenizer_digest=digest
    )
    if options.checkpoint is not None or options.hf is not None:
        weights = find_weights(checkpoint=options.checkpoint, hf=options.hf)
        if weights.architecture.vocab_size < manifest.tokenizer.vocab_size:
            raise ConfigError(
                f"{weights.folder}: the model knows {weights.architecture.vocab_size} ids, the data's tokenizer has "
                f"{manifest.tokenizer.vocab_size}; the model is of another tokenizer"
            )
        own = digest_of(weights.tokenizer) if weights.tokenizer.is_dir() else None
        if own is not None:
            _check_digest(own, manifest, str(weights.tokenizer))
        seq_length, overlap = _windows(options, weights)
        precision = _precision(options)
        origin = replace(
            origin, weights_sha256=weights.sha256, seq_length=seq_length, overlap=overlap, precision=precision
        )
    settings = Settings(
        weights=weights,
        seq_length=seq_length,
        overlap=overlap,
        micro_batch_size=options.micro_batch_size,
        precision=precision,
        device=options.device,
        tokenizer=options.tokenizer,
        vocab_size=manifest.tokenizer.vocab_size,
    )
    return settings, origin


def _check_digest(digest: str, manifest: DatasetManifest, where: str) -> None:
    if digest != manifest.tokenizer.digest:
        raise ConfigError(
            f"{where}: another tokenizer than the one {manifest.folder} was made with; its ids mean other text"
        )


def _windows(options: ScoreOptions, weights: ModelWeights) -> tuple[int, int]:
    longest = weights.architecture.max_position_embeddings
    seq_length = options.seq_length or min(longest, LONGEST_CONTEXT)
    if seq_length > longest:
        raise ConfigError(f"--seq-length {seq_length} is longer than the model's context of {longest}")
    overlap = seq_length // 16 if options.overlap is None else options.overlap
    if not 0 <= overlap < seq_length:
        raise ConfigError(f"--overlap {overlap} must be at least 0 and less than --seq-length {seq_length}")
    return seq_length, overlap


def _precision(options: ScoreOptions) -> Literal["bf16", "fp32"]:
    from megatron_synE.runtime import device as devices

    if options.precision != "auto":
        return options.precision
    if options.array is not None:
        raise ConfigError("--slurm-tasks needs --precision bf16 or fp32: what the nodes have cannot be seen from here")
    return "bf16" if devices.select(options.device, local_rank=0).has_bf16 else "fp32"


def _files(options: ScoreOptions, manifest: DatasetManifest, origin: ScoresOrigin) -> list[ScoredFile]:
    chosen = [entry for entry in manifest.sources if fnmatchcase(entry.name, options.sources)]
    if not chosen:
        known = ", ".join(entry.name for entry in manifest.sources[:6])
        raise ConfigError(
            f"--sources {options.sources!r} matches none of the sources of {manifest.folder} ({known}, …)"
        )
    total = sum(entry.num_tokens for entry in chosen)
    chunk_tokens = max(MIN_CHUNK_TOKENS, total // MAX_CHUNKS)
    files: list[ScoredFile] = []
    next_task = 0
    for entry, shard in ((source, shard) for source in chosen for shard in source.shards):
        prefix = manifest.shard_prefix(shard)
        num_chunks = max(1, -(-shard.num_tokens // chunk_tokens))
        files.append(
            ScoredFile(
                prefix=prefix,
                shard=shard,
                origin=replace(origin, bin_sha256=shard.bin_sha256),
                target=scores_path(prefix, options.name),
                first_task=next_task,
                num_chunks=num_chunks,
                chunk_tokens=chunk_tokens,
                filler_id=None if entry.packed_seq_length is None else manifest.tokenizer.eos_id,
            )
        )
        next_task += num_chunks
    return files


def _check_not_poorer(files: Sequence[ScoredFile], settings: Settings) -> None:
    """Signals alone must not replace hours of a model's work; another model's scores do, and it is said before."""
    replaced = []
    for file in (file for file in files if file.target.is_file()):
        found = read_origin(file.target)
        if found.weights_sha256 is None:
            continue
        if settings.weights is None:
            raise ConfigError(f"{file.target} holds a model's scores; keep the signals apart with --name signals")
        is_stale = found.bin_sha256 != file.origin.bin_sha256
        if not is_stale and replace(found, tokenizer_digest=file.origin.tokenizer_digest) != file.origin:
            replaced.append(file.target.name)
    if replaced:
        logger.warning(
            "%d scores files, e.g. %s, are of another model or another way of scoring, and will be replaced; keep both "
            "with --name", len(replaced), replaced[0],
        )  # fmt: skip


def _stage(options: ScoreOptions, settings: Settings, files: Sequence[ScoredFile]) -> Stage:
    decided = {
        "numerics": NUMERICS,
        "micro_batch_size": settings.micro_batch_size,
        "files": [[file.shard.prefix, file.num_chunks, asdict(file.origin)] for file in files],
    }
    fingerprint = fingerprint_of(decided)
    sizes = tuple(
        min(file.chunk_tokens, file.shard.num_tokens - chunk * file.chunk_tokens)
        for file in files
        for chunk in range(file.num_chunks)
    )
    work = options.data / ".work" / f"score-{options.name}"
    do = partial(score_chunk, work, settings, tuple(files))
    return Stage(name="score", work=work, fingerprint=fingerprint, sizes=sizes, do=do, unit="tokens", scale=1.0)


def _run(stage: Stage, files: Sequence[ScoredFile], options: ScoreOptions, ranks: Ranks | None) -> None:
    _forget_lost(stage, files)
    if ranks is None:
        run_stage(stage, workers=options.workers, array=options.array)
    else:
        run_tasks(stage, ranks.rank, ranks.world_size)
        if not all(file.is_current for file in files):
            take_over(stage, ranks)
    for file in files:
        parts = _parts(stage.work, file)
        # Of this call's chunks: an earlier call may have cut the data otherwise.
        if not file.is_current and all(
            is_done(stage, task) and part.is_file() for task, part in enumerate(parts, start=file.first_task)
        ):
            _join(file, parts)
        if file.is_current:
            for part in parts:
                part.unlink(missing_ok=True)


def _forget_lost(stage: Stage, files: Sequence[ScoredFile]) -> None:
    """Chunks that are noted as done but whose part is gone, because somebody removed the scores file it went into."""
    for file in files:
        if not file.is_current:
            for task, part in enumerate(_parts(stage.work, file), start=file.first_task):
                if not part.is_file():
                    forget(stage, task)


def _parts(work: Path, file: ScoredFile) -> list[Path]:
    return [work / f"{task:07d}.parquet" for task in range(file.first_task, file.first_task + file.num_chunks)]


def _join(file: ScoredFile, parts: Sequence[Path]) -> None:
    """The scores file of a token file. Two processes may do this at once: both write the same bytes."""
    temporary = temporary_path(file.target)
    num_rows = 0
    try:
        with pq.ParquetWriter(temporary, SCHEMA.with_metadata(metadata_of(file.origin)), compression="zstd") as writer:
            for part in parts:
                table = pq.read_table(part)
                writer.write_table(table.cast(SCHEMA))
                num_rows += table.num_rows
        if num_rows != file.shard.num_documents:
            raise DataError(
                f"{file.prefix}.idx has {num_rows} documents, the manifest says {file.shard.num_documents}; "
                "preprocess this source again"
            )
        publish(temporary, file.target)
    except FileNotFoundError:
        if not file.is_current:  # else another process was quicker and has removed the parts
            raise
    finally:
        temporary.unlink(missing_ok=True)
