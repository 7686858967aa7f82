"""`syne data clean`: nothing is lost, reasons are right, the first of duplicates stays, a kill changes nothing."""

import json
import os
import random
import shutil
import string
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from data_mixers.errors import ConfigError, DataError
from tests import killed
from tests.rows import contents, read, write
from tools.cli import main
from tools.data import readers
from tools.data.calls import Call
from tools.data.clean import CleanOptions, clean
from tools.data.readers import find_inputs
from tools.data.rules import DEFAULT_RULES, load_rules
from tools.data.stage import only_one
from tools.data.units import units_of

HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]


def _english(seed: int, words: int = 120) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 8))) for _ in range(words))


def _chinese(seed: int, characters: int = 120) -> str:
    return "".join(random.Random(seed).choices(HAN, k=characters))


def _clean(tmp_path: Path, texts: list[str], **options: Any) -> dict[str, str]:
    """id -> reason of what was dropped."""
    write(tmp_path / "in/a.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(texts)])
    clean(CleanOptions(inputs=(str(tmp_path / "in/*"),), out=tmp_path / "out", **options))
    return {row["id"]: row["reason"] for row in read(tmp_path / "out/dropped")}


def test_each_rule_drops_what_it_is_about_and_nothing_else(tmp_path: Path) -> None:
    lines = [_english(seed, 12) for seed in range(10)]
    long_line = _english(50, 60)
    texts = {
        "kept": _english(1),
        "kept_zh": _chinese(1),
        "too_short": _english(2, 49),
        "long_words": " ".join(word * 4 for word in _english(3, 60).split()),
        "duplicate_lines": "\n".join([*lines, *["short"] * 6]),  # 5 of 16 lines
        "duplicate_line_characters": "\n".join([*lines, long_line, long_line]),
        "duplicate_paragraphs": "\n\n".join(["p\nq", "p\nq", "p\nr", "p\nr", _english(4)]),
        "top_2_gram": " ".join(f"{word} spam ham" for word in _english(5, 60).split()),
        "duplicate_5_grams": f"{_english(6, 60)} {_english(7, 40)} {_english(7, 40)}",
        "duplicate_8_grams_han": _chinese(8) + _chinese(9, 40) + _chinese(9, 40),
    }
    reasons = _clean(tmp_path, list(texts.values()))
    expected = {str(n): name for n, name in enumerate(texts) if not name.startswith("kept")}
    expected["6"] = "duplicate_lines"  # paragraphs that repeat repeat their lines first
    assert reasons == expected


def test_a_dropped_document_is_whole_with_reason_value_and_limit(tmp_path: Path) -> None:
    row = {"text": "much too short", "reason": "mine", "nested": {"a": [1, {"b": None}]}, "id": 7}
    write(tmp_path / "in/a.jsonl", [row])
    clean(CleanOptions(inputs=(str(tmp_path / "in/a.jsonl"),), out=tmp_path / "out"))
    marks = {"reason": "too_short", "value": 3, "limit": 50, "matched": None}
    assert read(tmp_path / "out/dropped") == [row | marks | {"id": "7", "own": {"reason": "mine"}}]


def test_of_equal_texts_the_first_in_input_order_stays(tmp_path: Path) -> None:
    text = _english(1)
    write(tmp_path / "in/b.jsonl", [{"text": _english(2)}, {"text": text.replace(" ", "\n", 30)}])
    write(tmp_path / "in/a.jsonl", [{"text": _english(3)}, {"text": text}, {"text": text}])
    for near in (True, False):
        out = tmp_path / f"out-{near}"
        clean(CleanOptions(inputs=(str(tmp_path / "in/*"),), out=out, near_duplicates=near))
        assert [row["id"] for row in read(out)] == ["a.jsonl:0", f"a.jsonl:{len(_english(3)) + 13}", "b.jsonl:0"]
        dropped = read(out / "dropped")
        assert {row["reason"] for row in dropped} == {"exact_duplicate"}
        assert {row["matched"] for row in dropped} == {f"{tmp_path}/in/a.jsonl:{len(_english(3)) + 13}"}


def _jaccard(a: str, b: str) -> float:
    grams = [{tuple(units[i : i + 5]) for i in range(len(units) - 4)} for units in (units_of(a), units_of(b))]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


@pytest.mark.parametrize("make", [_english, _chinese])
def test_near_duplicates_go_and_their_similarity_is_told(tmp_path: Path, make: Any) -> None:
    joint = " " if make is _english else ""
    texts = [make(seed, 400) for seed in range(30)]
    near = [text + joint + make(1000 + n, 12) for n, text in enumerate(texts)]  # 12 more units: Jaccard 0.96
    far = [text + joint + make(2000 + n, 900) for n, text in enumerate(texts)]  # Jaccard 0.3
    reasons = _clean(tmp_path, texts + near + far)
    assert reasons == {str(30 + n): "near_duplicate" for n in range(30)}
    for row in read(tmp_path / "out/dropped"):
        n = int(row["id"]) - 30
        assert abs(row["value"] - _jaccard(texts[n], near[n])) < 0.12  # 2.4 standard errors of 112 hashes at most
    assert _jaccard(texts[0], far[0]) == pytest.approx(396 / 1296, abs=0.01)


def test_a_chain_of_near_duplicates_keeps_its_first_whatever_the_order_of_files(tmp_path: Path) -> None:
    words = _english(1, 2000).split()
    chain = [" ".join(words[start : start + 1000]) for start in range(0, 200, 20)]  # neighbours 0.96, ends 0.7
    order = [4, 1, 9, 0, 7, 3, 8, 2, 6, 5]
    reasons = _clean(tmp_path, [chain[place] for place in order])
    assert reasons == {str(n): "near_duplicate" for n in range(1, 10)}


def test_documents_that_the_rules_drop_do_not_make_others_duplicates(tmp_path: Path) -> None:
    german = "Der Hund läuft durch den Garten und sucht seinen Ball, während die Katze auf dem Dach schläft. " * 1
    text = german + _english(1, 60)
    assert _clean(tmp_path, [text, text], languages=("fr",)) == {"0": "language", "1": "language"}


def _sources(folder: Path) -> None:
    rng = random.Random(0)
    texts = [_english(seed) if seed % 2 else _chinese(seed) for seed in range(60)]
    for number in range(6):
        rows: list[Any] = [{"text": rng.choice(texts), "n": n} for n in range(30)]
        rows += ['{"text": "cut', {"other": 1}, "", {"text": "short"}]
        write(folder / f"s{number % 2}" / f"{number}.jsonl", rows)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("clean")
    _sources(folder / "in")
    pattern = str(folder / "in/*/*")
    clean(CleanOptions(inputs=(pattern,), out=folder / "out", max_bad_share=0.1))
    return pattern, contents(folder / "out")


def test_everything_read_is_kept_dropped_or_quarantined(undisturbed: tuple[str, dict[str, bytes]]) -> None:
    report = json.loads(undisturbed[1]["report.json"])
    assert report["documents"]["read"] == 6 * 33
    assert report["documents"]["quarantined"] == 12
    assert sum(report["documents"].values()) == 2 * 6 * 33
    for source in ("s0", "s1"):
        found = report["sources"][source]
        assert found["kept"] + sum(found["dropped"].values()) + found["quarantined"] == 3 * 33
        assert found["dropped"]["too_short"] == 3
    quarantine = [json.loads(line) for line in undisturbed[1]["quarantine.jsonl"].splitlines()]
    assert [(line["line"], line["reason"].split(":")[0]) for line in quarantine[:2]] == [
        (31, "broken JSON"),
        (32, "missing key text"),
    ]
    assert report["examples"]["exact_duplicate"][0]["matched"].count(".jsonl:") == 1


@pytest.mark.usefixtures("like_nfs")
def test_nothing_is_open_in_the_work_that_is_removed(tmp_path: Path, undisturbed: tuple[str, dict[str, bytes]]) -> None:
    clean(CleanOptions(inputs=(undisturbed[0],), out=tmp_path / "out", max_bad_share=0.1))
    assert contents(tmp_path / "out") == undisturbed[1]


def test_workers_do_not_change_a_byte(tmp_path: Path, undisturbed: tuple[str, dict[str, bytes]]) -> None:
    clean(CleanOptions(inputs=(undisturbed[0],), out=tmp_path / "out", max_bad_share=0.1, workers=2))
    assert contents(tmp_path / "out") == undisturbed[1]


@pytest.mark.parametrize(
    "moment", ["examine/0000002.json", "exact/0000000.json", "bands/0000005.json", "write/0000003.json"]
)
def test_killed_and_run_again_gives_the_same_bytes(
    tmp_path: Path, undisturbed: tuple[str, dict[str, bytes]], moment: str
) -> None:
    out = tmp_path / "out"
    killed.behind_file(moment, "data", "clean", "--input", undisturbed[0], "--out", out, "--max-bad-share", "0.1")
    with pytest.raises(ConfigError, match="out is unfinished" if moment.startswith("write") else "matches no file"):
        find_inputs([str(out)])
    (out / "dropped").mkdir(exist_ok=True)
    for folder in (out, out / "dropped"):
        (folder / ".0000000-s0.jsonl.zst.another-node.7.tmp").touch()  # of an array's element that died there
    clean(CleanOptions(inputs=(undisturbed[0],), out=out, max_bad_share=0.1))
    assert contents(out) == undisturbed[1]


@pytest.mark.parametrize("report_only", [False, True])
def test_killed_while_it_removes_its_work_and_run_again_gives_the_same_bytes(
    tmp_path: Path, undisturbed: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, report_only: bool
) -> None:
    def interrupted(folder: Path | str, **others: Any) -> None:
        if not str(folder).endswith(".work.removed"):  # what a task is done with
            return remove(folder, **others)
        remove(Path(folder) / "examined")
        raise KeyboardInterrupt

    options = CleanOptions(inputs=(undisturbed[0],), out=tmp_path / "out", max_bad_share=0.1)
    remove = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            clean(replace(options, report_only=report_only))
    clean(options)
    assert contents(options.out) == undisturbed[1]


def test_a_finished_call_is_not_done_again_and_another_one_is_refused(tmp_path: Path) -> None:
    _sources(tmp_path / "in")
    options = CleanOptions(inputs=(str(tmp_path / "in/*/*"),), out=tmp_path / "out", max_bad_share=0.1)
    report = clean(options)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.zst")}
    assert clean(options).as_json() == report.as_json()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.zst")} == times
    with pytest.raises(ConfigError, match="another call"):
        clean(CleanOptions(inputs=options.inputs, out=options.out, max_bad_share=0.1, near_duplicates=False))
    with only_one(tmp_path / "new"), pytest.raises(ConfigError, match="another call is writing"):
        clean(CleanOptions(inputs=options.inputs, out=tmp_path / "new"))


def test_a_call_begun_with_other_pieces_of_the_input_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a version that cut parquet into single row groups: its files bear the numbers of other tasks, and stay."""
    pq.write_table(pa.table({"text": [_english(n) for n in range(4)]}), tmp_path / "a.parquet", row_group_size=1)
    options = CleanOptions(inputs=(str(tmp_path / "a.parquet"),), out=tmp_path / "out")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as former:
        former.setattr(readers, "_row_groups", lambda path, chunk_bytes: [(group, group + 1) for group in range(4)])
        former.setattr(Call, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            clean(options)
    with pytest.raises(ConfigError, match="another version, has made of it; choose another --out, or remove"):
        clean(options)
    shutil.rmtree(options.out)
    clean(options)
    assert len(read(options.out)) == 4


def test_report_only_counts_the_same_and_writes_no_document(
    tmp_path: Path, undisturbed: tuple[str, dict[str, bytes]]
) -> None:
    out = tmp_path / "out"
    options = {"inputs": (undisturbed[0],), "out": out, "max_bad_share": 0.1}
    clean(CleanOptions(**options, report_only=True))
    assert sorted(contents(out)) == ["quarantine.jsonl", "report.json"]
    expected = json.loads(undisturbed[1]["report.json"])
    found = json.loads((out / "report.json").read_text())
    assert (found["documents"], found["sources"]) == (expected["documents"], expected["sources"])
    writing = ("data", "clean", "--input", undisturbed[0], "--out", out, "--max-bad-share", "0.1")
    killed.behind_file("bands/0000005.json", *writing)
    clean(CleanOptions(**options, report_only=True))
    assert (out / ".work/bands/0000005.json").exists()  # is gone on with
    clean(CleanOptions(**options))  # and then for good, into the same folder
    assert contents(out) == undisturbed[1]


def test_too_many_bad_lines_stop_the_call(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jsonl", [{"text": _english(1)}, "", "7", *["{"] * 10])
    message = (
        r"11 of 12 lines are no documents, more than 1\.0%: broken JSON \(10\), not a JSON object \(1\)\. First: "
        r".*/in/a\.jsonl line 3: not a JSON object; .*a\.jsonl line 4: broken JSON.*; .*line 5: .*/quarantine\.jsonl"
    )
    with pytest.raises(DataError, match=message):
        clean(CleanOptions(inputs=(str(tmp_path / "in/*"),), out=tmp_path / "out"))
    lines = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == list(range(3, 14))
    # One more good line makes no difference to ten bad ones; the share counts only above --max-bad-lines.
    options = {"inputs": (str(tmp_path / "in/*"),), "out": tmp_path / "allowed"}
    assert clean(CleanOptions(**options, max_bad_share=11 / 12)).num_quarantined == 11  # equality is accepted
    assert clean(CleanOptions(**options | {"out": tmp_path / "counted"}, max_bad_lines=11)).num_quarantined == 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 3}, "n belongs to"),
        ({"measure": "num_unit"}, "measure"),
        ({"min": None}, "needs min or max"),
        ({"name": "language"}, "name language is taken"),
        ({"minimum": 3}, "minimum"),
    ],
)
def test_a_wrong_rule_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = yaml.safe_load(DEFAULT_RULES.read_text())
    content["rules"][0] |= change
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
        load_rules(tmp_path / "rules.yaml")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.dictionaries(st.sampled_from(["text", "id", "reason", "own", "x"]), JSON, max_size=5)
TEXT_ROWS = st.builds(lambda row, text: row | {"text": text}, ROWS, st.text(max_size=60))
DEEP = st.integers(190, 1200).map(lambda depth: '{"text": "deep", "x": ' + "[" * depth + "]" * depth + "}")
LINES = st.lists(
    ROWS | TEXT_ROWS | DEEP | st.binary(max_size=20).map(lambda raw: raw.decode("latin-1")), min_size=5, max_size=40
)


# Without shrinking: each example is a whole call with its syncs to disk.
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(LINES)
def test_any_lines_are_kept_dropped_or_quarantined(tmp_path_factory: pytest.TempPathFactory, lines: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = write(folder / "in/a.jsonl", [{"text": _english(1)}, *lines])
    num_lines = sum(1 for line in path.read_bytes().split(b"\n") if line and not line.isspace())
    clean(CleanOptions(inputs=(str(path),), out=folder / "out", max_bad_share=1.0, near_duplicates=False))
    kept, dropped = read(folder / "out"), read(folder / "out/dropped")
    quarantine = (folder / "out/quarantine.jsonl").read_text().splitlines()
    assert len(kept) + len(dropped) + len(quarantine) == num_lines
    assert kept[0]["text"] == _english(1)


def test_more_bad_lines_are_allowed_in_the_folder_that_was_refused(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jsonl", ["{broken"] * 3 + [{"text": _english(n)} for n in range(3)])
    inputs, out = (str(tmp_path / "in/*"),), tmp_path / "out"
    with pytest.raises(DataError, match="allow more with --max-bad-share"):
        clean(CleanOptions(inputs=inputs, out=out, max_bad_lines=0))
    report = clean(CleanOptions(inputs=inputs, out=out, max_bad_lines=0, max_bad_share=0.5))
    assert (report.num_kept, report.num_quarantined) == (3, 3)


def test_a_copy_of_a_near_duplicate_names_the_document_that_stays(tmp_path: Path) -> None:
    first = _english(1, 400)
    near = first.replace(first.split()[200], "another", 1)
    assert _clean(tmp_path, [first, near, near]) == {"1": "near_duplicate", "2": "exact_duplicate"}
    matched = [row["matched"] for row in read(tmp_path / "out/dropped")]
    assert matched == [f"{tmp_path}/in/a.jsonl:0"] * 2


def test_composed_and_decomposed_letters_are_the_same_text(tmp_path: Path) -> None:
    text = " ".join(f"caf\u00e9{word}" for word in _english(1).split())
    texts = [text, unicodedata.normalize("NFD", text)]
    assert texts[0] != texts[1]
    assert _clean(tmp_path, texts, near_duplicates=False) == {"1": "exact_duplicate"}


def test_a_folder_inside_the_input_is_no_input_when_the_call_goes_on_and_when_it_is_made_again(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": _english(n), "id": str(n)} for n in range(3)])
    out = tmp_path / "cleaned"
    command = ("data", "clean", "--input", str(tmp_path), "--out", str(out))
    killed.behind_file("write/0000000.json", *command)
    assert main(command) == 0
    kept = contents(out)
    assert main(command) == 0
    assert contents(out) == kept and [row["id"] for row in read(out)] == ["0", "1", "2"]
    with pytest.raises(ConfigError, match=rf"--input {out}/\*\.zst lies inside --out {out}; choose another"):
        clean(CleanOptions(inputs=(f"{out}/*.zst",), out=out))


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    page = write(tmp_path / "in/a.jsonl", [{"text": _english(1)}])
    other = write(tmp_path / "other/b.jsonl", [{"text": _english(2)}])
    with pytest.raises(ConfigError, match=r"holds other files \(b.jsonl\)"):
        clean(CleanOptions(inputs=(str(page),), out=other.parent))
    assert other.is_file()


def test_bad_rows_are_numbered_in_their_file_not_in_their_piece(tmp_path: Path) -> None:
    rows = [_english(n) for n in range(7)]
    rows[1] = rows[5] = ""
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", row_group_size=3)
    clean(CleanOptions(inputs=(str(tmp_path / "a.parquet"),), out=tmp_path / "out"))
    lines = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [2, 6]


def test_a_folder_that_is_not_utf_8_and_would_name_the_source_is_refused_before_any_document_is_read(
    tmp_path: Path,
) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xcd\xf8")  # of GBK
    Path(folder, "web").mkdir(parents=True)
    for name, of in (("direct.jsonl", folder), ("below.jsonl", f"{folder}/web")):
        Path(of, "pages.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
        (tmp_path / name).symlink_to(f"{of}/pages.jsonl")
    with pytest.raises(ConfigError, match=r"direct\.jsonl: the folder b'\\xcd\\xf8': this name is not UTF-8.*convmv"):
        clean(CleanOptions(inputs=(str(tmp_path / "direct.jsonl"),), out=tmp_path / "out"))
    clean(CleanOptions(inputs=(str(tmp_path / "below.jsonl"),), out=tmp_path / "out"))  # whose source is web
