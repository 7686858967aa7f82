"""The page in a browser: quiet, self-contained, readable on a telephone, and nothing of a run is markup in it."""

from pathlib import Path
from typing import Any

import pytest

from tests.report import run_folders
from tests.report.chromium import Chromium
from tools.report.command import ReportOptions, write_report
from tools.report.content import Excerpt, Figure, LegendEntry, Missing, Report, Section, Table, Text
from tools.report.html import page

pytestmark = pytest.mark.chromium

SCRIPT = "<script>document.title='run'</script>"
IMAGE = '"><img src=x onerror="document.title=1">'
NAMES = (f"zh/web/{SCRIPT}", "en/web/$x$ & 'y'", f"en/web/{IMAGE}")
EXTRA: tuple[dict[str, Any], ...] = (
    {"kind": "guard", "iteration": 40, "set": SCRIPT, "consumed_tokens": 10240, "probe_accuracy": 0.5, "change": 0.25,
     "worse": ["loss", IMAGE], "rise": 0.02, "start_sample": 8, "notes": [SCRIPT, IMAGE]},
    {"kind": "recovery", "iteration": 40, "bad_iteration": 39, "action": IMAGE, "start_sample": 8, "stop_sample": 16,
     "anomaly": SCRIPT, "lm_loss": "nan", "grad_norm": 3.0, "bound": None},
    {"kind": SCRIPT, "iteration": 40},
)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs side by side whose every string is hostile."""
    root = tmp_path_factory.mktemp("page")
    runs = [run_folders.write(root / name, name=name, names=NAMES, extra=EXTRA) for name in ("one", "two")]
    return write_report(ReportOptions(runs=tuple(runs), out=root / "report.html"))


@pytest.mark.parametrize("width", [1280, 400])
def test_it_is_quiet_asks_for_nothing_and_fits(browser: Chromium, file: Path, width: int) -> None:
    seen = browser.open(file, width=width)
    assert seen.errors == []
    assert seen.requests == [file.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    outside = browser.evaluate(
        "[...document.body.querySelectorAll('*')].filter(e => !e.closest('.scroll') && !e.closest('svg') && "
        "e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('figure > svg')].flatMap(s => [...s.querySelectorAll('text')].map("
        "t => parseFloat(getComputedStyle(t).fontSize) * s.getBoundingClientRect().width / s.viewBox.baseVal.width)))"
    )
    assert smallest >= 9.5  # CSS pixels: what browsers call small print is 10


def test_every_figure_has_a_title_a_text_for_those_who_cannot_see_it_and_units(browser: Chromium, file: Path) -> None:
    browser.open(file, width=1280)
    figures = browser.evaluate(
        "[...document.querySelectorAll('figure')].map(f => ({title: f.querySelector('h3').textContent, "
        "role: f.querySelector('svg').getAttribute('role'), alt: f.querySelector('svg').getAttribute('aria-label'), "
        "texts: [...f.querySelectorAll('svg text')].map(t => t.textContent)}))"
    )
    units = {
        "Training loss": "nats per token", "Learning rate": "learning rate", "Throughput": "tokens per second",
        "Held-out PPL: en": "PPL, exp(nats per token)", "Held-out bits per byte: zh": "bits per UTF-8 byte",
        "Mixture by language, one": "share of tokens", "Time budget": "seconds",
        "Change of held-out loss since the first validation": "nats per token (above 0: worse)",
        "Peak memory of a device": "GiB", "Goodput": "% of the allocated time",
    }  # fmt: skip
    by_title = {figure["title"]: figure for figure in figures}
    assert len(by_title) == len(figures)
    for title, unit in units.items():
        assert unit in by_title[title]["texts"], title
    for figure in figures:
        assert figure["role"] == "img"
        assert figure["alt"].startswith(figure["title"]) and len(figure["alt"]) > len(figure["title"]) + 20
        assert "tokens read" in figure["texts"] or figure["title"] == "Time budget"


def test_what_a_run_calls_its_things_stays_text(browser: Chromium, file: Path) -> None:
    browser.open(file, width=1280)
    assert browser.evaluate("document.title") == "one, two: report"
    assert browser.evaluate("document.querySelectorAll('script, img, iframe, object, embed').length") == 0
    text = browser.evaluate("document.body.textContent")
    for name in (*NAMES, SCRIPT, IMAGE):
        assert name in text, name


def test_text_of_documents_stays_text_even_without_the_pages_own_policy(browser: Chromium, tmp_path: Path) -> None:
    hostile = f"before {SCRIPT} {IMAGE} </pre></body> &lt;b&gt; after"
    excerpt = Excerpt(title=SCRIPT, facts=[IMAGE, SCRIPT], text=hostile)
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>'
    figure = Figure(title=SCRIPT, alt=IMAGE, svg=drawing, legend=[LegendEntry(label=SCRIPT + IMAGE, colour="#000")])
    table = Table(header=[SCRIPT, IMAGE], rows=[[IMAGE, SCRIPT]])
    blocks = [excerpt, figure, table, Missing(SCRIPT), Text(IMAGE)]
    html = page(Report(title="title", subtitle=SCRIPT, sections=[Section(SCRIPT, blocks)]))
    file = tmp_path / "page.html"
    file.write_text(html.replace("Content-Security-Policy", "X-Nothing"), encoding="utf-8")
    seen = browser.open(file, width=400)
    assert seen.requests == [file.as_uri()]
    assert browser.evaluate("document.title") == "title"
    assert browser.evaluate("document.querySelectorAll('script, img').length") == 0
    assert browser.evaluate("document.querySelector('figure h3').textContent") == SCRIPT
    assert browser.evaluate("document.querySelector('figure > svg').getAttribute('aria-label')") == IMAGE
    assert browser.evaluate("document.querySelector('pre').textContent") == hostile


def test_a_page_that_did_run_or_ask_for_something_would_be_seen(browser: Chromium, tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text("<img src=nowhere.png><script>console.error('loud'); throw new Error('x')</script>")
    seen = browser.open(file, width=400)
    assert (tmp_path / "nowhere.png").as_uri() in seen.requests
    assert len(seen.errors) >= 2


def test_the_page_of_a_hundred_thousand_steps_is_small_and_keeps_every_extreme(
    browser: Chromium, tmp_path: Path
) -> None:
    names = [f"{language}/web/topic{index}" for language in ("zh", "en") for index in range(7)]
    run = run_folders.write(tmp_path / "run", 100_000, names=names)
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    loss = f'"lm_loss": {2 + 1 / 54321**0.5},'
    assert text.count(loss) == 1
    # One step of a hundred thousand.
    (run / "metrics.jsonl").write_text(text.replace(loss, '"lm_loss": 9.875,'), encoding="utf-8")
    file = write_report(ReportOptions(runs=(run,), out=tmp_path / "report.html"))
    assert file.stat().st_size <= 5 << 20
    assert browser.open(file, width=400).errors == []
    alt = browser.evaluate("document.querySelector('figure > svg').getAttribute('aria-label')")
    assert alt.startswith("Training loss in nats per token") and "between 2.003 and 9.875" in alt
