"""Sidecar columns are what pyarrow would make of them, without pandas."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.data.sidecar import _array

ROOT = Path(__file__).parents[2]
COLUMNS = st.one_of(
    st.tuples(st.just(pa.string()), st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])))),
    st.tuples(st.just(pa.int64()), st.lists(st.none() | st.integers(-(2**63), 2**63 - 1))),
    st.tuples(st.just(pa.float64()), st.lists(st.none() | st.floats())),
)


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
