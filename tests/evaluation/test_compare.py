"""`syne compare`: the paper's table against itself, and results of which every number is known."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_mixers.errors import ConfigError, DataError
from tools.cli import main
from tools.evaluation.compare import NOT_COMPARABLE, compare_published, compare_results, paper_table
from tools.evaluation.results import BenchmarkResult, Item, Results, TaskResult, write_results, write_task
from tools.evaluation.statistics import interval_of
from tools.evaluation.tables import comparison_json, comparison_table

# The gains that the paper's abstract names, in points.
PUBLISHED_GAINS = {"C-Eval": 8.81, "CMMLU": 6.31, "MATH": 12.00, "SciEval Avg": 4.13}
WITHIN_NOISE = {"HumanEval", "MBPP", "SAT-Math", "SciQ", "AQUA", "ARC-E"}


def test_the_papers_table_gives_its_own_gains_and_averages() -> None:
    table = paper_table()
    assert len(table.models) == 7
    for name, gain in PUBLISHED_GAINS.items():
        assert round(table.models[table.adapted][name] - table.models[table.base][name], 2) == gain
    parts = table.benchmarks["SciEval Avg"].of
    items = [table.benchmarks[part].num_items for part in parts]
    for model, scores in table.models.items():
        assert scores.keys() == table.benchmarks.keys()
        # Parts are printed to 0.005 each, so is the average.
        average = np.average([scores[part] for part in parts], weights=items)
        assert average == pytest.approx(scores["SciEval Avg"], abs=0.0101)
        printed = 0.04 if model == "Llama-3-8B" else 0.0  # 84.51 stands there, the mean of its two scores is 84.55
        assert (scores["ARC-E"] + scores["ARC-C"]) / 2 == pytest.approx(scores["ARC"] + printed, abs=0.0101)


def test_set_sizes_give_the_printed_decimals() -> None:
    """A share of so many items, rounded: what makes a size `implied`."""
    table = paper_table()
    odd = []
    for name, entry in table.benchmarks.items():
        if entry.known_by == "public" or entry.of:
            continue
        for model, scores in table.models.items():
            right = round(scores[name] / 100 * entry.num_items)
            if abs(100 * right / entry.num_items - scores[name]) > 0.0051:
                odd.append((model, name, scores[name]))
    assert odd == [("Galactica-6.7B", "HumanEval", 7.31)]  # 12 of 164 is 7.317, printed without rounding up


def test_published_differences_inside_noise_are_marked() -> None:
    comparison = compare_published()
    noisy = {row.name for row in comparison.rows if row.changes[0].is_noise}
    assert noisy >= WITHIN_NOISE
    assert not noisy & {"C-Eval", "CMMLU", "MATH", "ASDiv", "MAWPS", "GaoKao CHE", "GaoKao BIO"}
    holm = {row.name: row.changes[0].holm_p_value for row in comparison.rows}
    assert holm["MMLU"] > 0.05 > holm["C-Eval"]  # its p of 0.013 is one of twenty
    p_values = {row.name: row.changes[0].p_value for row in comparison.rows if not row.is_sum}
    assert len(p_values) == 20  # the two averages are no tests of their own
    smaller = sum(p < p_values["MMLU"] for p in p_values.values())
    assert holm["MMLU"] == pytest.approx((20 - smaller) * p_values["MMLU"])
    marks = {line.split("  ")[0]: line.endswith("~") for line in comparison_table(comparison).splitlines()}
    assert marks["HumanEval"] and not marks["C-Eval"]


def written(folder: Path, scores: dict[str, Sequence[Sequence[float]]], **changes: Any) -> Path:
    """Results of a made-up model: benchmark to its tasks' item scores."""
    lines = []
    for name, groups in scores.items():
        entries = []
        for number, group in enumerate(groups):
            items = tuple(
                Item(
                    id=i, doc_hash=f"d{i}", prompt_hash=f"p{i}", target="t", answer="<b>a</b>", score=score, metrics={}
                )
                for i, score in enumerate(group)
            )
            task = TaskResult(task=f"{name}_{number}", metric="acc", num_fewshot=5, seconds=1.0, items=items)
            write_task(folder, task, "mark")
            entries.append(
                {"task": task.task, "score": task.score, "num_items": len(items), "file": f"tasks/{task.task}.json"}
            )
        score, interval, method = interval_of(groups, "micro")
        lines.append(
            BenchmarkResult(
                name=name, group="g", language="en", status="done", reason="", shots=5, metric="acc", average="micro",
                chance=0.25, published=name, score=score, num_items=sum(map(len, groups)), interval=interval,
                method=method, tasks=tuple(entries),
            )
        )  # fmt: skip
    results = Results(
        folder=folder, suite={"name": "s", "sha256": "0"}, model={"path": str(folder), "label": folder.name},
        harness={"lm_eval": "0.4.13", "dtype": "float32", "device": "cpu"}, settings={"limit": None, "seed": 1234},
        started="", updated="", seconds=1.0, complete=True, benchmarks=tuple(lines),
    )  # fmt: skip
    write_results(replace(results, **changes))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return written(tmp_path / "base", {"MMLU": [[1.0] * 50 + [0.0] * 50, [1.0] * 10], "MATH": [[1.0, 0.0] * 20]})


def test_two_models_are_compared_item_by_item(base: Path, tmp_path: Path) -> None:
    other = written(
        tmp_path / "other", {"MMLU": [[1.0] * 70 + [0.0] * 30, [1.0] * 10], "MATH": [[1.0, 0.0] * 19 + [0.0, 0.0]]}
    )
    comparison = compare_results([base, other])
    mmlu, math = comparison.rows
    (change,) = mmlu.changes
    assert (mmlu.num_items, mmlu.base_score, change.score) == (110, 60 / 110, 80 / 110)
    assert (change.only_base, change.only_model) == (0, 20)
    assert change.p_value == pytest.approx(2 / 2**20)
    assert change.holm_p_value == pytest.approx(4 / 2**20)
    assert not change.is_noise
    assert math.changes[0].is_noise and math.changes[0].p_value == 1.0  # one item of forty
    text = comparison_table(comparison)
    assert [line.endswith("~") for line in text.splitlines() if line.startswith("MATH")] == [True]
    assert json.loads(json.dumps(comparison_json(comparison)))["rows"][1]["changes"][0]["is_noise"] is True


def test_a_measured_score_beside_a_published_one_is_warned_about(base: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other", {"MMLU": [[1.0] * 100, [1.0] * 10], "MATH": [[1.0, 0.0] * 20]})
    both = compare_results([base, other], shows_published=True)
    assert NOT_COMPARABLE in both.cautions
    assert both.published is not None and both.published["Llama-3-SynE"]["MATH"] == pytest.approx(0.282)
    assert "published: Llama-3-SynE" in comparison_table(both)
    alone = compare_results([other], shows_published=True)
    assert all(not row.changes for row in alone.rows)  # no difference to a published score
    assert any("without a measured base" in caution for caution in alone.cautions)
    with pytest.raises(ConfigError, match="give the base's results first"):
        compare_results([other])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": {"name": "s", "sha256": "1"}}, "different suite files"),
        ({"settings": {"limit": 10, "seed": 1234}}, "limit 10 and None"),
        ({"harness": {"lm_eval": "0.4.9", "dtype": "float32"}}, "lm_eval 0.4.9 and 0.4.13"),
        ({"harness": {"lm_eval": "0.4.13", "dtype": "bfloat16"}}, "dtype bfloat16 and float32"),
    ],
)
def test_what_was_not_measured_alike_is_not_compared(
    base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    other = written(tmp_path / "other", {"MATH": [[1.0, 0.0] * 20]}, **changes)
    with pytest.raises(ConfigError, match=message):
        compare_results([base, other])


def test_prompts_that_were_cut_are_a_caution_of_the_model_whose_they_were(tmp_path: Path) -> None:
    base, other = (
        written(tmp_path / name, {"MMLU": [[1.0] * 100, [1.0] * 10]}, harness={"max_length": 2048})
        for name in ("base", "other")
    )
    content = json.loads((other / "results.json").read_text())
    for task, cut in zip(content["benchmarks"][0]["tasks"], (7, None), strict=True):
        task["num_truncated"] = cut  # None: of before it was counted
    (other / "results.json").write_text(json.dumps(content))
    assert compare_results([base, other]).cautions == (
        "other: 7 of 110 prompts of MMLU do not fit with their answers in the model's context of 2048 tokens, "
        "and were cut at their beginning",
    )


def test_another_device_is_a_caution_and_what_one_lacks_is_left_out(base: Path, tmp_path: Path) -> None:
    other = written(
        tmp_path / "other", {"MATH": [[1.0, 0.0] * 20]},
        harness={"lm_eval": "0.4.13", "dtype": "float32", "device": "gpu"},
    )  # fmt: skip
    comparison = compare_results([base, other])
    assert comparison.cautions == ("measured with device cpu and gpu",)
    assert comparison.left_out == ("MMLU: not measured in other",)
    assert [row.name for row in comparison.rows] == ["MATH"]


def test_other_questions_are_not_compared_as_pairs(base: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other", {"MATH": [[1.0, 0.0] * 20]})
    file = other / "tasks/MATH_0.json"
    content = json.loads(file.read_text())
    content["items"][7]["prompt_hash"] = "another wording"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="did not ask the same questions in the same words"):
        compare_results([base, other])
    file.unlink()
    with pytest.raises(DataError, match=r"MATH_0\.json: is missing"):
        compare_results([base, other])


def test_answers_scored_in_two_ways_are_not_compared(base: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other", {"MATH": [[1.0, 0.0] * 20]})
    files = [folder / "tasks/MATH_0.json" for folder in (base, other)]
    for versions, is_refused in (((1.0, 2.0), True), ((2.0, 2.0), False), ((None, 2.0), False)):
        for file, number in zip(files, versions, strict=True):
            file.write_text(json.dumps({**json.loads(file.read_text()), "version": number}))
        if is_refused:
            with pytest.raises(ConfigError, match=r"MATH_0: .*base was measured with version 1\.0 of the task"):
                compare_results([base, other])
        else:
            assert compare_results([base, other]).rows[0].name == "MATH"


def test_of_answers_that_may_be_scored_in_two_ways_a_caution_says_so(tmp_path: Path) -> None:
    folders = [written(tmp_path / name, {"MATH": [[1.0, 0.0]], "GSM8K": [[1.0]]}) for name in ("old", "new")]
    for versions, told in (((None, 2.0), ["old"]), ((None, None), []), ((2.0, 2.0), []), ((2.0, None), ["new"])):
        for folder, number in zip(folders, versions, strict=True):
            file = folder / "results.json"
            content = json.loads(file.read_text())
            content["benchmarks"][0]["tasks"][0]["version"] = number  # GSM8K's file has none
            file.write_text(json.dumps(content))
        said = "measured before the version of the task file was kept; it may have been scored otherwise, as ASDiv was"
        assert compare_results(folders).cautions == tuple(f"{name}: MATH_0: {said}" for name in told)


def test_faulty_inputs_end_in_one_message(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text('{"kind": "other"}')
    damaged = written(tmp_path / "damaged", {"MATH": [[1.0, 0.0] * 20]})
    for name, content in (("a", "[]"), ("b", '{"kind": "evaluation", "schema_version": 1}'), ("c", '"x"')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(content)
    whole = json.loads((damaged / "results.json").read_text())
    (damaged / "results.json").write_text(json.dumps({**whole, "settings": []}))
    broken = written(tmp_path / "broken", {"MATH": [[1.0, 0.0] * 20]})
    (broken / "tasks/MATH_0.json").write_text("[1]")
    more = written(tmp_path / "more", {"MMLU": [[1.0] * 50 + [0.0] * 50, [1.0] * 10, [1.0]]})
    for arguments, code, message in (
        ((tmp_path / "a", base), 3, "holds no JSON object"),
        ((tmp_path / "b", base), 3, "incomplete or with unknown fields"),
        ((tmp_path / "c", base), 3, "holds no JSON object"),
        ((damaged, base), 3, "settings: Input should be a valid dictionary"),
        ((broken, base), 3, "MATH_0.json: holds no JSON object"),
        ((more, base), 2, "did not ask the same questions"),
        ((tmp_path / "nothing",), 3, "no such file"),
        ((tmp_path, base), 3, "is no result of `syne eval`"),
        ((), 2, "nothing to compare"),
        ((base,), 2, "one result is no comparison"),
    ):
        assert main(["compare", *map(str, arguments)]) == code
        assert message in capsys.readouterr().err
