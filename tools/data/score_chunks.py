"""One chunk of documents scored, by the model of this process and from the text of the ids: the task of score-ppl."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from io import BytesIO
from multiprocessing import current_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import ShardEntry
from megatron_synE.checkpoint import layout
from megatron_synE.data.indexed import IndexedFile
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.model.llama import LlamaArchitecture, architecture_from_hf, read_hf_config
from megatron_synE.runtime.environment import independent_ranks
from tools.data.scores_file import SCHEMA, ScoresOrigin, metadata_of, read_origin
from tools.data.signals import SIGNALS, signals_of
from tools.data.stage import Report

if TYPE_CHECKING:
    from megatron_synE.data.tokenizers import Tokenizer
    from megatron_synE.scoring import Scorer


Tokens = list[npt.NDArray[np.integer]]
"""Ids of each document."""
_WEIGHT_FILES = ("config.json", "*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True, kw_only=True)
class ModelWeights:
    folder: Path
    tokenizer: Path
    """Folder that holds its tokenizer, if it carries one."""
    sha256: str
    architecture: LlamaArchitecture


def find_weights(*, checkpoint: Path | None, hf: Path | None) -> ModelWeights:
    """The checkpoint (an iter_* folder, or a run's newest) or the HF folder.

    Errors: CheckpointError or ConfigError naming what is missing. Cost: an HF folder is read once, to be hashed.
    """
    if checkpoint is not None:
        folder = layout.resolve_checkpoint(checkpoint, verify_hashes=False)
        sha256 = str(layout.read_manifest(folder)["lineage_hash"])
        tokenizer = folder / "tokenizer"
    else:
        assert hf is not None
        if not hf.is_dir():
            raise ConfigError(f"--hf {hf}: no such folder; give the folder that holds config.json and the weights")
        folder = tokenizer = hf
        digest = hashlib.sha256()
        for file in sorted({file for pattern in _WEIGHT_FILES for file in hf.glob(pattern)}):
            digest.update(f"{file.name} {layout.sha256_of(file)}\n".encode())
        sha256 = digest.hexdigest()
    architecture = architecture_from_hf(read_hf_config(folder), where=str(folder / "config.json"))
    return ModelWeights(folder=folder, tokenizer=tokenizer, sha256=sha256, architecture=architecture)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of all chunks of a call; opens the model once per process."""

    weights: ModelWeights | None
    seq_length: int
    overlap: int
    micro_batch_size: int
    precision: Literal["bf16", "fp32"]
    device: Literal["auto", "cpu", "cuda"]
    tokenizer: Path | None
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class ScoredFile:
    """One token file and its chunks: chunk c holds the documents that start in tokens [c, c + 1) * chunk_tokens."""

    prefix: Path
    shard: ShardEntry
    origin: ScoresOrigin
    target: Path
    first_task: int
    num_chunks: int
    chunk_tokens: int
    filler_id: int | None = None
    """EOS, where documents are packed whole: those of nothing else fill up windows, and no loss counts them."""

    @property
    def is_current(self) -> bool:
        """The scores are there; signals beside them that this call does not ask for change nothing."""
        if not self.target.is_file():
            return False
        found = read_origin(self.target)
        return (found if self.origin.tokenizer_digest else replace(found, tokenizer_digest=None)) == self.origin


def score_chunk(work: Path, settings: Settings, files: tuple[ScoredFile, ...], task: int, report: Report) -> None:
    """One task: the scores of some documents, in order, as a part file.

    Errors: CheckpointError if the model gives NaN, DataError for token ids outside the vocabulary.
    """
    file = next(f for f in reversed(files) if f.first_task <= task)
    if file.is_current:
        return
    documents = _documents(file, task - file.first_task, settings)
    columns: dict[str, Any] = {name: [None] * len(documents) for name in SCHEMA.names}
    if settings.weights is not None:
        scores = scorer_of(settings).score(_without_fillers(documents, file.filler_id), report)
        if num_bad := int(np.count_nonzero(~np.isfinite(scores.nll_sums))):
            raise CheckpointError(
                f"{settings.weights.folder}: the model has no finite NLL for {num_bad} of {len(documents)} documents "
                f"of {file.prefix.name}: its weights overflow in {settings.precision}, or its run had diverged"
            )
        report(sum(map(len, documents)) - int(scores.num_tokens.sum()))  # first tokens, which are not scored
        columns |= {"nll_sum": scores.nll_sums, "nll_tokens": scores.num_tokens}
    if settings.tokenizer is not None:
        columns |= _signals(documents, _tokenizer(settings.tokenizer))
    if settings.weights is None:
        report(sum(map(len, documents)))
    table = pa.table(columns, schema=SCHEMA.with_metadata(metadata_of(file.origin)))
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomic(work / f"{task:07d}.parquet", buffer.getvalue())


def _without_fillers(documents: Tokens, filler_id: int | None) -> Tokens:
    """Fillers shortened to a first token, after which nothing is scored."""
    if filler_id is None:
        return documents
    return [document[:1] if (document == filler_id).all() else document for document in documents]


def _documents(file: ScoredFile, chunk: int, settings: Settings) -> Tokens:
    indexed, starts = _open(file.prefix, file.shard.bin_sha256)
    first, stop = np.searchsorted(starts[:-1], [chunk * file.chunk_tokens, (chunk + 1) * file.chunk_tokens]).tolist()
    if chunk == file.num_chunks - 1:
        stop = indexed.num_documents
    begin, end = int(starts[first]), int(starts[stop])
    tokens = indexed.tokens(begin, end)
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < settings.vocab_size:
        raise DataError(
            f"{indexed.bin_path}: token ids from {int(tokens.min())} to {int(tokens.max())}, outside the vocabulary of "
            f"{settings.vocab_size}; the file is damaged or of another tokenizer: preprocess again"
        )
    return np.split(tokens, starts[first + 1 : stop] - begin) if stop > first else []


@lru_cache(maxsize=1)
def _open(prefix: Path, bin_sha256: str) -> tuple[IndexedFile, npt.NDArray[np.int64]]:
    file = IndexedFile(prefix)
    return file, file.document_ranges()


def _signals(documents: Sequence[npt.NDArray[np.integer]], tokenizer: "Tokenizer") -> dict[str, list[float | None]]:
    found = []
    for document in documents:
        is_closed = len(document) > 0 and int(document[-1]) == tokenizer.eos_id
        text = tokenizer.text_bytes(document)
        found.append(signals_of(text, len(document) - is_closed))
    return {signal: [getattr(of_document, signal) for of_document in found] for signal in SIGNALS}


@cache
def _tokenizer(path: Path) -> "Tokenizer":
    from megatron_synE.data.tokenizers import load_tokenizer

    return load_tokenizer(path, engine="reference")


@cache
def scorer_of(settings: Settings) -> "Scorer":
    """The model of this process, on its own device."""
    import torch

    from megatron_synE.alone import build_alone
    from megatron_synE.runtime import device as devices
    from megatron_synE.scoring import Scorer

    assert settings.weights is not None
    device = devices.select(settings.device, local_rank=_local_number(settings))
    with torch.no_grad():
        model = build_alone(
            settings.weights.architecture,
            settings.weights.folder,
            seq_length=settings.seq_length,
            precision=settings.precision,
            device=device,
        )
    return Scorer(
        model,
        device,
        seq_length=settings.seq_length,
        overlap=settings.overlap,
        micro_batch_size=settings.micro_batch_size,
    )


def _local_number(settings: Settings) -> int:
    """Which of this machine's processes this is, so that each has a GPU of its own where there are as many."""
    from megatron_synE.runtime.launch import default_nproc

    num_devices = default_nproc(settings.device)
    ranks = independent_ranks()
    if ranks is not None:
        return ranks.local_rank % num_devices
    worker = current_process().name.rpartition("-")[2]  # "SpawnProcess-3" in a pool, "MainProcess" alone
    return (int(worker) - 1) % num_devices if worker.isdigit() else 0
