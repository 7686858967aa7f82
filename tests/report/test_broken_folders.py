"""Whatever a run folder lacks or holds instead is said, and the rest is shown."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.report import run_folders
from tools.cli import main
from tools.report.command import ReportOptions, make_report, write_report
from tools.report.content import Figure, Missing, Report, Section
from tools.report.history import phases, troubles
from tools.report.lineage import lineage
from tools.report.overview import overview
from tools.report.reads import reads, shares_of
from tools.report.run_record import read_run
from tools.report.speed import budget, speed
from tools.report.training import training


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folders.write(tmp_path_factory.mktemp("whole") / "run")


def titles(report: Report | Section) -> list[str]:
    sections = report.sections if isinstance(report, Report) else [report]
    return [block.title for section in sections for block in section.blocks if isinstance(block, Figure)]


def put(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text[:-20])


def of_version(name: str, version: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"schema_version": version}))

    return change


def checkpoint(content: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "checkpoints" / "iter_0000010").mkdir(parents=True)
        (folder / "checkpoints" / "iter_0000010" / "manifest.json").write_text(content)

    return change


BROKEN = {
    "no metrics": (without("metrics.jsonl"), "metrics.jsonl: No such file"),
    "empty metrics": (put("metrics.jsonl", ""), "holds no training step yet"),
    "metrics cut": (cut, "1 of 84 lines are no rows (the last one, which may be in the middle of being written)"),
    "metrics of bytes": (put("metrics.jsonl", bytes(range(256)) * 9), "lines are no rows, the first is line 1"),
    "rows of tomorrow": (put("metrics.jsonl", '{"kind": "weather", "iteration": 1}\n'), "does not know: weather"),
    "no schedule": (without("schedule.json"), "schedule.json is missing: what was planned cannot be shown"),
    "schedule of tomorrow": (of_version("schedule.json", 99), "schema_version is 99, this program reads"),
    "schedule of a list": (put("schedule.json", "[]"), "schema_version is None"),
    "no config": (without("run_config.yaml"), "run_config.yaml is missing"),
    "config of tomorrow": (put("run_config.yaml", "weather: {sun: 1}\n"), "weather: unknown"),
    "config of a list": (put("run_config.yaml", "- 1\n"), "run_config.yaml"),
    "config of bytes": (put("run_config.yaml", b"\xff\xfe\x00"), "run_config.yaml"),
    "no manifest": (without("manifest.json"), "manifest.json is missing"),
    "manifest cut": (put("manifest.json", '{"schema_version": 1'), "manifest.json cannot be read"),
    "manifest of a list": (put("manifest.json", "[1]"), "manifest.json holds no JSON object"),
    "manifest of other types": (
        put("manifest.json", '{"schema_version": 1, "attempt": 3, "attempts": {}, "source_hashes": []}'),
        None,
    ),
    "manifest of tomorrow": (of_version("manifest.json", 99), "schema_version is 99, this program reads"),
    "attempts damaged": (
        put("attempts.json", '{"schema_version": 1, "attempts": [{"began": "x"}]}'),
        "attempts.json: cannot be read",
    ),
    "attempts of no year": (
        put("attempts.json", json.dumps(run_folders.attempts(40)).replace("1700000000.0", "1e300")),
        None,
    ),
    "lease damaged": (put("lease.json", "{}"), "lease.json: cannot be read"),
    "checkpoint damaged": (checkpoint("{"), "not valid JSON"),
    "checkpoint of other types": (checkpoint('{"schema_version": 1, "files": {"state.json": 3}}'), "does not list"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_missing_is_said_and_no_section_fails(whole: Path, tmp_path: Path, what: str) -> None:
    change, message = BROKEN[what]
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    change(folder)
    run = read_run(folder)
    sections = [overview([run]), phases([run]), troubles([run]), lineage([run])]
    shares_of(run)
    budget(run)
    cells = [str(cell) for s in sections for b in s.blocks for row in getattr(b, "rows", ()) for cell in row]
    said = [block.text for section in sections for block in section.blocks if isinstance(block, Missing)] + cells
    if message is not None:
        assert any(message in text for text in said), said


def test_no_character_and_no_number_of_a_run_makes_a_report_fail(tmp_path: Path) -> None:
    """Control characters are no XML, halves of surrogates no UTF-8, and sums of the largest numbers no numbers."""
    name = "en/web/\x00\x1b[31m\ud800"
    rows = [run_folders.validation_row(step, f"{name}@holdout", 2.0) for step in (40, 41)]
    keys = ("lm_loss", "grad_norm", "tokens_per_second", "productive_seconds", "step_seconds")
    rows.append(run_folders.train_row(42, **dict.fromkeys(keys, 1.7e308)))
    rows.append(run_folders.train_row(41, **dict.fromkeys(keys, 9.9e99)))
    rows[-1]["samples_by_source"] = {name: 9.9e99, "zh/web/law": 9.9e99}
    rows.append(
        {"kind": "guard", "iteration": 41, "set": name, "consumed_tokens": 9.9e99, "worse": [name], "notes": [name],
         "change": -9.9e99, "rise": 9.9e99, "probe_accuracy": 9.9e99}
    )  # fmt: skip
    run = run_folders.write(tmp_path / "run", extra=rows)
    (run / "checkpoints/iter_0000010").mkdir(parents=True)
    parent = {"schema_version": 1, "files": {}, "parent": "a\0b", "parent_lineage_hash": "c"}
    (run / "checkpoints/iter_0000010/manifest.json").write_text(json.dumps(parent))
    result = run_folders.evaluation(suite={"name": name}, model={"label": name})
    result["benchmarks"][0]["name"] = name.rstrip("\ud800")  # which `syne eval` itself cannot write
    (tmp_path / "results.json").write_text(json.dumps(result))
    for is_markdown, file in ((False, "a.html"), (True, "my report.md")):
        options = ReportOptions(
            runs=(run,), out=tmp_path / file, is_markdown=is_markdown, evaluations=(tmp_path / "results.json",)
        )
        text = write_report(options).read_text(encoding="utf-8")
        assert "en/web/\ufffd\ufffd" in text.replace("\\", "") and "\x1b" not in text and "\x00" not in text
    assert "](my%20report_figures/01_training_loss.svg)" in text
    for figure in (tmp_path / "my report_figures").iterdir():
        ElementTree.parse(figure)


def test_an_empty_folder_gives_a_report_that_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    report = make_report(ReportOptions(runs=(tmp_path / "run",), out=tmp_path / "x.html"))
    missing = [block.text for section in report.sections for block in section.blocks if isinstance(block, Missing)]
    for name in ("metrics.jsonl", "schedule.json", "run_config.yaml", "manifest.json", "attempts.json", "checkpoints"):
        assert any(str(tmp_path / "run" / name) in text for text in missing), name
    assert titles(report) == []


def test_without_a_schedule_the_curves_stand_and_without_metrics_the_plan_does(whole: Path, tmp_path: Path) -> None:
    no_schedule, no_metrics = tmp_path / "a", tmp_path / "b"
    shutil.copytree(whole, no_schedule)
    shutil.copytree(whole, no_metrics)
    (no_schedule / "schedule.json").unlink()
    (no_metrics / "metrics.jsonl").unlink()
    run = read_run(no_schedule)
    assert titles(training([run]))[0] == "Training loss"
    assert titles(reads([run])) == ["Mixture by language", "Mixture by topic"]
    assert titles(speed([run]))[-1] == "Time budget"
    assert titles(reads([read_run(no_metrics)])) == ["Mixture by language", "Mixture by topic"]
    assert titles(training([read_run(no_metrics)])) == []
    (no_schedule / "run_config.yaml").unlink()  # then nobody knows how long a sample is
    alone = read_run(no_schedule)
    assert (alone.seq_length, alone.tokens_before, alone.tokens_at_sample(8)) == (None, 0.0, None)
    assert titles(reads([alone])) == ["Mixture by language", "Mixture by topic"]


def test_a_folder_that_is_none_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        assert main(["report", str(tmp_path / name), "--out", str(tmp_path / "x.html")]) == 3
        assert (
            capsys.readouterr().err == f"error: {tmp_path / name}: no such folder; name the folder of a run (run.dir)\n"
        )
    assert main(["report", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert main(["report", str(tmp_path), "--steps", "1:2"]) == 2
    assert main(["report", str(tmp_path), "--samples", "1", "--steps", "2:1"]) == 2
    assert not (tmp_path / "x.html").exists()
