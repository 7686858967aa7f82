"""Figures: what is met, what is kept, and that the pages say what the files hold."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import _figures, _page
from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import ratio_of
from benchmarks._startup_run import PARTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("first", "verdict"), [([0.8] * 10, "met"), ([0.6] * 10, "missed"), ([0.5, 0.9] * 5, "not resolved")]
)
def test_a_target_is_met_only_by_the_lower_bound(first: list[float], verdict: str) -> None:
    figure = Figure.of("x", ratio_of([(value, 1.0) for value in first]), target=0.7)
    assert (figure.verdict, figure.bound) == (verdict, "≥ 0.7x")


@pytest.mark.parametrize(("value", "verdict"), [(99.0, "met"), (100.0, "met"), (101.0, "missed")])
def test_a_limit_is_met_from_below(value: float, verdict: str) -> None:
    figure = Figure(what="x", value=value, unit="ms", target=100.0, at_most=True)
    assert (figure.verdict, figure.bound, figure.measured) == (verdict, "≤ 100 ms", f"{value:.0f} ms")


def test_a_limit_inside_the_interval_is_not_resolved() -> None:
    assert Figure(what="x", value=1.0, low=0.9, high=1.1, target=1.0, at_most=True).verdict == "not resolved"


def test_figures_are_kept_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_figures, "RESULTS", tmp_path)
    monkeypatch.setattr(_page, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["x", "--record", "--text", "/somewhere/else/text", "--pairs", "3"])
    with Record("speed-part", keep=parser_of(None, pairs=2).parse_known_args()[0].record) as record:
        record.add(Figure.of("ours | theirs", ratio_of([(1.0, 2.0)] * 3), target=0.4))
        with pytest.raises(ValueError, match=r"speed-part\.json is of a call that did not end"):
            _page.read_results()
        record.add(Figure(what="memory", value=1234.5, unit="MB", note="of 2,000"))
    kept = json.loads((tmp_path / "speed-part.json").read_text())
    assert kept["command"] == "python -m benchmarks.speed --text text --pairs 3"
    assert [figure["verdict"] for figure in kept["figures"]] == ["met", ""]
    table = _page.rendered()
    assert "| ours \\| theirs | 0.500x [0.500, 0.500] of 3 pairs | ≥ 0.4x | met |" in table
    assert "| memory (of 2,000) | 1,234 MB |  |  |" in table


def test_nothing_is_kept_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_figures, "RESULTS", tmp_path)
    with Record("speed", keep=False) as record:
        record.add(Figure(what="memory", value=1.0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("module", "name"), PARTS)
def test_what_the_start_is_parted_by_exists(module: str, name: str) -> None:
    assert callable(getattr(importlib.import_module(module), name))


def test_the_page_is_current() -> None:
    """If this fails: python -m benchmarks._page --write."""
    text = _page.PAGE.read_text()
    assert text == _page.page_with(text, _page.rendered())


def test_ratios_of_the_readmes_were_measured() -> None:
    table = _page.rendered()
    for name in ("README.md", "README_zh.md"):
        quoted = re.findall(r"(\d+\.\d+)x \[(\d+\.\d+), (\d+\.\d+)\]", (ROOT / name).read_text())
        assert quoted, name
        for value, low, high in quoted:
            assert f"| {value}x [{low}, {high}] of " in table, f"{name}: {value}x is in no file of results/"
