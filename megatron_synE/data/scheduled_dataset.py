"""Sample i of a run: seq_length + 1 tokens and the document starts in them, read straight from the memory maps."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import DatasetManifest, SourceEntry
from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule
from megatron_synE.data.indexed import IndexedFile


@dataclass(frozen=True)
class Sample:
    """One training sequence."""

    tokens: npt.NDArray[np.int64]
    """[seq_length + 1]: inputs are the first seq_length, targets the last."""
    document_starts: npt.NDArray[np.int64]
    """Positions in [0, seq_length) at which a segment starts, ascending; always begins with 0."""
    source_index: int
    """Into schedule.sources."""


class ScheduledDataset:
    """The samples of a schedule, by number. Opens each token file when it is first needed; pickles without its maps.

    Errors: DataError if the manifests do not hold what the schedule was made of.
    """

    def __init__(self, schedule: Schedule, manifests: Sequence[DatasetManifest]) -> None:
        self.schedule = schedule
        self._prefixes: list[list[Path]] = []
        self._vocab_sizes: list[int] = []
        entries = {entry.name: (manifest, entry) for manifest in manifests for entry in manifest.sources}
        for source_index in range(len(schedule.sources)):
            manifest, entry = _entry_of(schedule, source_index, entries)
            self._prefixes.append([manifest.shard_prefix(shard) for shard in entry.shards])
            self._vocab_sizes.append(manifest.tokenizer.vocab_size)
        self._sampler: Sampler | None = None
        self._files: dict[tuple[int, int], IndexedFile] = {}

    def with_schedule(self, schedule: Schedule) -> "ScheduledDataset":
        """The same files in another order. Errors: ConfigError if the schedule has other sources."""
        if schedule.sources != self.schedule.sources:
            raise ConfigError("another schedule of this dataset must have the same sources")
        other = copy.copy(self)
        other.schedule, other._sampler = schedule, None
        return other

    def __len__(self) -> int:
        return self.schedule.num_samples

    def __getitem__(self, sample: int) -> Sample:
        """Errors: ConfigError past the end of the schedule; DataError for a damaged file or an id >= the vocabulary."""
        if self._sampler is None:
            self._sampler = Sampler(self.schedule)
        address = self._sampler.address(sample)
        file = self._file(address.source_index, address.shard_index)
        seq_length, start = self.schedule.seq_length, address.token_offset
        tokens = file.tokens(start, start + seq_length + 1).astype(np.int64)
        vocab_size = self._vocab_sizes[address.source_index]
        if int(tokens.max()) >= vocab_size or int(tokens.min()) < 0:
            position = int(np.flatnonzero((tokens >= vocab_size) | (tokens < 0))[0])
            raise DataError(
                f"{file.bin_path}: token id {int(tokens[position])} at token {start + position} is outside the "
                f"vocabulary of {vocab_size}; the file is damaged or of another tokenizer: preprocess again"
            )
        inner = file.document_starts_in(start + 1, start + seq_length) - start
        return Sample(tokens, np.concatenate((np.zeros(1, dtype=np.int64), inner)), address.source_index)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": {}, "_sampler": None}

    def _file(self, source_index: int, shard_index: int) -> IndexedFile:
        key = (source_index, shard_index)
        if key not in self._files:
            file = IndexedFile(self._prefixes[source_index][shard_index])
            expected = self.schedule.sources[source_index].shards[shard_index].num_tokens
            if file.num_tokens != expected:
                raise DataError(f"{file.bin_path} has {file.num_tokens} tokens, the schedule was made for {expected}")
            self._files[key] = file
        return self._files[key]


def _entry_of(
    schedule: Schedule, source_index: int, entries: Mapping[str, tuple[DatasetManifest, SourceEntry]]
) -> tuple[DatasetManifest, SourceEntry]:
    """The manifest entry behind a scheduled source, with the same files."""
    source = schedule.sources[source_index]
    if source.name not in entries:
        raise DataError(
            f"source {source.name} of the schedule is in none of data.manifests; add the manifest it came from"
        )
    manifest, entry = entries[source.name]
    if entry.role != "train":
        raise ConfigError(f"source {source.name} has role {entry.role}: it is held out and cannot be trained on")
    found = [(shard.num_tokens, shard.bin_sha256) for shard in entry.shards]
    if found != [(shard.num_tokens, shard.sha256) for shard in source.shards]:
        raise DataError(
            f"source {source.name} in {manifest.folder} is not the data the schedule was made of "
            "(other sizes or hashes); restore the old files, or begin a new run"
        )
    return manifest, entry
