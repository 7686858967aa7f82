"""What the sections say of a run, against figures worked by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_mixers.errors import DataError
from data_mixers.ratios import WEIGHT_UNIT
from data_mixers.schedule import Schedule, ScheduledShard, ScheduledSource
from tests import tiny
from tests.report import run_folders
from tools.report.command import ReportOptions, make_report
from tools.report.content import Figure, Missing, Section, Table
from tools.report.evaluation import evaluation, read_result
from tools.report.figures import PALETTE
from tools.report.held_out import held_out, last_validation_ppl
from tools.report.history import phase_rows, troubles
from tools.report.overview import overview
from tools.report.reads import difficulty, shares_of
from tools.report.run_record import read_run, with_names
from tools.report.speed import budget

HALF = WEIGHT_UNIT // 2


def tables(section: Section) -> list[Table]:
    return [block for block in section.blocks if isinstance(block, Table)]


def test_the_time_budget_adds_up_to_the_time_of_all_starts(tmp_path: Path) -> None:
    spent = budget(read_run(run_folders.write(tmp_path / "run", 40)))
    assert spent is not None
    # 40 steps of 0.5 s; 11 validations of 1.5 s and saves of 0.25 s; two starts of 24 s, ten minutes apart.
    assert (spent.train, spent.validate, spent.save) == (20.0, 16.5, 2.75)
    assert spent.other == pytest.approx(48 - 20 - 16.5 - 2.75)
    assert spent.wait == pytest.approx(600)
    assert spent.allocated == pytest.approx(48)


def schedule_of_a_curriculum() -> Schedule:
    """Bucket 0, then bucket 1 of zh; a decision and a rise in between; then text left out."""
    names = ("zh/web/law/0", "zh/web/law/1", "en/web/news")
    shard = ScheduledShard(num_tokens=10**6, sha256="0" * 64)
    made = Schedule(seed=7, seq_length=32, sources=tuple(ScheduledSource(name=n, shards=(shard,)) for n in names))
    for name, weights, kind in (
        ("adapt, step 1", {names[0]: HALF, names[2]: HALF}, "stage"),
        ("adapt, step 1", {names[0]: HALF // 2, names[2]: HALF + HALF // 2}, "guard"),
        ("adapt, step 2", {names[1]: HALF // 2, names[2]: HALF + HALF // 2}, "stage"),
        ("synthetic", {names[2]: WEIGHT_UNIT}, "stage"),
    ):
        made = made.append_weights(name, num_samples=80, weights=weights, kind=kind)  # type: ignore[arg-type]
    return made.skip(100, 108, consumed_samples=0)


def test_every_phase_has_its_reason(tmp_path: Path) -> None:
    extra: list[dict[str, Any]] = [
        {"kind": "guard", "iteration": 8, "consumed_tokens": 2048, "set": "en", "change": 0.125, "worse": ["loss"],
         "rise": 0.25, "start_sample": 80, "notes": ["guard: raised"]},
        {"kind": "recovery", "iteration": 12, "bad_iteration": 13, "action": "skip", "anomaly": "nan",
         "start_sample": 100, "stop_sample": 108},
    ]  # fmt: skip
    run_folders.write(tmp_path / "run", 20, extra=extra)
    (tmp_path / "run" / "schedule.json").write_text(schedule_of_a_curriculum().to_json())
    run = read_run(tmp_path / "run")
    assert run.schedule is not None
    assert run.stage_begins == [240 * 32]
    rows = phase_rows(run, run.schedule)
    assert [row[0] for row in rows] == ["stage", "guard", "left out", "stage", "stage"]
    assert [row[2] for row in rows] == [
        "the run begins",
        "the forgetting guard moves the language's share; en worse in loss (+0.1250 nats per token since the first "
        "validation); guard: raised",
        "nan at iteration 13, skip",
        "the curriculum turns to harder or other buckets",
        "the plan's next stage begins",
    ]
    assert rows[1][3] == "zh/web/law 50.00 % → 25.00 %, en/web/news 50.00 % → 75.00 %"
    assert rows[3][3] == "buckets 0 → 1"
    assert [row[4] for row in rows] == ["1", "11", "13", "21", "31"]


def test_what_was_left_out_is_told_with_loss_and_bound_or_the_word_for_what_is_no_number(tmp_path: Path) -> None:
    rows = [
        {"kind": "recovery", "iteration": 12, "bad_iteration": 13, "action": "skip", "anomaly": "nan",
         "start_sample": 96, "stop_sample": 104, "lm_loss": "nan", "grad_norm": 1.5, "bound": None},
        {"kind": "recovery", "iteration": 10, "bad_iteration": 15, "action": "rollback", "anomaly": "spike",
         "start_sample": 104, "stop_sample": 120, "lm_loss": 9.25, "grad_norm": 2.0, "bound": 4.5},
    ]  # fmt: skip
    (table, _) = tables(troubles([read_run(run_folders.write(tmp_path / "run", 20, extra=rows))]))
    assert list(table.header) == [
        "anomaly", "action", "bad iteration", "went on from", "loss", "allowed", "gradient norm", "samples left out",
    ]  # fmt: skip
    assert table.rows == [
        ["nan", "skip", "13", "12", "nan", "–", "1.5000", "96:104"],
        ["spike", "rollback", "15", "10", "9.2500", "4.5000", "2.0000", "104:120"],
    ]


def test_a_phase_that_begins_where_a_source_has_ended_says_so(tmp_path: Path) -> None:
    folder = run_folders.write(tmp_path / "run", 20)
    made = run_folders.schedule(10).append_weights(
        "adapt", num_samples=80, weights={"en/web/computing": WEIGHT_UNIT}, kind="exhaustion"
    )
    (folder / "schedule.json").write_text(made.to_json())
    assert phase_rows(read_run(folder), made)[1][:4] == [
        "exhaustion", "adapt", "a source has been read as often as it may be; its share goes to its kin",
        "zh/web/law 50.00 % → 0.00 %, en/web/computing 50.00 % → 100.00 %",
    ]  # fmt: skip


def test_held_out_ppl_weighs_sets_by_their_tokens(tmp_path: Path) -> None:
    folder = run_folders.write(tmp_path / "run", 20)
    assert last_validation_ppl(read_run(tmp_path)) == "–"
    rows = [run_folders.validation_row(step, name, nll) | {"tokens": tokens}
            for step, name, nll, tokens in ((0, "a", 1.0, 100), (0, "b", 2.0, 300), (9, "a", 0.5, 100),
                                            (9, "b", 1.5, 300))]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # exp((100 + 600) / 400) and exp((50 + 450) / 400)
    assert last_validation_ppl(read_run(folder)) == "5.755 → 3.490"


def test_the_mixture_is_what_was_read_and_then_what_is_planned(tmp_path: Path) -> None:
    run_folders.write(tmp_path / "run", 20)  # a quarter zh, three quarters en are in its rows when told so
    rows = [run_folders.train_row(step) for step in range(1, 21)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run" / "schedule.json").write_text(run_folders.schedule(40).to_json())  # half and half
    shares = shares_of(read_run(tmp_path / "run"))
    assert shares is not None
    assert shares.read_until == 20 * 256 and shares.edges[0] == 0 and shares.edges[-1] == 40 * 256
    assert shares.by_source["zh/web/law"].tolist() == pytest.approx([0.25] * (len(shares.edges) - 2) + [0.5])
    assert sum(shares.by_source.values()).tolist() == pytest.approx([1.0] * (len(shares.edges) - 1))


def test_the_position_of_a_curriculum_is_the_mean_quantile_of_what_was_read() -> None:
    # Of four buckets: the first alone, then the second and the third alike, then nothing of the language.
    curve = difficulty(
        np.array([0.0, 10.0, 20.0, 30.0]),
        {"zh/web/a/0": np.array([0.4, 0.0, 0.0]), "zh/web/a/1": np.array([0.0, 0.2, 0.0]),
         "zh/web/a/2": np.array([0.0, 0.2, 0.0]), "zh/web/a/3": np.array([0.0, 0.0, 0.0])},
    )  # fmt: skip
    assert curve.x.tolist() == [5.0, 15.0]
    assert curve.y.tolist() == [0.125, 0.5]
    assert (curve.low.tolist(), curve.high.tolist()) == ([0.0, 0.25], [0.25, 0.75])


def test_evaluations_of_runs_and_others_stand_side_by_side_with_intervals(tmp_path: Path) -> None:
    run = read_run(run_folders.write(tmp_path / "run", 40))
    for label, iteration, score in (("iter_0000020", 20, 0.1), ("iter_0000040", 40, 0.122)):
        folder = tmp_path / "run" / "eval" / "probe" / label
        folder.mkdir(parents=True)
        model = {"label": label, "iteration": iteration, "consumed_tokens": iteration * 256}
        content = run_folders.evaluation(model=model)
        content["benchmarks"][0]["score"] = score
        (folder / "results.json").write_text(json.dumps(content))
    base = tmp_path / "base.json"
    other = run_folders.evaluation(model={"label": "base"}, harness={"lm_eval": "0.4.9"}, complete=False)
    base.write_text(json.dumps(other))
    section = evaluation([run], [base])
    (table,) = tables(section)
    assert table.header == ["probe", "metric", "made, iter_0000040, %", "base, %", "chance, %", "items"]
    assert table.rows[0] == ["HumanEval", "pass@1, 0 shots", "12.2 [8.0, 18.1]", "12.2 [8.0, 18.1]", "0.0", "164"]
    assert table.rows[1][2] == "missing: no data"
    average = "macro average of HumanEval, MBPP"
    assert table.rows[2] == ["Code", average, "12.2 [8.0, 18.1]", "12.2 [8.0, 18.1]", "–", "164"]
    assert len(table.rows) == 3
    said = [block.text for block in section.blocks if isinstance(block, Missing)]
    assert said == [
        "base: probe is not complete yet",
        "probe: suite file, harness or settings differ between these results; do not compare them",
    ]
    figures = [block for block in section.blocks if isinstance(block, Figure)]
    assert [figure.title for figure in figures] == ["Scores: probe", "Scores over time: probe"]
    assert "score, % (bar: 95 % interval)" in figures[0].svg


def write_evaluation(
    folder: Path, label: str, *, tokens: int | None = None, score: float | None, **changes: Any
) -> None:
    """<folder>/probe/<label>/results.json with a benchmark; of the checkpoint at so many tokens."""
    model = {"label": label, "iteration": tokens and tokens // 256, "consumed_tokens": tokens}
    content = run_folders.evaluation(model=model, **changes)
    interval = None if score is None else [score - 0.02, score + 0.02]
    content["benchmarks"] = [content["benchmarks"][0] | {"score": score, "interval": interval}]
    place = folder / "probe" / label
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(content))


def test_over_time_are_only_checkpoints_measured_alike_and_the_others_are_named(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", 40)
    for number, differs in enumerate(
        (
            {"settings": {"limit": 50}},
            {"harness": {"lm_eval": "0.4.13", "dtype": "float32"}},
            {"suite": {"name": "probe", "sha256": "f"}},
        ),
        start=2,
    ):
        write_evaluation(run / "eval", f"iter_{number}", tokens=256 * number, score=0.9, **differs)
    write_evaluation(run / "eval", "iter_1", tokens=256, score=0.1)
    caution = {"lm_eval": "0.4.13", "torch": "2.0"}  # `syne compare` compares across it
    write_evaluation(run / "eval", "iter_5", tokens=1280, score=0.3, harness=caution)
    write_evaluation(run / "eval", "iter_6", tokens=1536, score=0.2)
    write_evaluation(run / "eval", "iter_7", tokens=1792, score=None, harness={}, complete=False)  # only begun
    section = evaluation([read_run(run)], [])
    (figure,) = [b for b in section.blocks if isinstance(b, Figure) and b.title == "Scores over time: probe"]
    assert "from 256 to 1.536 k tokens" in figure.alt
    assert "10 at first, 20 at last, between 8 and 32." in figure.alt
    assert section.blocks[section.blocks.index(figure) + 1] == Missing(
        "made: probe over time is without iter_2, iter_3, iter_4: suite file, harness or settings differ from those of "
        "iter_6"
    )


def strokes(figure: Figure) -> list[tuple[str, str]]:
    return [(entry.colour, entry.dash) for entry in figure.legend]


@pytest.mark.parametrize("num_runs", [1, 2, 5])
def test_no_two_lines_of_a_figure_look_alike(tmp_path: Path, num_runs: int) -> None:
    """Eleven topics of a language, as the recipe has; held-out text and benchmarks, of several runs."""
    topics = [f"zh/web/topic{index}" for index in range(11)]
    runs = []
    for number in range(num_runs):
        folder = run_folders.write(tmp_path / str(number), 4, name=f"run {number}", names=topics)
        for iteration in (2, 4):
            place = folder / "eval" / "probe" / f"iter_{iteration:07}"
            place.mkdir(parents=True)
            model = {"label": place.name, "iteration": iteration, "consumed_tokens": iteration * 256}
            content = run_folders.evaluation(model=model)
            content["benchmarks"] = [content["benchmarks"][0] | {"name": topic} for topic in topics]
            (place / "results.json").write_text(json.dumps(content))
        runs.append(read_run(folder))
    for section, title in ((held_out(runs), "Held-out PPL: zh"), (evaluation(runs, []), "Scores over time: probe")):
        figures = [b for b in section.blocks if isinstance(b, Figure) and b.title.startswith(title)]
        labels = [entry.label for figure in figures for entry in figure.legend]
        assert len(labels) == len(set(labels)) == 11 * num_runs
        for figure in figures:
            assert len(set(strokes(figure))) == len(figure.legend)
    assert [len(figure.legend) for figure in figures] == {1: [11], 2: [16, 6], 5: [5] * 11}[num_runs]


def test_a_run_keeps_its_colour_while_the_evaluation_of_the_run_before_it_is_only_begun(tmp_path: Path) -> None:
    runs = [read_run(run_folders.write(tmp_path / name, 4, name=name)) for name in ("first", "second")]
    write_evaluation(tmp_path / "second" / "eval", "iter_4", tokens=1024, score=0.2)
    for number, score in enumerate((None, 0.1), 3):
        write_evaluation(tmp_path / "first" / "eval", f"iter_{number}", tokens=256 * number, score=score)
        (figure,) = [block for block in evaluation(runs, []).blocks if isinstance(block, Figure)]
        assert (figure.legend[-1].label, figure.legend[-1].colour) == ("second, iter_4", PALETTE[1])


def test_results_with_one_label_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", 40)
    write_evaluation(run / "eval", "hf_base", tokens=256, score=0.3)
    for folder, score in (("a", 0.1), ("b", 0.2)):
        write_evaluation(tmp_path / folder, "hf_base", score=score)
    section = evaluation([read_run(run)], [tmp_path / "a", tmp_path / "b"])
    named = ["made, hf_base", *(f"hf_base ({tmp_path}/{folder}/probe/hf_base)" for folder in ("a", "b"))]
    (figure,) = [block for block in section.blocks if isinstance(block, Figure)]
    assert [entry.label for entry in figure.legend] == named
    assert len({entry.colour for entry in figure.legend}) == 3
    (table,) = tables(section)
    assert table.header[2:5] == [f"{name}, %" for name in named]


def test_results_of_a_run_that_are_also_named_by_themselves_stay_the_runs(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", 4)
    for iteration, score in ((2, 0.2), (4, 0.4)):
        write_evaluation(run / "eval", f"iter_000000{iteration}", tokens=256 * iteration, score=score)
    expected = [table.header for table in tables(evaluation([read_run(run)], []))]
    for named in (run / "eval", tmp_path / "run" / ".." / "run" / "eval/probe/iter_0000004/results.json"):
        assert [table.header for table in tables(evaluation([read_run(run)], [named]))] == expected


def test_the_base_in_a_runs_folder_stands_beside_its_newest_checkpoint(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", 40)
    write_evaluation(run / "eval", "hf_base", score=0.1)
    for iteration, score in ((20, 0.2), (40, 0.3)):
        write_evaluation(run / "eval", f"iter_00000{iteration}", tokens=256 * iteration, score=score)
    (table,) = tables(evaluation([read_run(run)], []))
    assert table.header[2:4] == ["made, hf_base, %", "made, iter_0000040, %"]
    assert table.rows[0][2:4] == ["10.0 [8.0, 12.0]", "30.0 [28.0, 32.0]"]


def test_a_benchmark_scored_by_two_versions_of_its_task_file_is_named(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", 40)
    for number, version in enumerate((1.0, 2.0), start=1):
        write_evaluation(run / "eval", f"iter_{number}", tokens=256 * number, score=0.3)
        file = run / f"eval/probe/iter_{number}/results.json"
        content = json.loads(file.read_text())
        content["benchmarks"][0]["tasks"] = [{"task": "a", "version": version}, {"task": "b", "version": 1.0}]
        other = content["benchmarks"][0] | {"name": "Other", "tasks": [{"task": "b", "version": 1.0}]}
        file.write_text(json.dumps(content | {"benchmarks": [content["benchmarks"][0], other]}))
    said = [b.text for b in evaluation([read_run(run)], []).blocks if isinstance(b, Missing)]
    assert said == [
        "probe: HumanEval: the versions of its task files differ between these results, or are not known of all; an "
        "answer may be scored in two ways"
    ]


def test_one_that_is_only_begun_is_not_called_incomparable(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", 40)
    write_evaluation(run / "eval", "iter_0000040", tokens=10240, score=0.3)
    write_evaluation(tmp_path / "base", "hf_base", score=None, harness={}, complete=False)
    section = evaluation([read_run(run)], [tmp_path / "base"])
    assert [b.text for b in section.blocks if isinstance(b, Missing)] == ["hf_base: probe is not complete yet"]


@pytest.mark.parametrize("content", ["{", "[]", {"schema_version": 2}, {"kind": "other"}, {"benchmarks": [3]}])
def test_a_result_that_cannot_be_read_is_said(tmp_path: Path, content: str | dict[str, Any]) -> None:
    file = tmp_path / "results.json"
    file.write_text(content if isinstance(content, str) else json.dumps(run_folders.evaluation(**content)))
    with pytest.raises(DataError, match=r"results\.json"):
        read_result(file, "")
    section = evaluation([read_run(run_folders.write(tmp_path / "run", 4))], [tmp_path])
    assert any(isinstance(block, Missing) and str(file) in block.text for block in section.blocks)


def test_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text('{"schema_version": 1, "run": "same"}')
    runs = with_names([read_run(tmp_path / "a"), read_run(tmp_path / "b"), read_run(tmp_path / "a")])
    assert [run.name for run in runs] == ["1: same (a)", "2: same (b)", "3: same (a)"]
    assert [run.name for run in with_names(runs[:2])] == ["1: same (a)", "2: same (b)"]


def test_a_real_run_is_shown_whole(tmp_path: Path) -> None:
    """Its rows, files and checkpoint are those of this version: nothing is missing, and the lineage is its own."""
    file = tiny.prepared(tmp_path, checkpoint={"interval_tokens": 512})
    tiny.train(file, "training.stop_after_iterations=4", code=75)
    tiny.train(file)
    options = ReportOptions(runs=(tmp_path / "run",), out=tmp_path / "report.html")
    report = make_report(options)
    assert [block for section in report.sections for block in section.blocks if isinstance(block, Missing)] == []
    figures = [block.title for section in report.sections for block in section.blocks if isinstance(block, Figure)]
    assert figures == [
        "Training loss", "Learning rate", "Gradient norm before clipping", "Held-out PPL: en",
        "Held-out bits per byte: en", "Held-out PPL: zh", "Held-out bits per byte: zh", "Mixture by language",
        "Mixture by topic", "Throughput", "Model FLOPs per device", "Peak memory of a device", "Goodput", "Time budget",
        "Change of held-out loss since the first validation", "Share above the plan",
    ]  # fmt: skip
    rows = {row[0]: row for section in report.sections for table in tables(section) for row in table.rows}
    losses = [row["lm_loss"] for row in tiny.rows(tmp_path / "run", "train")]
    assert rows["training loss, first → mean of last 5 %"][1] == f"{losses[0]:.4f} → {losses[-1]:.4f}"
    assert rows["iteration"][1] == "5 of 5"
    assert rows["state"][1] == "finished"
    assert rows["begun from"][1] == str(tmp_path / "hf")  # not the checkpoint of its last start
    manifest = json.loads((tmp_path / "run/checkpoints/iter_0000005/manifest.json").read_text())
    assert rows["iter_0000005"][1:4] == [manifest["lineage_hash"][:16], manifest["schedule_hash"][:16], "whole"]
    assert rows[str(tmp_path / "hf")][2] == "Hugging Face weights"
    states = [t.rows for s in report.sections for t in tables(s) if t.header[:2] == ["source", "folder"]]
    assert [row[3] for row in states[0]] == ["the hashes are the schedule's"] * 3


def test_a_run_of_random_weights_is_not_begun_from_a_path_beside_them(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", 4)
    config = json.loads((run / "run_config.yaml").read_text())
    for init, begun_from in (
        ({"from": "random", "path": "models/base"}, "random weights"),
        ({"from": "hf", "path": "models/base"}, "models/base"),
    ):
        (run / "run_config.yaml").write_text(json.dumps(config | {"init": init}))
        (table,) = tables(overview([read_run(run)]))
        assert ["begun from", begun_from] in table.rows
