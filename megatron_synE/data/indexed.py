"""Megatron's .bin/.idx token files: mapped reading with document boundaries, atomic writing from flat arrays.

.idx (little endian): magic MMIDIDX, version 1, dtype code, number of sequences, number of boundaries; then an int32
length for each sequence, an int64 byte pointer into .bin for each, and the int64 sequence numbers at which documents
begin, closed by the total.
Boundaries come from here, never from scanning for EOS.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from data_mixers.atomic import publish, temporary_path
from data_mixers.errors import DataError
from data_mixers.manifest import IDX_HEADER, IDX_MAGIC

IDX_VERSION = 1
DTYPE_CODES: dict[int, type[np.integer]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16,
}  # fmt: skip  # 6 and 7 are floats, which are no tokens
TOKEN_DTYPES: dict[str, type[np.integer]] = {"uint16": np.uint16, "int32": np.int32}
CONTIGUITY_CHECKED = 1 << 18  # sequences checked when opening (2 ms); larger files in evenly spread runs
_RUN = 1 << 10  # of a run: neighbours, so that a check of a large file touches few pages


def token_dtype(vocab_size: int) -> Literal["uint16", "int32"]:
    """The dtype megatron-core itself chooses for a vocabulary (DType.optimal_dtype: below 65,500 two bytes)."""
    return "uint16" if vocab_size < 65500 else "int32"


class IndexedFile:
    """One .bin/.idx pair as one long row of tokens with document starts.

    Errors: DataError naming the file if it is missing, is not Megatron's format, is shorter or longer than its index
    says, or if its pieces are not contiguous.
    Cost of opening: two maps and a check of at most CONTIGUITY_CHECKED sequences; nothing is copied.
    checks_all: look at every sequence, for files that nobody has looked at yet.
    """

    def __init__(self, prefix: Path, *, checks_all: bool = False) -> None:
        self._checks_all = checks_all
        self.bin_path, self.idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
        for path in (self.bin_path, self.idx_path):
            if not path.is_file():
                raise DataError(f"{path} is missing; a token file is a pair {prefix.name}.bin and {prefix.name}.idx")
        with self.idx_path.open("rb") as stream:
            head = stream.read(IDX_HEADER.size)
        if len(head) < IDX_HEADER.size or not head.startswith(IDX_MAGIC):
            raise DataError(f"{self.idx_path} is not a Megatron index file: it does not begin with MMIDIDX")
        _, version, code, num_sequences, num_boundaries = IDX_HEADER.unpack(head)
        if version != IDX_VERSION:
            raise DataError(f"{self.idx_path} has index version {version}; only version {IDX_VERSION} is known")
        if code not in DTYPE_CODES:
            raise DataError(f"{self.idx_path} has dtype code {code}; token files have one of {sorted(DTYPE_CODES)}")
        self.dtype: np.dtype[np.integer] = np.dtype(DTYPE_CODES[code])
        needed = IDX_HEADER.size + 12 * num_sequences + 8 * num_boundaries
        if self.idx_path.stat().st_size < needed:
            raise DataError(
                f"{self.idx_path} has {self.idx_path.stat().st_size} bytes, its header asks for {needed}: cut off; "
                "preprocess the data again"
            )
        # As plain arrays: an item of a memmap costs ten times as much.
        idx = np.asarray(np.memmap(self.idx_path, dtype=np.uint8, mode="r"))
        middle = IDX_HEADER.size + 4 * num_sequences
        self._lengths = idx[IDX_HEADER.size : middle].view(np.int32)
        self._pointers = idx[middle : middle + 8 * num_sequences].view(np.int64)
        self._boundaries = idx[middle + 8 * num_sequences : needed].view(np.int64)
        self.num_documents = max(0, num_boundaries - 1)
        self._check_sizes(num_sequences)
        self.num_tokens = self.bin_path.stat().st_size // self.dtype.itemsize
        self._tokens: npt.NDArray[np.integer] = (
            np.memmap(self.bin_path, dtype=self.dtype, mode="r") if self.num_tokens else np.zeros(0, dtype=self.dtype)
        )

    def tokens(self, start: int, stop: int) -> npt.NDArray[np.integer]:
        """Tokens start..stop-1 as a view of the map, in the file's dtype.

        Errors: DataError if the range leaves the file.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise DataError(f"{self.bin_path}: tokens {start}..{stop} asked for, the file has {self.num_tokens}")
        return self._tokens[start:stop]

    def document_starts_in(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Token positions inside [start, stop) at which a document starts, ascending, each once.

        Cost: four binary searches in the index, whatever its size. Not numpy's: the header has 34 bytes, so the arrays
        lie unaligned, and numpy would copy them whole for every search.
        """
        itemsize = self.dtype.itemsize
        first = bisect_left(self._pointers, start * itemsize)
        last = bisect_left(self._pointers, stop * itemsize, lo=first)
        low = bisect_left(self._boundaries, first, hi=self.num_documents)
        high = bisect_left(self._boundaries, last, lo=low, hi=self.num_documents)
        starts = np.asarray(self._pointers[self._boundaries[low:high]]) // itemsize
        return np.unique(starts)  # an empty document starts where the next one does

    def document_at(self, token: int) -> int:
        """The number of the document that holds this token. Cost: two binary searches in the index."""
        sequence = bisect_right(self._pointers, token * self.dtype.itemsize) - 1
        return bisect_right(self._boundaries, sequence) - 1

    def document_ranges(self) -> npt.NDArray[np.int64]:
        """Token positions at which documents start, closed by num_tokens: num_documents + 1 numbers, all in memory."""
        itemsize = self.dtype.itemsize
        ends = np.append(np.asarray(self._pointers) // itemsize, self.num_tokens)
        return ends[np.asarray(self._boundaries)]

    def _lie_end_to_end(self, run: slice) -> bool:
        """Whether each sequence of the run ends where its neighbour begins, none before it begins."""
        if (self._lengths[run] < 0).any():
            return False
        pointers = self._pointers[run.start : run.stop + 1]
        ends = pointers[:-1] + self._lengths[run][: len(pointers) - 1].astype(np.int64) * self.dtype.itemsize
        return bool(np.array_equal(ends, pointers[1:]))

    def _check_sizes(self, num_sequences: int) -> None:
        found = self.bin_path.stat().st_size
        described = 0
        if num_sequences:
            described = int(self._pointers[-1]) + int(self._lengths[-1]) * self.dtype.itemsize
        if found < described:
            raise DataError(
                f"{self.bin_path} has {found} bytes, {self.idx_path.name} describes {described}: it was cut off; "
                "copy it again or preprocess the data again"
            )
        contiguous = found == described and (
            num_sequences == 0
            or (
                int(self._pointers[0]) == 0
                and all(map(self._lie_end_to_end, _runs(num_sequences, checks_all=self._checks_all)))
            )
        )
        if not contiguous:
            raise DataError(
                f"{self.bin_path}: the sequences in {self.idx_path.name} do not lie end to end and fill it; "
                "windows read across them, so write the pair again, with `syne data preprocess` or Megatron's own tool"
            )
        bounds = self._boundaries
        if len(bounds) and (int(bounds[0]) != 0 or int(bounds[-1]) != num_sequences):
            raise DataError(
                f"{self.idx_path}: document boundaries run from {bounds[0]} to {bounds[-1]}, not 0..{num_sequences}"
            )
        if not all(
            (np.diff(bounds[run.start : run.stop + 1]) >= 0).all()
            for run in _runs(len(bounds), checks_all=self._checks_all)
        ):
            raise DataError(f"{self.idx_path}: document boundaries do not ascend; preprocess the data again")
        if num_sequences and not len(bounds):
            raise DataError(f"{self.idx_path} has {num_sequences} sequences but no document boundaries")


def _runs(num_sequences: int, *, checks_all: bool) -> list[slice]:
    """All sequences, or evenly spread runs of them, the last one included."""
    if checks_all:
        return [slice(first, first + CONTIGUITY_CHECKED) for first in range(0, num_sequences, CONTIGUITY_CHECKED)]
    if num_sequences <= CONTIGUITY_CHECKED:
        return [slice(0, num_sequences)]
    count = CONTIGUITY_CHECKED // _RUN
    starts = [(num_sequences - _RUN) * index // (count - 1) for index in range(count)]
    return [slice(start, start + _RUN) for start in starts]


@dataclass(frozen=True, kw_only=True)
class WrittenPair:
    """Sizes and hashes of a finished .bin/.idx pair."""

    num_documents: int
    num_tokens: int
    bin_size_bytes: int
    idx_size_bytes: int
    bin_sha256: str
    idx_sha256: str


class IndexedWriter:
    """Writes a .bin/.idx pair, one sequence per document; the pair appears when the `with` block ends without an error.

    Memory: 4 bytes per document.
    """

    def __init__(self, prefix: Path, *, dtype: Literal["uint16", "int32"]) -> None:
        self.bin_path, self.idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
        self._dtype = np.dtype(TOKEN_DTYPES[dtype])
        self._lengths: list[npt.NDArray[np.int32]] = []
        self._bin_temporary = temporary_path(self.bin_path)
        self._idx_temporary = temporary_path(self.idx_path)
        self._bin_hash = hashlib.sha256()
        self._bin_size = 0
        self._bin: BinaryIO | None = None
        self.written: WrittenPair | None = None

    def __enter__(self) -> "IndexedWriter":
        self.bin_path.parent.mkdir(parents=True, exist_ok=True)
        self._bin = self._bin_temporary.open("wb")
        return self

    def add_document(self, tokens: npt.NDArray[np.integer]) -> None:
        """One document. Errors: DataError if an id does not fit the dtype."""
        self.add_documents(tokens, np.array([len(tokens)], dtype=np.int32))

    def add_documents(self, tokens: npt.NDArray[np.integer], lengths: npt.NDArray[np.int32]) -> None:
        """Several documents whose tokens lie one after the other."""
        if int(lengths.sum()) != len(tokens):
            raise DataError(f"{self.bin_path}: lengths sum to {int(lengths.sum())}, there are {len(tokens)} tokens")
        limits = np.iinfo(self._dtype)
        if (
            tokens.dtype != self._dtype
            and len(tokens)
            and not 0 <= int(tokens.min()) <= int(tokens.max()) <= limits.max
        ):
            raise DataError(f"{self.bin_path}: token id {int(tokens.max())} does not fit {self._dtype.name}")
        raw = np.ascontiguousarray(tokens, dtype=self._dtype).data.cast("B") if len(tokens) else b""
        assert self._bin is not None  # used inside its `with` block
        self._bin.write(raw)
        self._bin_hash.update(raw)
        self._bin_size += len(raw)
        self._lengths.append(lengths.astype(np.int32))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._bin is not None
        self._bin.close()
        try:
            if kind is None:
                self._finish()
        finally:
            self._bin_temporary.unlink(missing_ok=True)
            self._idx_temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, dtype=np.int32)
        num_documents = len(lengths)
        pointers = np.zeros(num_documents, dtype=np.int64)
        np.cumsum(lengths[:-1].astype(np.int64) * self._dtype.itemsize, out=pointers[1:])
        code = next(code for code, dtype in DTYPE_CODES.items() if np.dtype(dtype) == self._dtype)
        parts: Iterable[bytes] = (
            IDX_HEADER.pack(IDX_MAGIC, IDX_VERSION, code, num_documents, num_documents + 1),
            lengths.tobytes(),
            pointers.tobytes(),
            np.arange(num_documents + 1, dtype=np.int64).tobytes(),
        )
        idx_hash, idx_size = hashlib.sha256(), 0
        with self._idx_temporary.open("wb") as stream:
            for part in parts:
                stream.write(part)
                idx_hash.update(part)
                idx_size += len(part)
        # .idx last: a pair without .idx is never taken for whole
        self.idx_path.unlink(missing_ok=True)
        publish(self._bin_temporary, self.bin_path)
        publish(self._idx_temporary, self.idx_path)
        self.written = WrittenPair(
            num_documents=num_documents,
            num_tokens=int(lengths.sum(dtype=np.int64)),
            bin_size_bytes=self._bin_size,
            idx_size_bytes=idx_size,
            bin_sha256=self._bin_hash.hexdigest(),
            idx_sha256=idx_hash.hexdigest(),
        )
