"""Seeds at the edges of the rules: window, sentence ends, headings, snippets a page, near-duplicates, statements."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.rows import read, write
from tools.synthesis.options import SeedOptions
from tools.synthesis.seed_rules import read_seed_rules
from tools.synthesis.seeds import write_seeds
from tools.synthesis.snippets import load_punkt, snippets, train_punkt


@pytest.mark.parametrize(
    ("language", "text", "window", "found"),
    [
        ("zh", "光是波！声是波。", (3, 3), ["光是波！", "声是波。"]),  # ！ ends a sentence
        ("zh", "光是波。声是波。", (3, 5), ["光是波。", "声是波。"]),  # two would be 6 characters
        ("zh", "光是波。声是波。", (3, 6), ["光是波。声是波。"]),
        ("zh", "光是波。声是波。", (7, 9), []),
        ("en", "Light is fast.\n\nA heading\n\nSound is slow.", (3, 9), ["Light is fast.", "Sound is slow."]),
        ("en", "Light is fast. Sound is slow.", (3, 6), ["Light is fast. Sound is slow."]),
        ("en", "Light is fast. Sound is slow.", (3, 5), ["Light is fast.", "Sound is slow."]),
        ("en", "Light is fast. Sound is slow.", (7, 9), []),
    ],
)
def test_the_window_holds_at_both_ends(
    tmp_path: Path, language: str, text: str, window: tuple[int, int], found: list[str]
) -> None:
    train_punkt([], tmp_path / "punkt")
    rules = replace(read_seed_rules(language), window=window)
    assert list(snippets(text, language, rules, load_punkt(tmp_path / "punkt", ()))) == found


def page(number: int, *, runs: int) -> str:
    return "\n\nA heading\n\n".join(
        " ".join(f"Planet {number}-{run}-{k} was seen in the orbit of star {k} by night {run}." for k in range(9))
        for run in range(runs)
    )


def test_a_page_gives_as_many_snippets_as_asked_and_which_depends_on_the_seed(tmp_path: Path) -> None:
    pages = write(tmp_path / "pages.jsonl", [{"id": f"p{n}", "text": page(n, runs=4)} for n in range(6)])
    given = SeedOptions(inputs=(str(pages),), out=tmp_path / "a.jsonl", discipline="astronomy", near_duplicates=False)

    def texts(**changes: Any) -> list[str]:
        write_seeds(replace(given, **changes))
        return [json.loads(line)["text"] for line in given.out.read_text().splitlines()]

    assert len(texts(per_page=1)) == 6 and len(texts(per_page=3)) == 18
    assert set(texts(per_page=1)) < set(texts(per_page=3))
    assert len({tuple(texts(seed=seed)) for seed in range(4)}) > 1


def test_near_duplicates_go_unless_they_are_to_stay(tmp_path: Path) -> None:
    first = page(1, runs=1)
    second = first.replace("night 0.", "night 1.", 1)
    pages = write(tmp_path / "pages.jsonl", [{"id": "a", "text": first}, {"id": "b", "text": second}])
    given = SeedOptions(inputs=(str(pages),), out=tmp_path / "a.jsonl.zst", discipline="astronomy")
    assert write_seeds(given)["snippets"]["near_duplicate"] == 1 and len(read(given.out)) == 1
    assert write_seeds(replace(given, near_duplicates=False))["snippets"]["seeds"] == 2


def test_a_statement_is_taken_whole_if_its_length_fits(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": "word " * n} for n in (7, 8, 1000, 1001)]
    pages = write(tmp_path / "problems.jsonl", rows)
    given = SeedOptions(
        inputs=(str(pages),), out=tmp_path / "a.jsonl.zst", discipline="code", language="en", whole=True,
        near_duplicates=False,
    )  # fmt: skip
    write_seeds(given)
    assert [seed["seed_id"] for seed in read(given.out)] == ["8", "1000"]
