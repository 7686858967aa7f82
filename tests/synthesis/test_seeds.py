"""Seeds: where sentences end, which may open a snippet, what is counted, and that nothing depends on workers."""

import json
import shutil
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_mixers.errors import ConfigError
from tests.rows import read, write
from tools.data import readers
from tools.data.documents import DocumentWriter
from tools.synthesis import seeds
from tools.synthesis import snippets as snippet_runs
from tools.synthesis.options import SeedOptions
from tools.synthesis.seed_rules import read_seed_rules
from tools.synthesis.seeds import write_seeds
from tools.synthesis.snippets import load_punkt, snippets, train_punkt

EN = [
    f"This was said before. The orbit of planet number {i} is an ellipse, as Dr. Kepler found with his telescope. "
    + f"A star near galaxy {i} pulls on every planet, and its light is seen by astronomers in year {i} of the survey. "
    + " ".join(f"Comet {i * 100 + k} crossed the orbit of a moon on night {k}." for k in range(8))
    for i in range(6)
]
ZH = [
    f"因此如上所述。第{i}号行星绕恒星运行，轨道是椭圆，这是天文学家用望远镜观测到的结果！"
    + "".join(
        f"编号为{i * 100 + k}的彗星在第{k}个夜晚穿过了小行星带附近的轨道；它离太阳系的中心很远。" for k in range(6)
    )
    for i in range(6)
]


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    rows = [{"id": f"p{i}", "text": text} for i, text in enumerate([*EN, *ZH])]
    rows += [{"id": "twice", "text": EN[0]}, {"id": "none", "text": "Nothing in particular. " * 50}]
    rows += [{"id": "fr", "text": "Bonjour. " * 200, "language": "fr"}]
    return write(tmp_path / "pages.jsonl", rows)


def test_snippets_are_whole_sentences_with_their_origin_and_all_is_counted(pages: Path, tmp_path: Path) -> None:
    options = SeedOptions(inputs=(str(pages),), out=tmp_path / "seeds.jsonl.zst", near_duplicates=False)
    report = write_seeds(options)
    seeds = read(options.out)
    assert report["pages"] == {"read": 15, "no_discipline": 1, "other_language": 1, "with_snippets": 13}
    assert report["snippets"] == {"cut": 13, "beyond_per_page": 0, "exact_duplicate": 1, "near_duplicate": 0,
                                  "over_quota": 0, "seeds": 12}  # fmt: skip
    assert [seed["seed_id"] for seed in seeds] == [f"p{i}" for i in range(12)]
    texts = dict(zip((f"p{i}" for i in range(12)), [*EN, *ZH], strict=True))
    for seed in seeds:
        assert seed["discipline"] == "astronomy"
        assert seed["text"] in texts[seed["seed_id"]]
        assert seed["text"].startswith(("The orbit", "第")) and seed["text"][-1] in ".。"
    write_seeds(replace(options, out=tmp_path / "more.jsonl.zst", workers=2))
    assert (tmp_path / "more.jsonl.zst").read_bytes() == options.out.read_bytes()


def test_killed_while_it_removes_its_work_and_run_again_gives_the_same_seeds(
    pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path) -> None:
        if (folder / "candidates").is_dir():
            remove(folder / "candidates")
            raise KeyboardInterrupt
        remove(folder)

    options = SeedOptions(inputs=(str(pages),), out=tmp_path / "seeds.jsonl.zst", near_duplicates=False)
    remove = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_seeds(options)
    seeds = options.out.read_bytes()
    write_seeds(options)
    assert options.out.read_bytes() == seeds
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [pages.name, options.out.name, f"{options.out.name}.report.json"]
    )


def test_what_a_version_that_cut_the_pages_otherwise_has_begun_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its snippets bear the numbers of other tasks, and would be read beside the new ones."""
    pages = tmp_path / "pages.parquet"
    rows = {"id": [f"p{number}" for number in range(6)], "text": EN}
    pyarrow.parquet.write_table(pyarrow.table(rows), pages, row_group_size=1)
    options = SeedOptions(inputs=(str(pages),), out=tmp_path / "seeds.jsonl.zst", near_duplicates=False)

    def interrupted(options: SeedOptions, deduped: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as former:
        former.setattr(readers, "_row_groups", lambda path, chunk_bytes: [(group, group + 1) for group in range(6)])
        former.setattr(seeds, "_choose", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_seeds(options)
    assert write_seeds(options)["snippets"]["seeds"] == 6


def test_a_quota_is_filled_by_the_seed_and_a_smaller_one_is_part_of_a_larger(pages: Path, tmp_path: Path) -> None:
    def chosen(quota: int, seed: int) -> set[str]:
        out = tmp_path / f"{quota}-{seed}.jsonl"
        options = SeedOptions(inputs=(str(pages),), out=out, quota=quota, seed=seed, near_duplicates=False)
        assert write_seeds(options)["seeds"] == {"en": {"astronomy": quota}, "zh": {"astronomy": quota}}
        return {json.loads(line)["seed_id"] for line in out.read_text().splitlines()}

    assert chosen(2, 1) < chosen(4, 1)
    assert len({frozenset(chosen(3, seed)) for seed in range(2, 6)}) > 1


def test_punkt_learns_an_abbreviation_of_the_corpus(tmp_path: Path) -> None:
    words = ["".join(chr(97 + int(digit)) for digit in f"{i:03}") for i in range(60)]
    text = " ".join(
        f"We saw approxm. {i} birds there, and the approxm. value is {word}." for i, word in enumerate(words)
    )
    train_punkt([text], tmp_path / "trained")
    train_punkt([], tmp_path / "empty")
    assert len(load_punkt(tmp_path / "trained", ()).tokenize(text)) == 60
    assert len(load_punkt(tmp_path / "empty", ()).tokenize(text)) > 60


def test_headings_end_a_run_and_semicolons_do_not_end_a_sentence(tmp_path: Path) -> None:
    train_punkt([], tmp_path / "punkt")
    rules = replace(read_seed_rules("zh"), window=(5, 30))
    text = "目录\n行星绕恒星运行；轨道是椭圆。\n第二节\n彗星有长长的尾巴。该尾巴很亮。"
    found = list(snippets(text, "zh", rules, load_punkt(tmp_path / "punkt", ())))
    assert found == ["行星绕恒星运行；轨道是椭圆。", "彗星有长长的尾巴。该尾巴很亮。"]


def test_a_line_without_the_end_of_a_sentence_is_not_searched_for_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """That costs the square of its length: a table of 48,000 characters in one line took a minute."""
    searched = []
    find = snippet_runs._sentences
    monkeypatch.setattr(snippet_runs, "_sentences", lambda text, *rest: searched.append(len(text)) or find(text, *rest))
    table = "中文、" * 100_000
    assert list(snippets(f"{table}\n{ZH[0]}\n{table}", "zh", read_seed_rules("zh"), None)) != []
    assert searched == [len(ZH[0])]


def test_clauses_of_one_sentence_cost_no_square() -> None:
    started = time.process_time()
    assert list(snippets("中文；" * 20_000 + "好。", "zh", read_seed_rules("zh"), None)) == []  # longer than a window
    assert time.process_time() - started < 5  # milliseconds; it took half a minute


def test_keys_of_snippets_take_eight_bytes_each(tmp_path: Path) -> None:
    rows = [{"text": "x", "seed_hash": f"{n:032x}", "language": "en", "discipline": "physics"} for n in range(100_000)]
    (tmp_path / "in").mkdir()
    with DocumentWriter(tmp_path / "in" / "a.jsonl.zst") as file:
        for row in rows:
            file.write(row)
    options = SeedOptions(inputs=("x",), out=tmp_path / "out.jsonl", quota=10)
    del rows
    tracemalloc.start()
    chosen, over_quota = seeds._choose(options, tmp_path / "in")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (chosen.total(), over_quota) == (10, 99_990)
    assert peak < 4_000_000  # 0.8 MB, and as much while it grows or is sorted; integers of Python take 4


def test_a_domain_and_a_clear_topic_win_and_a_double_topic_is_settled_by_keywords() -> None:
    rules = read_seed_rules("en")
    text = "The theorem on prime integers and polynomials has a proof."

    def pick(topic: str | None, url: str | None) -> str | None:
        found = rules.pick(text, num_units=10, topic=topic, url=url)
        return found and found.discipline

    assert pick(None, "https://www.mayoclinic.org/x") == "medicine"
    assert pick(None, "https://notmayoclinic.org/x") == "mathematics"
    assert pick("medicine_and_health", None) == "medicine"
    assert pick("mathematics_and_physics", None) == "mathematics"
    assert pick("biology_and_chemistry", None) is None


def test_unknown_values_are_refused(pages: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--discipline alchemy"):
        write_seeds(SeedOptions(inputs=(str(pages),), out=tmp_path / "s.jsonl", discipline="alchemy"))
    (tmp_path / "zh.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"zh\.json"):
        write_seeds(SeedOptions(inputs=(str(pages),), out=tmp_path / "s.jsonl", rules=tmp_path))
