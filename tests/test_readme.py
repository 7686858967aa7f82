"""README.md and README_zh.md say the same: command blocks, numbers, links and code words of one are the other's."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README_zh.md"))
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![A-Za-z0-9_.])\d[\d,.:]*(?:e-?\d+)?(?<![,.:])")
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(([^)]+)\)")
MOST_LINES = 200


def text_of(file: Path) -> str:
    """Without what names the other language's page."""
    return file.read_text(encoding="utf-8").replace("[中文](README_zh.md)", "").replace("[English](README.md)", "")


def prose(text: str) -> str:
    """Without command blocks, in Western digits' own punctuation."""
    return BLOCK.sub("", text).translate(str.maketrans("：，（）", ":,()"))


@pytest.mark.parametrize(
    "parts",
    [
        lambda text: BLOCK.findall(text),
        lambda text: Counter(NUMBER.findall(prose(text))),
        lambda text: Counter(CODE.findall(prose(text))),
        lambda text: Counter(LINK.findall(text)),
        lambda text: [len(mark) for mark in re.findall(r"^(#+) ", prose(text), re.MULTILINE)],
        lambda text: [line.count("|") for line in text.splitlines() if line.startswith("|")],
        lambda text: len(re.findall(r"^\* ", text, re.MULTILINE)),
    ],
    ids=["command blocks", "numbers", "code words", "links", "headings", "tables", "list items"],
)
def test_both_pages_hold_the_same(parts: Callable[[str], Any]) -> None:
    assert parts(text_of(ENGLISH)) == parts(text_of(CHINESE))


@pytest.mark.parametrize("file", [ENGLISH, CHINESE], ids=lambda file: file.name)
def test_links_and_pictures_lead_to_files_and_the_page_is_short(file: Path) -> None:
    for target in LINK.findall(file.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
