"""A folder of token files that several calls fill: sources are replaced by name, the manifest is the commit."""

import fcntl
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from data_mixers.atomic import sync_folder, write_atomic
from data_mixers.errors import ConfigError
from data_mixers.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    DatasetManifest,
    SourceEntry,
    TokenizerIdentity,
    read_manifest,
    write_manifest,
)

DIGEST_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class NewSource:
    """A finished source that waits outside the folder's names."""

    entry: SourceEntry
    finished: Path
    """Prefix of its .bin/.idx, on the same file system."""
    digests: tuple[int, ...]
    """Content hashes of its documents, if it is held out."""


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A line that was not used."""

    call: str
    """Which call over the folder met it: language/source/topic or topic key."""
    file: str
    line: int
    reason: str


class DataFolder:
    """The output folder of `syne data preprocess`.

    Errors: ConfigError if the folder already holds data of another tokenizer.
    """

    def __init__(self, folder: Path, *, tokenizer: TokenizerIdentity, dtype: Literal["uint16", "int32"]) -> None:
        self.folder = folder
        self.quarantine_path = folder / "quarantine.jsonl"
        self._empty = DatasetManifest(
            schema_version=SCHEMA_VERSION, folder=folder, tokenizer=tokenizer, dtype=dtype, sources=()
        )
        found = self._manifest()
        if found.tokenizer != tokenizer:
            raise ConfigError(
                f"{folder} holds data of another tokenizer ({found.tokenizer}, not {tokenizer}); choose another --out"
            )

    def held_out_digests(self, *, replaced: Collection[str]) -> set[int]:
        """Content hashes of all held-out documents of the folder, but for sources that are about to be replaced."""
        digests: set[int] = set()
        for entry in self._manifest().with_role("validation"):
            path = _digest_path(self.folder / entry.shards[0].prefix)
            if entry.name not in replaced and path.is_file():
                raw = path.read_bytes()
                digests.update(
                    int.from_bytes(raw[i : i + DIGEST_BYTES], "big") for i in range(0, len(raw), DIGEST_BYTES)
                )
        return digests

    def replace_sources(self, new: list[NewSource], quarantine: list[Quarantined], *, call: str) -> Path:
        """Put finished sources under their names; a holdout of a replaced training source goes with it.

        Returns the path of the manifest, which is written last. One call at a time: others wait.
        """
        names = {source.entry.name for source in new}
        names |= {f"{source.entry.name}@holdout" for source in new if source.entry.role == "train"}
        with self._locked():
            before = self._manifest()
            kept = tuple(entry for entry in before.sources if entry.name not in names)
            dropped = [entry for entry in before.sources if entry.name in names]
            if dropped:
                write_manifest(
                    replace(before, sources=kept)
                )  # files change next: nobody may take the old ones for whole
            fresh = {shard.prefix for source in new for shard in source.entry.shards}
            for shard in (shard for entry in dropped for shard in entry.shards):
                prefix = self.folder / shard.prefix
                _digest_path(prefix).unlink(missing_ok=True)
                if shard.prefix not in fresh:
                    Path(f"{prefix}.idx").unlink(missing_ok=True)
                    Path(f"{prefix}.bin").unlink(missing_ok=True)
            for source in new:
                target = self.folder / source.entry.shards[0].prefix
                if source.entry.role == "validation":
                    raw = b"".join(digest.to_bytes(DIGEST_BYTES, "big") for digest in source.digests)
                    write_atomic(_digest_path(target), raw)
                for suffix in (".bin", ".idx"):
                    Path(f"{source.finished}{suffix}").replace(f"{target}{suffix}")
            sync_folder(self.folder)
            self.write_quarantine(quarantine, call=call)
            ordered = sorted((*kept, *(source.entry for source in new)), key=lambda entry: entry.name)
            return write_manifest(replace(before, sources=tuple(ordered)))

    def write_quarantine(self, quarantine: list[Quarantined], *, call: str) -> None:
        """Replace this call's part of quarantine.jsonl."""
        lines = []
        if self.quarantine_path.is_file():
            for line in self.quarantine_path.read_text(encoding="utf-8").splitlines():
                if json.loads(line)["call"] != call:
                    lines.append(line)
        lines += [json.dumps(asdict(item), ensure_ascii=False) for item in quarantine]
        write_atomic(self.quarantine_path, "".join(f"{line}\n" for line in lines).encode())

    def _manifest(self) -> DatasetManifest:
        if not (self.folder / MANIFEST_NAME).is_file():
            return self._empty
        return read_manifest(self.folder, check_files=False)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _digest_path(prefix: Path) -> Path:
    return Path(f"{prefix}.digests")
