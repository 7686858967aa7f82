"""A folder of token files that several calls fill: sources are replaced by name, the manifest is the commit."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from data_mixers.atomic import publish, temporary_path, write_atomic
from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    DatasetManifest,
    SourceEntry,
    TokenizerIdentity,
    read_manifest,
    write_manifest,
)
from tools.data.labels import file_stem
from tools.data.merge import digests_path, read_digests
from tools.data.quarantine import QUARANTINE_NAME, BadLine, write_records
from tools.data.sidecar import SUFFIX

_FILE = re.compile(
    r"(?P<prefix>(?P<stem>.+_text_document)(_\d{5})?)\.(bin|idx|documents\.parquet|digests|compared|scores.*)"
)


class DataFolder:
    """The output folder of `syne data preprocess`.

    Errors: ConfigError if the folder already holds data of another tokenizer.
    """

    def __init__(self, folder: Path, *, tokenizer: TokenizerIdentity, dtype: Literal["uint16", "int32"]) -> None:
        self.folder = folder
        self._empty = DatasetManifest(
            schema_version=SCHEMA_VERSION, folder=folder, tokenizer=tokenizer, dtype=dtype, sources=()
        )
        found = self._manifest()
        if found.tokenizer != tokenizer:
            raise ConfigError(
                f"{folder} holds data of another tokenizer ({found.tokenizer}, not {tokenizer}); choose another --out"
            )

    def held_out(self, *, replaced: Collection[str]) -> tuple[set[int], list[Path]]:
        """Content hashes and prefixes of what the folder holds out, but for sources that are about to be replaced.

        Errors: DataError if content hashes are missing: copies would enter training unseen.
        """
        held_out = [entry for entry in self._manifest().with_role("validation") if entry.name not in replaced]
        prefixes = [self.folder / shard.prefix for entry in held_out for shard in entry.shards]
        missing = [path for path in map(digests_path, prefixes) if not path.is_file()]
        if missing:
            raise DataError(
                f"{missing[0]} is missing ({len(missing)} such in all), so copies of what is held out would be trained "
                "on. Put it back, or run the call again that wrote it, or, where it is of several calls, preprocess "
                "everything into another --out"
            )
        return set[int]().union(*(read_digests(digests_path(prefix)) for prefix in prefixes)), prefixes

    def uncompared(self) -> list[SourceEntry]:
        """The training sources that were written before something was held out that is held out now.

        A source without a record of what it was compared with counts as compared with nothing.
        """
        manifest = self._manifest()
        held_out = set(self._hashes_held_out(manifest.sources))
        return [entry for entry in manifest.with_role("train") if held_out - self._compared(entry)]

    def siblings(self, new: Sequence[SourceEntry]) -> list[SourceEntry]:
        """The training sources of the same language and source as `new` that are not among them."""
        names, of = {entry.name for entry in new}, {(entry.language, entry.source) for entry in new}
        found = self._manifest().with_role("train")
        return [entry for entry in found if entry.name not in names and (entry.language, entry.source) in of]

    def replace_sources(
        self, new: Sequence[SourceEntry], finished: Path, quarantine: Sequence[BadLine], *, call: str
    ) -> Path:
        """Put finished sources under their names; a holdout of a replaced training source goes with it.

        finished: the folder with the files of their shards, on the same file system.
        Returns the path of the manifest, which is written last. The caller holds stage.only_one of the folder. After a
        kill it can be called again with the same sources.
        """
        for path in self.folder.glob(".*.tmp"):  # of a killed call; scores are written by a call beside this one
            if ".scores" not in path.name and not path.is_dir():  # a folder is of a model, exported beside the data
                path.unlink()
        names = {entry.name for entry in new} | {f"{entry.name}@holdout" for entry in new if entry.role == "train"}
        before = self._manifest()
        kept = tuple(entry for entry in before.sources if entry.name not in names)
        if len(kept) < len(before.sources):
            write_manifest(replace(before, sources=kept))  # files change next: nobody may take the old ones for whole
        fresh = {shard.prefix for entry in new for shard in entry.shards}
        stems = {file_stem(name) for name in names}
        for path in list(self.folder.iterdir()):
            found = _FILE.fullmatch(path.name)
            if found and found["stem"] in stems and (found["prefix"] not in fresh or ".scores" in path.name):
                path.unlink()
        for entry in new:
            for shard in entry.shards:
                suffixes = (".digests", SUFFIX) if entry.role == "validation" else (SUFFIX,)
                for suffix in (*suffixes, ".bin", ".idx"):
                    # It also stays where it is, so that a killed call can be repeated.
                    name = f"{shard.prefix}{suffix}"
                    link_or_copy(finished / name, self.folder / name)
        held_out = "".join(f"{digest}\n" for digest in self._hashes_held_out((*kept, *new)))
        for entry in new:
            if entry.role == "train":
                write_atomic(self._compared_path(entry), held_out.encode())
        self.write_quarantine(quarantine, call=call)
        ordered = sorted((*kept, *new), key=lambda entry: entry.name)
        return write_manifest(replace(before, sources=tuple(ordered)))

    def write_quarantine(self, quarantine: Sequence[BadLine], *, call: str) -> Path:
        """Replace this call's part of quarantine.jsonl. call: language/source/topic, or topic key."""
        path = self.folder / QUARANTINE_NAME
        with path.open(encoding="utf-8") if path.is_file() else nullcontext(()) as before:
            others = (line.rstrip("\n") for line in before if json.loads(line)["call"] != call)
            own = (json.dumps({"call": call, **asdict(item)}, ensure_ascii=False) for item in quarantine)
            return write_records(path, chain(others, own))

    def _hashes_held_out(self, sources: Sequence[SourceEntry]) -> list[str]:
        """sha256 of the content hashes of every held-out token file, sorted."""
        prefixes = [shard.prefix for entry in sources if entry.role == "validation" for shard in entry.shards]
        return sorted(hashlib.sha256(digests_path(self.folder / name).read_bytes()).hexdigest() for name in prefixes)

    def _compared_path(self, entry: SourceEntry) -> Path:
        """Keeps what `_hashes_held_out` gave when the training source was written, a line each."""
        return self.folder / f"{file_stem(entry.name)}.compared"

    def _compared(self, entry: SourceEntry) -> set[str]:
        path = self._compared_path(entry)
        return set(path.read_text(encoding="utf-8").split()) if path.is_file() else set()

    def _manifest(self) -> DatasetManifest:
        if not (self.folder / MANIFEST_NAME).is_file():
            return self._empty
        return read_manifest(self.folder, check_files=False)


def link_or_copy(file: Path, target: Path) -> None:
    """Give a finished file, which nobody changes in place, a second name; what has the name goes.

    A copy where the file system has no hard links, or is another one.
    """
    if target.exists() and target.samefile(file):
        return
    temporary = temporary_path(target)
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)
    except OSError:
        shutil.copyfile(file, temporary)
    publish(temporary, target)
