"""Sidecars of token files: rows in their order, over several groups, and nothing where a call broke off."""

from pathlib import Path
from typing import Any

import pytest

from tools.data.sidecar import SidecarWriter, read_row, read_rows, sidecar_path, source_files

FILES = ["a", "a", "b", "a", "c", "b", "b"]


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
