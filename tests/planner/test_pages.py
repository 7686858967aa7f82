"""The tables in docs/planner.md and docs/scaling.md are what the planner prints today."""

from pathlib import Path

import pytest

from tools.planner.pages import PAGES, TABLES, filled


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_is_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == filled(text), "run: python -m tools.planner.pages --write"


def test_every_table_stands_in_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in TABLES if f"<!-- table {name} -->" not in text] == []
