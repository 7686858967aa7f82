"""<prefix>.documents.parquet: where each document of a token file comes from; rows are in the order of the file."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_mixers.atomic import publish, temporary_path
from data_mixers.errors import DataError

SUFFIX = ".documents.parquet"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("place", pa.int64()),
        ("topic", pa.string()),
        ("topic_confidence", pa.float64()),
        ("num_tokens", pa.int64()),
        ("text_bytes", pa.int64()),
    ]
)
ROWS_AT_ONCE = 1 << 16


def sidecar_path(prefix: Path) -> Path:
    return Path(f"{prefix}{SUFFIX}")


class SidecarWriter:
    """Writes a sidecar, one row group per call; it appears, synced, when the block ends well."""

    def __init__(self, prefix: Path) -> None:
        self.path = sidecar_path(prefix)
        self._temporary = temporary_path(self.path)

    def __enter__(self) -> "SidecarWriter":
        self._stream = self._temporary.open("wb")  # a Python file: its faults carry the system's error number
        self._writer = pq.ParquetWriter(self._stream, SCHEMA)
        return self

    def write(self, **columns: Sequence[Any] | npt.NDArray[Any]) -> None:
        """Rows in order, the columns of SCHEMA, all of one length."""
        arrays = [_array(columns[field.name], field.type) for field in SCHEMA]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._writer.close()
                self._stream.close()
                publish(self._temporary, self.path)
        finally:
            self._writer.is_open = False  # or it would try to write its footer when it is collected
            self._stream.close()
            self._temporary.unlink(missing_ok=True)


def open_rows(path: Path, num_documents: int) -> pq.ParquetFile:
    """A Parquet file beside a token file of so many documents.

    Errors: DataError naming the file if it is damaged, or has another number of rows.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}; make it again") from error
    if file.metadata.num_rows != num_documents:
        raise DataError(
            f"{path} has {file.metadata.num_rows} rows, its token file has {num_documents} documents: they are not of "
            "one writing; make it again"
        )
    return file


def read_rows(prefix: Path) -> Iterator[dict[str, Any]]:
    """The rows of a sidecar in order, a group at a time in memory."""
    with pq.ParquetFile(sidecar_path(prefix)) as file:
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            yield from batch.to_pylist()


def read_row(prefix: Path, number: int) -> dict[str, Any] | None:
    """One row of a sidecar, None if it has fewer. Cost: the row's group is read, not the file."""
    with pq.ParquetFile(sidecar_path(prefix)) as file:
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if number < num_rows:
                row: dict[str, Any] = file.read_row_group(group).slice(number, 1).to_pylist()[0]
                return row
            number -= num_rows
    return None


def source_files(prefix: Path, *, most_rows: int) -> tuple[dict[str, int], int]:
    """(documents of each file that the first `most_rows` rows, in whole groups, name, how many rows these are).

    Rows of EOS that fill up windows name no file.
    """
    found: Counter[str | None] = Counter()
    with pq.ParquetFile(sidecar_path(prefix)) as file:
        for group in range(file.num_row_groups):
            if found.total() >= most_rows:
                break
            column = file.read_row_group(group, columns=["file"])["file"]
            for entry in column.value_counts().to_pylist():
                found[entry["values"]] += int(entry["counts"])
    return {file: count for file, count in found.items() if file is not None}, found.total()


def _array(values: Sequence[Any] | npt.NDArray[Any], kind: Any) -> Any:
    """An Arrow array of texts, int64 or float64, from its buffers; None and NaN become null.

    pyarrow.array would import pandas, which costs a call half a second of processor time.
    """
    there = np.fromiter((value is not None and value == value for value in values), dtype=bool, count=len(values))
    if kind == pa.string():
        raw = [value.encode() if value is not None else b"" for value in values]
        starts = np.zeros(len(raw) + 1, dtype=np.int32)
        np.cumsum([len(value) for value in raw], out=starts[1:])
        content = [starts, b"".join(raw)]
    else:
        numbers = values if there.all() else [v if is_there else 0 for v, is_there in zip(values, there, strict=True)]
        content = [np.ascontiguousarray(numbers, dtype=kind.to_pandas_dtype())]
    valid = None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [valid, *map(pa.py_buffer, content)])
