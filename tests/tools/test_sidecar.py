"""Sidecars of token files: rows in order, over several groups, columns as pyarrow makes them, nothing half-written."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.data.sidecar import SidecarWriter, _array, read_row, read_rows, sidecar_path, source_files

ROOT = Path(__file__).parents[2]
FILES = ["a", "a", "b", "a", "c", "b", "b"]
COLUMNS = st.one_of(
    st.tuples(st.just(pa.string()), st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])))),
    st.tuples(st.just(pa.int64()), st.lists(st.none() | st.integers(-(2**63), 2**63 - 1))),
    st.tuples(st.just(pa.float64()), st.lists(st.none() | st.floats())),
)


def rows_of(numbers: range) -> dict[str, list[Any]]:
    return {
        "id": [f"d{n}" for n in numbers], "file": [FILES[n] for n in numbers], "place": [10 * n for n in numbers],
        "topic": ["law"] * len(numbers), "topic_confidence": [float("nan") if n == 3 else n / 10 for n in numbers],
        "num_tokens": [n + 2 for n in numbers], "text_bytes": [3 * n for n in numbers],
    }  # fmt: skip


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Groups of three, two and two rows."""
    with SidecarWriter(tmp_path / "tokens") as writer:
        for numbers in (range(3), range(3, 5), range(5, 7)):
            writer.write(**rows_of(numbers))
    return tmp_path / "tokens"


def test_rows_come_back_in_order_and_one_by_one(prefix: Path) -> None:
    rows = list(read_rows(prefix))
    assert [row["id"] for row in rows] == [f"d{n}" for n in range(7)]
    assert rows[3] == {
        "id": "d3", "file": "a", "place": 30, "topic": "law", "topic_confidence": None, "num_tokens": 5,
        "text_bytes": 9,
    }  # fmt: skip
    assert rows[6]["topic_confidence"] == 0.6
    assert [read_row(prefix, number) for number in range(8)] == [*rows, None]


@pytest.mark.parametrize(
    ("most_rows", "expected"),
    [
        (1, ({"a": 2, "b": 1}, 3)),
        (3, ({"a": 2, "b": 1}, 3)),
        (4, ({"a": 3, "b": 1, "c": 1}, 5)),
        (6, ({"a": 3, "b": 3, "c": 1}, 7)),
        (100, ({"a": 3, "b": 3, "c": 1}, 7)),
    ],
)
def test_the_documents_of_each_file_are_counted_by_whole_groups(
    prefix: Path, most_rows: int, expected: tuple[dict[str, int], int]
) -> None:
    assert source_files(prefix, most_rows=most_rows) == expected


def test_rows_that_fill_up_windows_name_no_file(tmp_path: Path) -> None:
    with SidecarWriter(tmp_path / "tokens") as writer:
        writer.write(**(rows_of(range(3)) | {"file": ["a", None, "a"]}))
    assert source_files(tmp_path / "tokens", most_rows=9) == ({"a": 2}, 3)


def test_a_call_that_breaks_off_leaves_the_old_rows_and_no_other_file(prefix: Path) -> None:
    before = sidecar_path(prefix).read_bytes()

    def broken() -> None:
        with SidecarWriter(prefix) as writer:
            writer.write(**rows_of(range(2)))
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert sidecar_path(prefix).read_bytes() == before
    assert [path.name for path in prefix.parent.iterdir()] == ["tokens.documents.parquet"]


@given(COLUMNS)
def test_a_column_equals_that_of_pyarrow(column: tuple[Any, list[Any]]) -> None:
    kind, values = column
    ours = _array(values, kind)
    ours.validate(full=True)
    assert ours.equals(pa.array(values, kind, from_pandas=True))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.arange(5, dtype=np.int32)[::2], pa.int64()),
        (np.array([1.5, np.nan, -0.0]), pa.float64()),
        (np.zeros(3, dtype=[("place", "<i8"), ("length", "<i4")])["place"], pa.int64()),
    ],
)
def test_a_column_of_numpy_too(values: Any, kind: Any) -> None:
    assert _array(values, kind).equals(pa.array(values, kind, from_pandas=True))


def test_a_sidecar_is_written_without_pandas(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from tools.data.sidecar import SidecarWriter, read_rows
with SidecarWriter(Path(sys.argv[1])) as sidecar:
    sidecar.write(
        id=["a"], file=["f"], place=[3], topic=["law"], topic_confidence=[None], num_tokens=[2], text_bytes=[1]
    )
assert [row["id"] for row in read_rows(Path(sys.argv[1]))] == ["a"]
sys.exit("pandas was imported" if "pandas" in sys.modules else 0)
"""
    subprocess.run([sys.executable, "-c", program, tmp_path / "x"], cwd=ROOT, check=True)
