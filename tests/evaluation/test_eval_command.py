"""`syne eval` on a small random model: what it writes, how it goes on, what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_mixers.errors import ConfigError
from megatron_synE.exit_codes import CheckpointError
from tests import tiny
from tests.evaluation import data_sets
from tools.evaluation import harness
from tools.evaluation.evaluate import evaluate
from tools.evaluation.options import EvalOptions
from tools.evaluation.results import Results, read_results, read_task
from tools.evaluation.subjects import subjects_of
from tools.evaluation.tables import results_table

SUITE = """
name: small
what: a few items of three kinds
benchmarks:
  - {name: ARC, group: science, language: en, tasks: [syne_arc_easy, syne_arc_challenge], shots: 0, metric: acc, chance: 0.3}
  - {name: SciQ, group: science, language: en, harness: sciq, tasks: [sciq], shots: 2, metric: acc, chance: 0.25}
  - {name: ASDiv, group: mathematics, language: en, tasks: [syne_asdiv], shots: 0, metric: exact_match, chance: 0.0, limit: 2}
  - {name: HumanEval, group: code, language: code, tasks: [syne_humaneval], shots: 0, metric: pass_at_1, chance: 0.0, runs_code: true}
sums:
  - {name: Both, of: [ARC, SciQ], average: macro}
"""  # noqa: E501


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.hf_folder(tmp_path_factory.mktemp("model") / "tiny")
    tiny.byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    data_sets.write_science(root, 3)
    data_sets.write_mathematics(root, 3)
    return root


def options(hf: Path, data: Path, root: Path, **changes: Any) -> EvalOptions:
    suite = root / "small.yaml"
    suite.write_text(SUITE)
    given: dict[str, Any] = {
        "model": hf, "suite": str(suite), "out": root / "out", "data": data, "offline": True, "device": "cpu",
    }  # fmt: skip
    return EvalOptions(**(given | changes))


def narrow(hf: Path, folder: Path, max_length: int) -> Path:
    """The model with a context of so many tokens."""
    shutil.copytree(hf, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": max_length}))
    return folder


@pytest.fixture(scope="module")
def measured(hf: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    (results,) = evaluate(options(hf, data, tmp_path_factory.mktemp("measured")))
    assert read_results(results.folder) == results  # now: later calls on the folder date it anew
    return results


def test_results_say_what_was_measured_and_what_was_left_out(measured: Results) -> None:
    assert measured.complete
    lines = {line.name: line for line in measured.benchmarks}
    assert {name: (line.status, line.num_items) for name, line in lines.items()} == {
        "ARC": ("done", 6), "SciQ": ("done", 6), "ASDiv": ("done", 2), "HumanEval": ("skipped", 0),
    }  # fmt: skip
    assert "--run-code" in lines["HumanEval"].reason
    for line in lines.values():
        if line.status == "done":
            assert line.score is not None and line.interval is not None
            assert line.interval[0] <= line.score <= line.interval[1]
    assert [task["version"] for task in lines["ASDiv"].tasks] == [3.0]  # of _word_problem.yaml
    (both,) = measured.sums
    assert both.score == pytest.approx(((lines["ARC"].score or 0) + (lines["SciQ"].score or 0)) / 2)
    assert measured.harness["lm_eval"] == "0.4.13"
    assert measured.harness["dtype"] == "float32"
    content = json.loads((measured.folder / "results.json").read_text())
    assert (content["schema_version"], content["kind"], content["model"]["label"]) == (1, "evaluation", "tiny")


def test_each_item_is_kept_with_the_likelihood_of_every_choice(hf: Path, measured: Results) -> None:
    """The likelihoods, from transformers alone: prompt and choice as one text, the choice's part of it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    task = read_task(measured.folder, "syne_arc_easy")
    assert task is not None
    assert task.version == 1.0  # of _arc.yaml
    assert [item.id for item in task.items] == [0, 1, 2]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(hf), AutoTokenizer.from_pretrained(hf)
    for item, letters in zip(task.items, ("ABC", "123", "ABC"), strict=True):
        prompt = "Question: Which?\n" + "".join(
            f"{letter}. {word}\n" for letter, word in zip(letters, ("one", "two", "three"), strict=True)
        )
        expected = []
        for letter in letters:
            tokens = tokenizer(f"{prompt}Answer: {letter}", return_tensors="pt", add_special_tokens=False).input_ids
            with torch.no_grad():
                logs = torch.log_softmax(model(tokens).logits[0].double(), dim=-1)
            expected.append(sum(float(logs[place - 1, tokens[0, place]]) for place in (-2, -1)))  # " A" is two bytes
        assert item.likelihoods == pytest.approx(expected, abs=1e-4)  # fp32 log-softmax of a padded batch
        assert item.answer == letters[max(range(3), key=expected.__getitem__)]
        assert item.score == float(item.answer == letters[item.id % 3])


def test_a_second_call_computes_nothing_and_a_lost_task_alone_is_done_again(
    hf: Path, data: Path, measured: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = measured.folder.parents[2]
    computed: list[str] = []
    run_task = harness.run_task

    def counted(model: Any, task: Any, planned: harness.PlannedTask, **settings: Any) -> Any:
        computed.append(planned.name)
        return run_task(model, task, planned, **settings)

    monkeypatch.setattr(harness, "run_task", counted)
    (again,) = evaluate(options(hf, data, root))
    assert computed == []
    assert again.benchmarks == measured.benchmarks
    assert again.harness == measured.harness  # no model was loaded, and yet it is known what measured
    (measured.folder / "tasks/sciq.json").unlink()
    (again,) = evaluate(options(hf, data, root))
    assert computed == ["sciq"]
    assert [line.score for line in again.benchmarks] == [line.score for line in measured.benchmarks]


def test_results_stay_where_the_package_moves_to_another_folder(
    hf: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(options(hf, data, tmp_path, only=("ASDiv",)))
    moved = tmp_path / "site-packages/tasks"
    shutil.copytree(harness.OWN_TASKS, moved)
    monkeypatch.setattr(harness, "OWN_TASKS", moved)
    monkeypatch.setattr(harness, "run_task", None)  # nothing is left to compute
    (again,) = evaluate(options(hf, data, tmp_path, only=("ASDiv",)))
    assert [line.status for line in again.benchmarks if line.name == "ASDiv"] == ["done"]


def test_what_a_call_leaves_out_stays_as_an_earlier_one_measured_it(hf: Path, data: Path, tmp_path: Path) -> None:
    (first,) = evaluate(options(hf, data, tmp_path, only=("ARC",)))
    assert not first.complete
    assert {line.name: line.reason for line in first.benchmarks if line.status == "open"} == dict.fromkeys(
        ("SciQ", "ASDiv", "HumanEval"), "left out by --only"
    )
    (second,) = evaluate(options(hf, data, tmp_path, only=("SciQ",)))
    lines = {line.name: line for line in second.benchmarks}
    assert lines["ARC"] == first.benchmarks[0] and lines["SciQ"].status == "done"
    assert second.sums[0].status == "done"  # of both, item by item
    assert second.sums[0].score == pytest.approx(((lines["ARC"].score or 0) + (lines["SciQ"].score or 0)) / 2)
    (other,) = evaluate(
        options(hf, data, tmp_path, only=("ASDiv",), batch_size=1)
    )  # of other settings nothing is taken over
    assert [line.status for line in other.benchmarks] == ["open", "open", "done", "open"]


def test_a_trial_with_a_limit_does_not_replace_results_over_more_items(
    hf: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in (1, 2, None, 6):  # more items replace fewer, and as many stay
        (results,) = evaluate(options(hf, data, tmp_path, only=("SciQ",), limit=limit))
    trial = options(hf, data, tmp_path, only=("SciQ",), limit=2)
    refusal = r"--limit 2: .*/tiny holds .* results over 6 items of sciq, .* another --out"
    with pytest.raises(ConfigError, match=refusal):
        evaluate(trial)
    assert read_results(results.folder) == results
    with monkeypatch.context() as without_memory:
        without_memory.setattr(harness, "load_model", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):  # leaves a results.json with nothing in it
            evaluate(options(hf, data, tmp_path, only=("SciQ",), batch_size=1))
    with pytest.raises(ConfigError, match=refusal):
        evaluate(trial)
    kept = read_task(results.folder, "sciq")
    assert kept is not None and len(kept.items) == 6


def test_a_model_of_the_same_name_does_not_replace_anothers_results(hf: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / hf.name
    other.parent.mkdir()
    other.symlink_to(tiny.hf_folder(tmp_path / "second" / hf.name, seed=5))
    tiny.byte_tokenizer(other)
    evaluate(options(hf, data, tmp_path, only=("ARC",)))
    with pytest.raises(ConfigError, match=r"holds the results of .* and .* has the same name; choose another --out"):
        evaluate(options(other, data, tmp_path, only=("ARC",)))


def test_a_mended_answer_of_the_data_is_measured_again(hf: Path, tmp_path: Path) -> None:
    """One letter for another: a file of the same size."""
    root = tmp_path / "data"
    data_sets.write_mathematics(root, 2)
    file = root / "EleutherAI/asdiv/asdiv/validation.jsonl"
    (root / "EleutherAI/asdiv/asdiv/validation-00000-of-00001.parquet").unlink()
    row = {"body": "Ann has 1 pen.", "question": "How many?", "answer": "1 (pens)"}
    file.write_text(json.dumps(row))
    (first,) = evaluate(options(hf, root, tmp_path, only=("ASDiv",)))
    file.write_text(json.dumps({**row, "answer": "2 (pens)"}))
    (second,) = evaluate(options(hf, root, tmp_path, only=("ASDiv",)))
    targets = [read_task(results.folder, "syne_asdiv").items[0].target for results in (first, second)]  # type: ignore[union-attr]
    assert second.folder == first.folder and targets[1] == "2 (pens)"


def test_a_killed_call_leaves_a_whole_result_that_says_it_is_open(
    hf: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(model: Any, task: Any, planned: harness.PlannedTask, **settings: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "run_task", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(options(hf, data, tmp_path))
    results = read_results(tmp_path / "out/small/tiny")
    assert not results.complete
    assert {line.name: line.status for line in results.benchmarks} == {
        "ARC": "open", "SciQ": "open", "ASDiv": "open", "HumanEval": "skipped",
    }  # fmt: skip


def test_a_run_is_evaluated_at_its_checkpoints_and_equals_its_export(data: Path, tmp_path: Path, hf: Path) -> None:
    config = tiny.prepared(tmp_path, checkpoint={"interval_tokens": 2 * 8 * 32, "keep_last": None, "async_save": False})
    tiny.give_tokenizer(tmp_path)
    tiny.train(config)
    run = tmp_path / "run"
    asked = options(run, data, tmp_path, out=None, checkpoints="all", only=("ARC",))
    found = evaluate(asked)
    assert [results.model["iteration"] for results in found] == [2, 4, 5]
    assert [results.model["consumed_tokens"] for results in found] == [512, 1024, 1280]
    assert [results.folder for results in found] == [run / f"eval/small/iter_000000{i}" for i in (2, 4, 5)]
    assert not list(run.rglob("eval/**/hf"))  # the export was for its turn alone
    (found[0].folder / "hf").mkdir()  # a call that was killed behind its last task
    assert [results.model for results in evaluate(asked)] == [results.model for results in found]
    assert not list(run.rglob("eval/**/hf"))
    done = tiny.syne("export", "--checkpoint", run, "--out", run / "hf", "--no-logits")
    assert done.returncode == 0, done.stderr
    (subject,) = subjects_of(run / "hf", "newest")
    assert (subject.label, subject.run, subject.iteration) == ("iter_0000005", run, 5)
    (exported,) = evaluate(options(run / "hf", data, tmp_path, out=tmp_path / "other", only=("ARC",)))
    one, other = (read_task(folder, "syne_arc_easy") for folder in (found[-1].folder, exported.folder))
    assert one is not None and other is not None
    assert one.items == other.items


def test_missing_data_is_refused_before_the_model_is_read_or_left_out_on_request(hf: Path, tmp_path: Path) -> None:
    suite = tmp_path / "small.yaml"
    suite.write_text(SUITE)
    command = ("eval", hf, "--suite", suite, "--out", tmp_path / "out", "--data", tmp_path / "none", "--offline")
    done = tiny.syne(*command)
    assert done.returncode == 3
    assert f"expected {tmp_path}/none/allenai/ai2_arc/ARC-Easy/test-*.parquet" in done.stderr
    assert "allenai/sciq" in done.stderr and "EleutherAI/asdiv" in done.stderr
    done = tiny.syne(*command, "--skip-missing")
    assert done.returncode == 0, done.stderr
    assert "caution: ARC is left out" in done.stderr
    assert {line.status for line in read_results(tmp_path / "out/small/tiny").benchmarks} == {"missing", "skipped"}


def test_prompts_that_do_not_fit_are_counted_and_told(
    hf: Path, data: Path, measured: Results, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A byte is a token here. The last of a choice is predicted, not read; an answer of ASDiv may take 256."""
    choice = len("Question: Which?\nA. one\nB. two\nC. three\nAnswer: A")
    question = len("Q: Ann has 0 pens. How many pens has she after 2 more?\nA:")
    for name, max_length, cut in (
        ("ARC", choice - 1, 0), ("ARC", choice - 2, 6), ("ASDiv", 256 + question, 0), ("ASDiv", 255 + question, 2),
    ):  # fmt: skip
        folder = narrow(hf, tmp_path / f"{name}{max_length}", max_length)
        caplog.clear()
        (results,) = evaluate(options(folder, data, tmp_path, only=(name,)))
        (line,) = [line for line in results.benchmarks if line.name == name]
        assert sum(task["num_truncated"] for task in line.tasks) == cut, (name, max_length)
        said = f"caution: {cut} of {line.num_items} prompts of {name} do not fit with their answers in the model's "
        assert (said in results_table(results)) == (cut > 0)
        assert ("were cut at their beginning" in caplog.text) == (cut > 0)
        if name == "ARC":  # what was cut changes what the model says, or nothing was cut
            now, whole = (read_task(of.folder, "syne_arc_easy") for of in (results, measured))
            assert now is not None and whole is not None
            assert ([item.likelihoods for item in now.items] != [item.likelihoods for item in whole.items]) == (cut > 0)


def test_answers_that_fill_the_context_are_refused_before_anything_is_computed(
    hf: Path, data: Path, tmp_path: Path
) -> None:
    folder = narrow(hf, tmp_path / "narrow", 256)
    with pytest.raises(ConfigError, match="context of 256 tokens has no room") as refused:
        evaluate(options(folder, data, tmp_path))
    assert str(refused.value).endswith("of ASDiv (syne_asdiv: 256 tokens); leave them out by --only ARC --only SciQ")
    assert not list(tmp_path.rglob("tasks/*.json"))
    (results,) = evaluate(options(folder, data, tmp_path, only=("ARC", "SciQ")))  # as it was told to
    assert {line.status for line in results.benchmarks[:2]} == {"done"}


def test_out_of_memory_names_the_option_that_takes_less(
    hf: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    load_model = harness.load_model

    def on_a_full_device(folder: Path, asked: EvalOptions) -> Any:
        model = load_model(folder, asked)
        model.model.register_forward_pre_hook(full)
        return model

    monkeypatch.setattr(harness, "load_model", on_a_full_device)
    with pytest.raises(ConfigError, match="syne_arc_easy: out of memory on cpu at --batch-size 4; give a smaller one"):
        evaluate(options(hf, data, tmp_path, batch_size=4))


def test_a_model_that_answers_nan_has_no_score(hf: Path, data: Path, tmp_path: Path) -> None:
    """Of all that it is asked: also where it writes, and nothing tells a wrong answer. Or of some words alone."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    of_e = AutoTokenizer.from_pretrained(hf).convert_tokens_to_ids("e")
    for name, row, only, said in (
        ("model.norm.weight", 0, "ASDiv", r"broken: the model gives NaN: its weights"),
        ("model.embed_tokens.weight", of_e, "SciQ", r"sciq: .* NaN .* of 6 of 6 items, the first is item 0"),
    ):
        broken = shutil.copytree(hf, tmp_path / "broken", dirs_exist_ok=True)
        (file,) = broken.glob("*.safetensors")
        weights = load_file(file)
        weights[name][row] = float("nan")
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=said):
            evaluate(options(broken, data, tmp_path, only=(only,)))
        assert not (tmp_path / "out/small/broken/tasks").exists()


def test_a_set_that_the_hub_does_not_give_is_left_out_on_request(hf: Path, data: Path, tmp_path: Path) -> None:
    """No hub answers at a closed port."""
    own = shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(own / "allenai/sciq")
    suite = tmp_path / "small.yaml"
    suite.write_text(SUITE)
    command = (
        "eval", hf, "--suite", suite, "--out", tmp_path / "out", "--data", own, "--only", "SciQ", "--only", "ARC",
    )  # fmt: skip
    closed = {
        "HTTPS_PROXY": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
    }  # fmt: skip
    done = tiny.syne(*command, **closed)
    assert done.returncode == 3
    assert "sciq cannot read allenai/sciq" in done.stderr and "(--skip-missing goes on without SciQ)" in done.stderr
    done = tiny.syne(*command, "--skip-missing", **closed)
    assert done.returncode == 0, done.stderr
    assert "caution: SciQ is left out: sciq cannot read allenai/sciq" in done.stderr
    lines = {line.name: line for line in read_results(tmp_path / "out/small/tiny").benchmarks}
    assert (lines["SciQ"].status, lines["ARC"].status) == ("missing", "done")
    assert "allenai/sciq" in lines["SciQ"].reason


def test_code_of_a_model_folder_is_never_run(hf: Path, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(hf, tmp_path / "hub")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(CheckpointError, match="auto_map asks for code"):
        evaluate(options(folder, data, tmp_path))
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_evaluated_is_said_in_one_message(hf: Path, data: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(hf, tmp_path / "damaged")
    mute = shutil.copytree(hf, tmp_path / "mute", ignore=shutil.ignore_patterns("*token*"))
    (damaged / "model.safetensors").write_bytes(b"x")
    for changes, fault, message in (
        ({"out": None}, ConfigError, "--out is missing"),
        ({"only": ("ARK",)}, ConfigError, "--only ARK: small has ARC"),
        ({"model": None}, ConfigError, "which model?"),
        ({"model": tmp_path / "nothing"}, CheckpointError, "no such folder"),
        ({"model": tmp_path}, CheckpointError, "is neither an HF folder"),
        ({"model": damaged}, CheckpointError, "damaged cannot be loaded: "),
        ({"model": mute}, CheckpointError, "mute cannot be loaded: "),
        ({"backend": "vllm"}, ConfigError, "vLLM is not installed"),
    ):
        with pytest.raises(fault, match=message):
            evaluate(options(hf, data, tmp_path, **changes))
