"""What `syne data preprocess` is asked for, whether it fits together, and which of it decides the result."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data_mixers.errors import ConfigError
from data_mixers.manifest import Role, TokenizerIdentity
from tools.data.holdout import SD_OF_DOCUMENT
from tools.data.labels import check_label
from tools.data.readers import MAX_DOCUMENT_BYTES
from tools.data.slurm_options import SlurmArray

FORMAT = 2  # of what lies in .work: raise it when a stage gives something else for the same options


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """What `syne data preprocess` is asked for."""

    inputs: tuple[str, ...]
    """File names, folders or globs: .jsonl, .gz, .zst, .parquet."""
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
    topic_confidence_key: str = "topic_confidence"
    """The key that holds how sure the topic is, where a document has it; goes into the sidecar."""
    workers: int = 1
    array: SlurmArray | None = None
    """Run on a cluster, not in `workers` processes here."""
    holdout: int | Literal["auto"] = 0
    """Documents per topic kept from training, those with the smallest content hashes; auto: see holdout.choose."""
    holdout_sd: float = SD_OF_DOCUMENT
    """What the size of the holdout and its error are worked out with: see holdout.measured_sd."""
    role: Role = "train"
    """validation: everything of this call is held out."""
    seed: int = 1234
    """Of the order of documents."""
    eos_token: str | None = None
    keep_documents_whole: bool = False
    """Pack documents whole into windows of seq_length tokens; longer ones are left out."""
    seq_length: int | None = None
    """With keep_documents_whole: the training.seq_length of every run that will read them."""
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    max_bad_share: float = 0.01
    """Ours: refuse the input when a larger share of its lines is bad, and more than max_bad_lines are."""
    max_bad_lines: int = 10


def check(options: PreprocessOptions) -> None:
    """Errors: ConfigError for options that do not fit."""
    if options.topic is not None and options.topic_key is not None:
        raise ConfigError("--topic and --topic-key exclude each other: a document has one topic")
    check_label(options.language, option="--language")
    check_label(options.source, option="--source")
    if options.topic is not None:
        check_label(options.topic, option="--topic")
    for name in ("workers", "max_document_bytes"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    if options.holdout != "auto" and options.holdout < 0:
        raise ConfigError(f"--holdout {options.holdout} must be at least 0")
    if options.holdout and options.role == "validation":
        raise ConfigError("--holdout has no meaning with --role validation, which holds out everything")
    if options.keep_documents_whole and options.role == "validation":
        raise ConfigError("--keep-documents-whole is for training data; validation packs documents by itself")
    if options.keep_documents_whole != (options.seq_length is not None):
        raise ConfigError("--keep-documents-whole and --seq-length go together: the windows are training.seq_length")
    if options.seq_length is not None and options.seq_length < 2:
        raise ConfigError(f"--seq-length {options.seq_length} must be at least 2: a token and EOS")


def fingerprint(options: PreprocessOptions, inputs: Sequence[Path], tokenizer: TokenizerIdentity) -> str:
    """Hash of all that decides the result; thresholds and workers do not."""
    decided = asdict(options)
    for name in ("inputs", "tokenizer", "out", "workers", "array", "max_bad_share", "max_bad_lines"):
        del decided[name]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in inputs]
    return hashlib.sha256(json.dumps([FORMAT, decided, stats, asdict(tokenizer)]).encode()).hexdigest()
