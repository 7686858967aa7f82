"""`syne synth audit` and `format`: a wrong rate corrected for a judge that errs, and text that is refused above it."""

import csv
import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_mixers.errors import ConfigError, DataError
from tests import killed
from tests.openai_server import served
from tests.rows import read, write
from tests.synthesis.test_generate import HERE
from tests.synthesis.test_pace import interruptible
from tests.tools import corpus
from tools.cli import main
from tools.data.preprocess import PreprocessOptions, preprocess
from tools.synthesis.audit import _calibration, _Case, audit
from tools.synthesis.format import format_pairs
from tools.synthesis.options import AuditOptions, FormatOptions
from tools.synthesis.record import QaRecord
from tools.synthesis.wrong_rate import Calibration, Count

NUM = 300
SHARE_WRONG = 0.2


def pairs(start: int, count: int, *, share_wrong: float, marked: bool, discipline: str = "physics") -> Iterator[Any]:
    """Sums, the first ones wrong; `marked` ones say so."""
    for number in range(start, start + count):
        has_error = number - start < share_wrong * count
        result = 2 * number + 7 + has_error
        pair = {
            "id": f"{discipline} {number}",
            "discipline": discipline,
            "language": "zh" if number % 2 else "en",
            "question": f"What is {number} plus {number + 7}, and how does one find it?",
            "answer": f"The sum of {number} and {number + 7} is {result}.",
            "generator": "test",
            "seed_id": f"page {number}",
        }
        yield pair | ({"corruption": {}} if has_error and marked else {})


def is_wrong(row: dict[str, Any]) -> bool:
    """Whether the answer's third number is not the sum of the two before it."""
    numbers = [int(word.strip(".")) for word in row["answer"].split() if word.strip(".").isdigit()]
    return numbers[0] + numbers[1] != numbers[2]


@contextmanager
def judge(folder: Path, *, sensitivity: float, specificity: float) -> Iterator[str]:
    truth = {}
    for path in folder.glob("*.jsonl"):
        truth |= {row["answer"]: is_wrong(row) for row in read(path)}
    (folder / "truth.json").write_text(json.dumps(truth))
    script = Path(__file__).with_name("judge_stub.py")
    with served(script, folder / "truth.json", sensitivity, specificity, folder / "asked.log") as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(
        tmp_path / "pairs.jsonl",
        [
            *pairs(1000, NUM, share_wrong=SHARE_WRONG, marked=False),
            *pairs(5000, 40, share_wrong=0.0, marked=False, discipline="biology"),
        ],
    )
    write(tmp_path / "known.jsonl", pairs(9000, 400, share_wrong=0.5, marked=True))
    return tmp_path


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of the judge")


def options(folder: Path, url: str | None, **more: Any) -> AuditOptions:
    known = {"model": "judge", "calibration": (str(folder / "known.jsonl"),)} if url else {}
    given = {"inputs": (str(folder / "pairs.jsonl"),), "out": folder / "audit", "url": url, "sample": NUM, "seed": 1}
    return AuditOptions(**(given | known | more))  # type: ignore[arg-type]


def test_the_rate_is_corrected_for_a_judge_that_errs(folder: Path) -> None:
    with judge(folder, sensitivity=0.8, specificity=0.85) as url:
        report = audit(options(folder, url, parallel=16))
    physics, biology = report["disciplines"]["physics"], report["disciplines"]["biology"]
    assert (physics["pairs"], physics["sample"], biology["sample"]) == (NUM, NUM, 40)
    apparent = physics["called_wrong"] / NUM
    wrong, right = (report["calibration"][key]["hits"] / 200 for key in ("found_wrong", "found_right"))
    assert abs(wrong - 0.8) < 0.1 > abs(right - 0.85)  # 3 standard errors
    assert physics["wrong_rate"]["value"] == pytest.approx((apparent + right - 1) / (wrong + right - 1), abs=1e-5)
    assert physics["wrong_rate"]["low"] < SHARE_WRONG < physics["wrong_rate"]["high"]
    assert abs(apparent - SHARE_WRONG) > 0.05  # what an uncorrected judge would have said
    assert biology["wrong_rate"]["low"] == 0.0
    assert json.loads((folder / "audit/audit.json").read_text()) == {"schema_version": 1} | report
    assert f"| physics | {NUM} | {NUM} |" in (folder / "audit/audit.md").read_text()
    verdicts = read(folder / "audit/verdicts.jsonl")
    assert len(verdicts) == len({row["key"] for row in verdicts}) == NUM + 40 + 400
    assert {row["verdict"] for row in verdicts} == {"right", "wrong"}


def test_a_judge_on_this_machine_is_reached_beside_a_proxy_and_a_missing_key_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nothing listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with judge(folder, sensitivity=1.0, specificity=1.0) as url:
        given = options(folder, url, sample=5, calibration_sample=5)
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(DataError, match=r"answers 401 \(set OPENAI_API_KEY"):
            audit(given)
        monkeypatch.setenv("OPENAI_API_KEY", "of the judge")
        assert audit(given)["disciplines"]["biology"]["called_wrong"] == 0


def test_a_killed_audit_asks_only_for_what_is_missing(folder: Path) -> None:
    with judge(folder, sensitivity=1.0, specificity=1.0) as url:
        command = ["synth", "audit", "--input", folder / "pairs.jsonl", "--url", url, "--model", "judge"]
        known = ["--calibration", folder / "known.jsonl", "--calibration-sample", "30", "--seed", "1"]
        out = folder / "audit"
        killed.behind_answers(40, *command, *known, "--out", out, "--sample", "60")
        verdicts = out / "verdicts.jsonl"
        kept = [json.loads(line) for line in verdicts.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        assert len(kept) == 40
        (folder / "asked.log").unlink()
        report = audit(options(folder, url, sample=60, calibration_sample=30))
    asked = Counter(json.loads(line) for line in (folder / "asked.log").read_text().splitlines())
    assert len(asked) == 60 + 40 + 60 - len(kept)
    assert report["disciplines"]["biology"]["called_wrong"] == 0
    assert report["calibration"]["found_wrong"] == {"hits": 30, "total": 30}


def test_ctrl_c_does_not_wait_for_a_busy_judge(tmp_path: Path) -> None:
    rows = [*pairs(1, 4, share_wrong=0, marked=False), *pairs(9, 4, share_wrong=0.5, marked=True)]
    path = write(tmp_path / "pairs.jsonl", [row | {"question": "FAULT always busy 1"} for row in rows])
    log = tmp_path / "log"
    with served(HERE / "faulty_model_server.py", log) as url:
        command = [sys.executable, "-m", "tools", "synth", "audit", "--url", url, "--model", "judge"]
        running = interruptible([*command, "--input", path, "--calibration", path, "--out", tmp_path / "audit"])
        while not log.exists() or len(log.read_text().splitlines()) < 8:  # all of --parallel wait
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=120)  # the judge asks for 300 s
    assert running.returncode == 130 and "Traceback" not in said, said
    assert "HTTP Request" not in said  # a line for each


def test_a_verdict_that_comes_while_the_call_ends_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(client: Any, given: Any, prompt: Any, case: Any, ended: threading.Event) -> tuple[str, str]:
        if case.key.startswith("sample"):
            raise DataError("the judge is gone")
        assert ended.wait(60)
        return "right", "late"

    monkeypatch.setattr("tools.synthesis.audit._ask", asked)
    with pytest.raises(DataError, match="the judge is gone"):
        audit(options(folder, "http://127.0.0.1:1/v1", sample=1, calibration_sample=2, parallel=16))
    assert [row["reason"] for row in read(folder / "audit/verdicts.jsonl")] == ["late"] * 4


@pytest.mark.parametrize("num_refused", [1, 5])
def test_a_pair_that_the_judge_refuses_is_unclear_and_many_end_the_call(folder: Path, num_refused: int) -> None:
    rows = [*pairs(1000, 40, share_wrong=0.0, marked=False)]
    for row in rows[:num_refused]:
        row["question"] += " TOO LONG"
    write(folder / "pairs.jsonl", rows)
    with judge(folder, sensitivity=1.0, specificity=1.0) as url:
        given = options(folder, url, sample=40, calibration_sample=4, parallel=16)
        if num_refused == 5:  # more than a tenth of 48
            with pytest.raises(DataError, match=r"refuses 5 pairs .* 400: .*maximum context"):
                audit(given)
            assert not any(row["verdict"] == "unclear" for row in read(folder / "audit/verdicts.jsonl"))
            return
        assert audit(given)["disciplines"]["physics"]["called_wrong"] == 1
        assert audit(given)["disciplines"]["physics"]["examples"][0]["verdict"] == "unclear"
    asked = (folder / "asked.log").read_text().count(json.dumps(rows[0]["answer"]))
    assert asked == 1  # not again by the second call


def test_a_judge_that_ends_in_thought_needs_more_tokens(folder: Path) -> None:
    with judge(folder, sensitivity=1.0, specificity=1.0) as url:
        given = options(folder, url, sample=2, calibration_sample=2, parallel=16, max_tokens=99)
        with pytest.raises(DataError, match="8 answers hold no verdict: raise --max-tokens, with another --out"):
            audit(given)
        with pytest.raises(ConfigError, match=r"another audit \(other pairs, judge, prompt or --max-tokens\)"):
            audit(replace(given, max_tokens=100))
        audit(replace(given, max_tokens=100, out=folder / "other"))


def test_a_larger_sample_and_a_moved_folder_ask_for_nothing_twice(folder: Path) -> None:
    with judge(folder, sensitivity=1.0, specificity=1.0) as url:
        audit(options(folder, url, sample=10, calibration_sample=10, parallel=16))
        before = {row["key"] for row in read(folder / "audit/verdicts.jsonl")}
        (folder / "asked.log").unlink()
        moved = folder / "moved.jsonl"
        (folder / "pairs.jsonl").rename(moved)
        report = audit(options(folder, url, sample=20, calibration_sample=20, inputs=(str(moved),), parallel=16))
    asked = {json.loads(line) for line in (folder / "asked.log").read_text().splitlines()}
    assert len(before) == 40 and len(asked) == 40
    assert report["disciplines"]["physics"]["sample"] == 20


def test_a_known_pair_that_comes_twice_is_refused(folder: Path) -> None:
    """As of two files that `corrupt` made of the same pairs: one verdict would count for both."""
    write(folder / "more.jsonl", pairs(9000, 400, share_wrong=0.25, marked=True))
    known = tuple(str(folder / f"{name}.jsonl") for name in ("known", "more"))
    with pytest.raises(DataError, match=r"'right physics 9\d+' occurs more than once"):
        audit(options(folder, "http://127.0.0.1:1/v1", calibration=known, calibration_sample=400))


def test_known_pairs_without_a_verdict_are_not_found_right() -> None:
    pair = QaRecord(id="1", discipline="physics", language="en", question="?", answer="!", generator="test")
    known = [_Case(f"{kind} {n}", pair) for kind in ("wrong", "right") for n in range(4)]
    said = dict.fromkeys((case.key for case in known), ("right", ""))
    said |= {"wrong 0": ("wrong", ""), "wrong 1": ("unclear", ""), "right 0": ("unclear", "")}
    # Whoever cannot be told right counts as wrong, in the calibration as in the sample.
    assert _calibration(known, said) == Calibration(Count(2, 4), Count(3, 4))


def test_a_judge_that_guesses_is_refused(folder: Path) -> None:
    rows = [*pairs(1000, 5, share_wrong=0.0, marked=False)]
    rows[0]["question"] += " TOO LONG"
    write(folder / "pairs.jsonl", rows)
    with judge(folder, sensitivity=0.5, specificity=0.5) as url, pytest.raises(DataError, match="apart; take another"):
        audit(options(folder, url, sample=5, parallel=16))
    assert "unclear" in (folder / "audit/verdicts.jsonl").read_text()  # which more --max-tokens would not cure


def test_a_person_judges_by_the_sheet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["synth", "audit", "--input", str(folder / "pairs.jsonl"), "--out", str(folder / "audit")]
    assert main([*arguments, "--sample", "30"]) == 0
    assert "--filled" in capsys.readouterr().out
    sheet, filled = folder / "audit/sheet.csv", folder / "filled.csv"
    rows = fill(sheet, filled, lambda place, row: "Right" if place % 3 or row["discipline"] == "biology" else "wrong")
    assert Counter(row["discipline"] for row in rows) == {"physics": 30, "biology": 30}
    assert main([*arguments, "--sample", "30", "--filled", str(filled)]) == 0
    report = json.loads((folder / "audit/audit.json").read_text())
    rate = report["disciplines"]["physics"]["wrong_rate"]
    assert rate["value"] == pytest.approx(10 / 30, abs=1e-5)
    assert (rate["low"], rate["high"]) == (pytest.approx(0.185, abs=0.01), pytest.approx(0.512, abs=0.01))
    assert report["judge"] == "a person"
    assert main([*arguments, "--sample", "30", "--filled", str(sheet)]) == 3  # not filled in
    assert "not right, wrong or unclear" in capsys.readouterr().err


def fill(sheet: Path, filled: Path, verdict: Callable[[int, dict[str, str]], str]) -> list[dict[str, str]]:
    """verdict(place, row) in every row, and what spreadsheet programs do to line ends and blanks; the rows before."""
    with sheet.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with filled.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for place, row in enumerate(rows):
            writer.writerow(row | {"verdict": verdict(place, row), "answer": row["answer"].replace("\n", " \r\n")})
    return rows


def test_a_sheet_filled_in_where_it_lies_is_read_and_never_overwritten(folder: Path) -> None:
    rows = [{**row, "answer": f"= {row['answer']}\nSo it is."} for row in pairs(7, 12, share_wrong=0, marked=False)]
    write(folder / "pairs.jsonl", rows)
    audit(options(folder, None, sample=10))
    sheet = folder / "audit/sheet.csv"
    fill(sheet, sheet, lambda place, row: " Wrong")
    before = sheet.read_bytes()
    audit(options(folder, None, sample=10))  # the first command again, by mistake
    assert sheet.read_bytes() == before
    report = audit(options(folder, None, sample=10, filled=sheet, judged_by="two readers"))
    assert sheet.read_bytes() == before
    assert (report["wrong_rate"]["value"], report["judge"]) == (1.0, "two readers")
    with pytest.raises(ConfigError, match="verdicts of another sample"):
        audit(options(folder, None, sample=12))
    assert sheet.read_bytes() == before


def test_verdicts_on_other_texts_of_the_same_ids_are_refused(folder: Path) -> None:
    path = folder / "pairs.jsonl"
    audit(options(folder, None, sample=10))
    fill(folder / "audit/sheet.csv", folder / "filled.csv", lambda place, row: "wrong")
    path.write_text(path.read_text().replace("The sum of", "In all"))  # made again with another wording
    with pytest.raises(DataError, match=r"the answer of .* is not what was sampled"):
        audit(options(folder, None, sample=10, filled=folder / "filled.csv"))


@pytest.fixture
def audited(folder: Path) -> tuple[Path, Path]:
    """(pairs, audit) of which 12 of 150 are wrong, by a person who looked at all."""
    path = folder / "some.jsonl"
    write(path, [*pairs(100, 120, share_wrong=0.1, marked=False), *pairs(5000, 30, share_wrong=0, marked=False)])
    audit(options(folder, None, inputs=(str(path),), out=folder / "some", sample=150))
    fill(folder / "some/sheet.csv", folder / "filled.csv", lambda place, row: "wrong" if is_wrong(row) else "right")
    report = audit(
        options(folder, None, inputs=(str(path),), out=folder / "some", sample=150, filled=folder / "filled.csv")
    )
    assert report["wrong_rate"]["value"] == pytest.approx(12 / 150)
    return path, folder / "some/audit.json"


def test_too_many_wrong_pairs_are_refused_unless_they_are_accepted(
    audited: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, report = audited
    hf = corpus.hf_folder(tmp_path / "hf")
    arguments = ["synth", "format", "--input", str(source), "--tokenizer", str(hf), "--out", str(tmp_path / "text")]
    assert main(arguments) == 2
    assert "--no-audit" in capsys.readouterr().err
    assert main([*arguments, "--audit", str(report)]) == 0
    content = json.loads(report.read_text())
    content["wrong_rate"] = {"value": 0.25, "low": 0.1, "high": 0.31}  # the upper end decides
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(content))
    assert main([*arguments, "--audit", str(bad)]) == 2
    message = capsys.readouterr().err
    assert "31.0%" in message
    assert "--accept-wrong-rate" in message
    assert main([*arguments, "--audit", str(bad), "--accept-wrong-rate", "0.35"]) == 0
    content["wrong_rate"] = {"value": 0.1, "low": 0.05, "high": 0.15}
    content["disciplines"]["physics"]["wrong_rate"]["value"] = 0.4  # one bad discipline among many
    bad.write_text(json.dumps(content))
    assert main([*arguments, "--audit", str(bad)]) == 2
    assert "physics 40.0%" in capsys.readouterr().err
    other = tmp_path / "other.jsonl"
    other.write_text(source.read_text() + source.read_text())
    again = [word if word != str(source) else str(other) for word in arguments]
    assert main([*again, "--audit", str(report)]) == 2
    assert "other files" in capsys.readouterr().err


def test_text_goes_straight_into_preprocess_and_counts_agree(audited: tuple[Path, Path], tmp_path: Path) -> None:
    source, report = audited
    hf = corpus.hf_folder(tmp_path / "hf")
    pages = write(tmp_path / "pages.jsonl", ({"id": f"page {n}", "text": f"About {n}. " * 3} for n in range(100, 220)))
    given = FormatOptions(
        inputs=(str(source),), out=tmp_path / "text", tokenizer=hf, audit=report, pages=(str(pages),), page_share=0.5
    )
    counted = format_pairs(given)
    rows = {row["id"]: row for row in read(tmp_path / "text")}
    made = {row["id"]: row for row in read(source)}
    assert rows.keys() == made.keys()
    for name, row in rows.items():
        assert row["text"].count(made[name]["question"]) == row["text"].count(made[name]["answer"]) == 1
    with_page = [row for row in rows.values() if row["text"].startswith("About")]
    assert len(with_page) == counted["disciplines"]["physics"]["with_page"]
    assert 40 <= len(with_page) <= 80  # of 120 pairs with a page, 4 standard errors
    assert len(counted["layouts"]) == 4
    assert min(counted["layouts"].values()) > 20
    zh = next(row for row in rows.values() if row["layout"] == "labelled" and row["language"] == "zh")
    assert zh["text"].endswith(f"题目：{made[zh['id']]['question']}\n\n解答：{made[zh['id']]['answer']}")
    written = preprocess(
        PreprocessOptions(
            inputs=(str(tmp_path / "text/qa.jsonl.zst"),), tokenizer=hf, out=tmp_path / "data", language="synthetic",
            source="qa", topic_key="topic", keep_documents_whole=True, seq_length=512,
        )
    )  # fmt: skip
    assert written.num_documents == written.num_records == 150
    # each document gets EOS; a window that is not full is padded, so the file can only be longer
    tokens = counted["disciplines"]["all"]["tokens"] + 150
    assert tokens <= sum(entry.num_tokens for entry in written.sources) < tokens + 512 * len(written.sources) * 3


def test_dropped_pairs_and_unknown_layouts_are_refused(audited: tuple[Path, Path], tmp_path: Path) -> None:
    source, _ = audited
    (tmp_path / "dropped").mkdir()
    (tmp_path / "dropped/a.jsonl").write_text(source.read_text())
    given = {"out": tmp_path / "text", "tokenizer": tmp_path, "audit": None}
    with pytest.raises(ConfigError, match="dropped pairs"):
        format_pairs(FormatOptions(inputs=(str(tmp_path / "dropped/a.jsonl"),), **given))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--layout nice is not in"):
        format_pairs(FormatOptions(inputs=(str(source),), layouts=("nice",), **given))  # type: ignore[arg-type]
