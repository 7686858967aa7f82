"""The token files of a level of `corruption` are those of the section that asks, whatever was killed before."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.rows import contents, write
from tests.tools import corpus
from tools.surrogate import prepare
from tools.surrogate.study import Corruption


def made(section: Corruption, folder: Path) -> dict[str, bytes]:
    study: Any = SimpleNamespace(grid={"corruption": [0.5]}, corruption=section)
    return contents(prepare.variants(study, folder)[0.5])


def test_a_section_that_was_tried_and_killed_leaves_none_of_its_pairs_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.jsonl", [{"id": str(n), "text": f"{n} apples and {n + 3} pears."} for n in range(8)])
    write(tmp_path / "b.jsonl", [{"id": str(n), "text": f"{n} trains take {n + 5} hours."} for n in range(8)])
    section = Corruption(
        input=str(tmp_path / "a.jsonl"), tokenizer=corpus.hf_folder(tmp_path / "hf"), source="qa", topic="sums",
        kinds=("number",),
    )  # fmt: skip
    first = made(section, tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_atomic", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            made(replace(section, input=str(tmp_path / "b.jsonl")), tmp_path / "data")
    assert made(section, tmp_path / "data") == first


def test_pairs_that_were_mended_are_made_again(tmp_path: Path) -> None:
    """One digit for another leaves a file's size as it was."""
    rows = [{"id": str(n), "text": f"{n} apples and {n + 3} pears are {2 * n + 4}."} for n in range(3)]
    pairs = write(tmp_path / "a.jsonl", rows)
    section = Corruption(
        input=str(pairs), tokenizer=corpus.hf_folder(tmp_path / "hf"), source="qa", topic="sums", kinds=("number",)
    )
    first, size = made(section, tmp_path / "data"), pairs.stat().st_size
    assert made(section, tmp_path / "data") == first
    write(pairs, [row | {"text": f"{n} apples and {n + 3} pears are {2 * n + 3}."} for n, row in enumerate(rows)])
    assert pairs.stat().st_size == size
    mended = made(section, tmp_path / "data")
    (tokens,) = (name for name in first if name.endswith(".bin"))
    assert mended[tokens] == made(section, tmp_path / "elsewhere")[tokens] != first[tokens]
