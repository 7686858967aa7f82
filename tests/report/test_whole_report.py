"""A report as one page or Markdown: well formed, whole, and what a drawing may hold."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.report import run_folders
from tools.cli import main
from tools.report.command import ReportOptions, make_report
from tools.report.content import Figure, Report
from tools.report.figures import GREY, PALETTE, Line, bars, lines, stack
from tools.report.html import page
from tools.report.markdown import escaped, markdown
from tools.report.svg import SVG, XLINK
from tools.report.thinning import thinned


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


def paths(figure: Figure, style: str) -> list[list[tuple[float, float]]]:
    """The points of what is drawn in this style; y goes down, as an SVG counts."""
    root = ElementTree.fromstring(figure.svg)
    defined = {element.attrib.get("id"): element.attrib["d"] for element in root.iter(f"{{{SVG}}}path")}
    drawn = [element.attrib for element in root.iter() if style.lower() in element.attrib.get("style", "")]
    shapes = [found.get("d") or defined[found[f"{{{XLINK}}}href"][1:]] for found in drawn]
    points = [re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", shape) for shape in shapes]
    return [[(float(x), float(y)) for x, y in path] for path in points]


def test_a_curve_is_drawn_where_its_values_are_and_another_stage_by_a_line() -> None:
    values = np.array([1.0, 2.0, 4.0, 3.0])
    drawn = [Line(label=str(size), curve=thinned(np.arange(4.0), values * size), stroke=size) for size in (1, 2)]
    (figure,) = lines("title", drawn, y_label="unit", stages=[1.0], zero_line=True)
    (one,), (other,) = (np.array(paths(figure, f"stroke: {PALETTE[size]}")) for size in (1, 2))  # [points, 2]
    for x, y in (one.T, other.T):
        assert 3 * (x - x[0]) / (x[3] - x[0]) == pytest.approx([0, 1, 2, 3], abs=0.01)
        assert 1 + 3 * (y[0] - y) / (y[0] - y[2]) == pytest.approx(values, abs=0.01)
    (stage, zero) = paths(figure, f"stroke: {GREY}")
    assert [x for x, _ in stage] == pytest.approx([one[1, 0]] * 2, abs=0.02)
    assert [y for _, y in zero] == pytest.approx([2 * one[0, 1] - one[1, 1]] * 2, abs=0.05)  # as far below 1 as 2 above
    (plain,) = lines("title", drawn, y_label="unit")
    assert paths(plain, f"stroke: {GREY}") == []


def test_a_stack_is_as_high_as_its_shares_and_what_is_planned_is_paler() -> None:
    areas = [("a", "#112233", np.array([0.25, 0.5])), ("b", "#445566", np.array([0.75, 0.5]))]
    (figure,) = stack("title", np.array([0.0, 10.0, 20.0]), areas, stages=[10.0], planned_from=10.0)
    shapes = [np.array(path) for colour in ("#112233", "#445566") for path in paths(figure, f"fill: {colour}")]
    heights = np.array([np.ptp(shape[:, 1]) for shape in shapes])
    assert heights / (heights[0] + heights[2]) == pytest.approx([0.25, 0.5, 0.75, 0.5], abs=0.01)
    assert len(paths(figure, "fill-opacity: 0.4")) == 2
    (border,) = paths(figure, "stroke: #ffffff")
    assert border[0][0] == shapes[0][:, 0].max() == shapes[1][:, 0].min()


def test_a_figure_of_nothing_is_none() -> None:
    assert lines("title", [], y_label="unit") == []
