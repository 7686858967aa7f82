"""What `syne data preprocess` wrote into one folder: token files per source, their sizes and the tokenizer's identity.

A source is one (language, source, topic, bucket) in one role; its tokens are an ordered list of .bin/.idx pairs.
"""

import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data_mixers.atomic import write_atomic
from data_mixers.errors import DataError
from data_mixers.file_version import check_version
from data_mixers.strict_json import parse

SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"
TOKEN_BYTES = {"uint16": 2, "int32": 4}
Role = Literal["train", "validation"]

# Megatron's .idx: magic, version, dtype code, number of sequences, number of document boundaries (little endian).
IDX_HEADER = struct.Struct("<9sQBQQ")
IDX_MAGIC = b"MMIDIDX\x00\x00"


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One .bin/.idx pair."""

    prefix: str
    """Path without .bin/.idx, relative to the manifest's folder, with forward slashes."""
    num_documents: int
    num_tokens: int
    """Includes one EOS per document."""
    text_bytes: int
    """UTF-8 bytes of the texts: the denominator of bits per byte."""
    bin_size_bytes: int
    idx_size_bytes: int
    bin_sha256: str
    idx_sha256: str


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """One source in one role."""

    name: str
    """Unique among the manifests of a run: see `source_name`."""
    language: str
    source: str
    topic: str
    bucket: str | None
    """Difficulty bucket, where a sort made some."""
    role: Role
    """validation can never enter a schedule."""
    shards: tuple[ShardEntry, ...]
    sorted_by: str | None = None
    """What `syne data sort` ordered the documents by, easiest first; None: a seeded shuffle."""
    packed_seq_length: int | None = None
    """Documents are packed whole into windows of so many tokens, so it can be read with that seq_length alone."""

    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def num_documents(self) -> int:
        return sum(shard.num_documents for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        return sum(shard.text_bytes for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class TokenizerIdentity:
    """Which ids the tokens are; two tokenizers with equal identities give equal ids."""

    digest: str
    """sha256 over token bytes -> id, control ids and the ids of a fixed probe text; not a file hash."""
    vocab_size: int
    """Largest id + 1, control tokens included."""
    eos_id: int
    bos_id: int | None


@dataclass(frozen=True, kw_only=True)
class _ManifestFile:
    schema_version: int
    tokenizer: TokenizerIdentity
    dtype: Literal["uint16", "int32"]
    sources: tuple[SourceEntry, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetManifest(_ManifestFile):
    """One folder of tokenised sources."""

    folder: Path
    """Where manifest.json lies; not written into the file, so a folder can be moved."""

    def shard_prefix(self, shard: ShardEntry) -> Path:
        """The path of a shard's files without their suffix."""
        return self.folder / shard.prefix

    def with_role(self, role: Role) -> tuple[SourceEntry, ...]:
        """The sources of one role, in the order written."""
        return tuple(entry for entry in self.sources if entry.role == role)


def source_name(*, language: str, source: str, topic: str, bucket: str | None = None, suffix: str | None = None) -> str:
    """The unique name of a source: "zh/web/law", "zh/web/law/easy"; sets kept from training end in "@holdout" or so."""
    name = "/".join(part for part in (language, source, topic, bucket) if part is not None)
    return name if suffix is None else f"{name}@{suffix}"


def read_manifest(path: Path, *, check_files: bool = True) -> DatasetManifest:
    """The manifest at `path` (manifest.json or its folder), with every file present in the stated size.

    check_files: False reads the manifest alone, for a folder that is about to be rewritten.
    Errors: DataError naming the file (and key) if anything is missing, unknown, or not as stated.
    Cost: two stat calls and two small reads per shard; contents are not hashed.
    """
    path = path / MANIFEST_NAME if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        folder = path.parent if path.name == MANIFEST_NAME else path
        raise DataError(f"{path} does not exist; write it with `syne data preprocess --out {folder}`") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}; run `syne data preprocess` again") from error
    cure = "preprocess the data again"
    check_version(content, understood=SCHEMA_VERSION, file=path, cure=cure, fault=DataError)
    manifest = DatasetManifest(
        folder=path.parent, **vars(parse(_ManifestFile, content, where=str(path), fault=DataError))
    )
    names = [entry.name for entry in manifest.sources]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: source names occur more than once: {', '.join(repeated)}")
    for entry in manifest.sources if check_files else ():
        for shard in entry.shards:
            _check_shard(manifest, shard)
    return manifest


def write_manifest(manifest: DatasetManifest) -> Path:
    """Write manifest.json into its folder, atomically; returns its path."""
    content = asdict(manifest)
    del content["folder"]
    path = manifest.folder / MANIFEST_NAME
    write_atomic(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
    return path


def _check_shard(manifest: DatasetManifest, shard: ShardEntry) -> None:
    prefix = manifest.shard_prefix(shard)
    bin_path, idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    cure = f"copy it again or preprocess this source again (stated in {manifest.folder / MANIFEST_NAME})"
    if not prefix.resolve().is_relative_to(manifest.folder.resolve()):
        raise DataError(f"{manifest.folder / MANIFEST_NAME}: shard prefix {shard.prefix!r} leaves the folder")
    for path, stated in ((bin_path, shard.bin_size_bytes), (idx_path, shard.idx_size_bytes)):
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path} is missing; {cure}") from error
        if found != stated:
            raise DataError(f"{path} has {found} bytes, the manifest says {stated}; {cure}")
    needed = shard.num_tokens * TOKEN_BYTES[manifest.dtype]
    if needed != shard.bin_size_bytes:
        raise DataError(
            f"{bin_path}: {shard.num_tokens} tokens of {manifest.dtype} are {needed} bytes, the file has "
            f"{shard.bin_size_bytes}; {cure}"
        )
    described = bytes_described(idx_path)
    if shard.bin_size_bytes < described:
        raise DataError(
            f"{bin_path} has {shard.bin_size_bytes} bytes, shorter than {idx_path.name} says ({described}); {cure}"
        )


def bytes_described(idx_path: Path) -> int:
    """How many bytes of .bin a Megatron .idx file describes: the end of its last sequence.

    Errors: DataError if it is not such a file, or shorter than its own header says.
    """
    with idx_path.open("rb") as stream:
        head = stream.read(IDX_HEADER.size)
        if len(head) < IDX_HEADER.size or not head.startswith(IDX_MAGIC):
            raise DataError(f"{idx_path} is not a Megatron index file (magic MMIDIDX missing)")
        _, _, code, num_sequences, _ = IDX_HEADER.unpack(head)
        if num_sequences == 0:
            return 0
        if IDX_HEADER.size + 12 * num_sequences > idx_path.stat().st_size:
            raise DataError(f"{idx_path} is shorter than its {num_sequences} sequences need; preprocess again")
        stream.seek(IDX_HEADER.size + 4 * (num_sequences - 1))
        last_length: int = struct.unpack("<i", stream.read(4))[0]
        stream.seek(IDX_HEADER.size + 4 * num_sequences + 8 * (num_sequences - 1))
        last_pointer: int = struct.unpack("<q", stream.read(8))[0]
    itemsize = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 8, 7: 4, 8: 2}.get(code)
    if itemsize is None or last_length < 0 or last_pointer < 0:
        raise DataError(f"{idx_path} is damaged (dtype code {code}, last sequence at {last_pointer}); preprocess again")
    return last_pointer + last_length * itemsize
