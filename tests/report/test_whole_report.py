"""A report as one page or Markdown: well formed, whole, and what a drawing may hold."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report import run_folders
from tools.cli import main
from tools.report.command import ReportOptions, make_report
from tools.report.content import Report
from tools.report.figures import bars, lines
from tools.report.html import page
from tools.report.markdown import escaped, markdown


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of a run whose topics have names that are no names."""
    run = run_folders.write(tmp_path_factory.mktemp("report") / "run", 40, names=("zh/web/<b>|x", "en/web/$x$"))
    return make_report(ReportOptions(runs=(run,), out=Path("unused")))


def test_markdown_has_the_same_sections_and_its_figures_beside_it(report: Report) -> None:
    text, figures = markdown(report, figures_folder="figures")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [section.title for section in report.sections]
    named = re.findall(r"^!\[.*\]\(figures/([0-9a-z_]+\.svg)\)$", text, re.MULTILINE)
    assert sorted(named) == sorted(figures)
    assert len(named) > 10
    assert "<b>" not in text
    stack = next(svg for name, svg in figures.items() if "mixture_by_topic" in name)
    assert "zh/web/&lt;b&gt;|x" in stack and "en/web/$x$" in stack
    assert escaped("a|b_*c*\n# <d>") == r"a\|b\_\*c\* \# &lt;d&gt;"


def test_the_commands_write_a_page_or_markdown_with_its_figures_beside_it_and_show_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(run_folders.train_row(1)) + "\n")
    run, out = str(tmp_path / "run"), tmp_path / "out"
    assert main(["report", run, "--markdown", "--samples", "2", "--eval", str(tmp_path), "--out", f"{out}/a.md"]) == 0
    assert main(["report", run, "--out", f"{out}/a.html"]) == 0
    assert capsys.readouterr().out == f"{out}/a.md\n{out}/a.html\n"
    assert main(["watch", run, "--once"]) == 0
    assert "loss 3.0000" in capsys.readouterr().out
    assert (out / "a.html").read_text().startswith("<!DOCTYPE html>")
    for name in re.findall(r"\((a_figures/.*\.svg)\)", (tmp_path / "out" / "a.md").read_text()):
        assert (tmp_path / "out" / name).read_text().startswith("<svg")
    assert {path.name for path in out.iterdir()} == {"a.md", "a_figures", "a.html"}


def test_the_page_is_one_well_formed_whole(report: Report) -> None:
    """Every element that is opened is closed in its place, and no id stands twice."""
    parser = Nesting()
    parser.feed(page(report))
    assert parser.open == []
    assert parser.faults == []
    assert len(parser.ids) > 10


class Nesting(HTMLParser):
    """Whether elements close in the order in which they were opened."""

    VOID = ("meta", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        identity = dict(attrs).get("id")
        if identity in self.ids and tag not in ("path", "clippath"):  # of drawings: equal shapes have equal ids
            self.faults.append(f"id {identity} of {tag} twice")
        self.ids |= {identity} if identity else set()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}>")


def test_a_name_in_a_drawing_is_no_formula() -> None:
    figure = bars("Title", ["a$b$", "<c>"], [("part", "#000000", [1.0, 2.0])], x_label="unit")
    assert ">a$b$<" in figure.svg and ">&lt;c&gt;<" in figure.svg


def test_a_figure_of_nothing_is_none() -> None:
    assert lines("title", [], y_label="unit") == []
