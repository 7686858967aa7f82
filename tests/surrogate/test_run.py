"""A whole small study: pilot, arms, table; cut and gone on with; what it cannot resolve; one caller at a time."""

import json
from pathlib import Path

import pytest

from tests.surrogate.test_study import base, study_tree, written
from tools.cli import main
from tools.data.stage import only_one
from tools.surrogate.arms import arms_of, jobs_of
from tools.surrogate.outcome import topic_of
from tools.surrogate.study import read_study
from tools.surrogate.trained import do_job


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def finished(root: Path) -> Path:
    """Two arms with two seeds, closed loop, through `syne surrogate run`."""
    file = base(
        root,
        mixture={"reweight_interval_tokens": 512},
        validation={"manifests": [str(root / "held")], "interval_tokens": 512},
    )
    loop = {"mixture.controller": "syne_paper", "mixture.settings": {"alpha": 0.9}}
    grid = {"controller": {"static": {"mixture.controller": "static"}, "syne_paper": loop}}
    tree = study_tree(file, seeds=[1, 2], pilot_seeds=2, grid=grid)
    tree["set"] = {"data.stages.0.tokens": 2048, "data.stages.0.languages": {"zh": 0.8, "synthetic": 0.2}}
    tree["outcome"]["matters"] = 5.0
    assert main(["surrogate", "run", str(written(root, tree)), "--out", str(root / "out")]) == 0
    return root / "out"


def test_a_study_ends_in_a_table_a_figure_and_every_curve(finished: Path) -> None:
    found = json.loads((finished / "results.json").read_text())
    table = (finished / "table.md").read_text()
    assert "it can be resolved" in table and "controller=syne_paper" in table
    assert (finished / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert {(job["arm"], job["seed"]) for job in found["jobs"]} == {
        (f"controller={name}", seed) for name in ("static", "syne_paper") for seed in (1, 2)
    }
    rows = {(row["arm"], row["group"]): row for row in found["rows"]}
    # the table's numbers from the curves, by hand
    last = {(job["arm"], job["seed"]): job["curve"][-1]["nll"]["synthetic/qa/algebra@holdout"] for job in found["jobs"]}
    by_seed = [last["controller=syne_paper", seed] - last["controller=static", seed] for seed in (1, 2)]
    assert any(by_seed)  # the loop closed: its arm read something else
    difference = rows["controller=syne_paper", "qa"]["differences"]["controller=static"]
    assert difference["mean"] == pytest.approx(sum(by_seed) / 2)
    point = found["jobs"][0]["curve"][-1]
    assert sum(point["read"].values()) == point["consumed_tokens"] == 2048
    assert {topic_of(name) for name in point["nll"]} == {"zh/web/law", "zh/web/novel", "synthetic/qa/algebra"}
    assert not list(finished.glob("arms/*/run/checkpoints/iter_*"))  # nothing of a finished arm is kept but its facts


def test_a_finished_arm_is_never_run_again_and_a_lost_one_alone_is(root: Path, finished: Path) -> None:
    results = sorted(finished.glob("arms/*/result.json"))
    lost, kept = results[0], results[1:]
    before = lost.read_text()
    times = [file.stat().st_mtime_ns for file in kept]
    left = kept[0].parent / "run/checkpoints/iter_0000001"  # by a call that was killed behind its last word
    left.mkdir(parents=True)
    for path in sorted(lost.parent.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert main(["surrogate", "run", str(finished / "study.yaml"), "--out", str(finished)]) == 0
    assert [file.stat().st_mtime_ns for file in kept] == times
    again, first = json.loads(lost.read_text()), json.loads(before)
    assert again["curve"] == first["curve"]  # the same run, to the last digit
    assert not left.parent.exists()


def test_two_calls_do_not_work_in_one_folder(root: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with only_one(finished):
        assert main(["surrogate", "run", str(root / "study.yaml"), "--out", str(finished)]) == 2
    assert "another call is writing into" in capsys.readouterr().err
    assert main(["surrogate", "run", str(root / "study.yaml"), "--out", str(root / "train")]) == 2
    assert "holds other files" in capsys.readouterr().err


def test_a_study_that_cannot_resolve_its_question_says_so_and_stops(
    root: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = study_tree(root / "run.yaml", seeds=[1, 2], pilot_seeds=2, spread=0.02)
    path = written(root, tree)
    assert main(["surrogate", "run", str(path), "--out", str(root / "blind")]) == 2
    said = capsys.readouterr().err
    assert "THIS STUDY CANNOT RESOLVE ITS QUESTION" in said and "outcome.matters" in said and "--anyway" in said
    assert not list((root / "blind").glob("arms/*"))
    # 34 pairs find half a standard deviation in 80 % (printed tables): 0.02 / 2 = 0.01
    assert "it needs 34 seeds" in said
    assert main(["surrogate", "plan", str(path)]) == 0
    assert "it needs 34 seeds" in capsys.readouterr().out


def test_arms_that_do_the_same_are_no_study(root: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The gate of this controller lets nothing through, so it is static: no difference, and no spread of any."""
    grid = {"controller": {"static": {}, "gated": {"mixture.controller": "static", "mixture.settings": {"alpha": 0.2}}}}
    tree = study_tree(root / "run.yaml", seeds=[1, 2], pilot_seeds=2, grid=grid)
    tree["set"] = {"mixture.controller": "static"}
    path = written(root, tree)
    assert main(["surrogate", "run", str(path), "--out", str(root / "same")]) == 2
    assert "lose the same to the last digit" in capsys.readouterr().err
    assert main(["surrogate", "run", str(path), "--out", str(root / "same"), "--anyway"]) == 0
    assert "the same runs" in (root / "same/table.md").read_text()


def test_a_run_that_fails_is_named_with_its_last_words(root: Path, finished: Path, tmp_path: Path) -> None:
    from data_mixers.errors import DataError

    path = written(root, study_tree(root / "run.yaml", seeds=[1, 2], pilot_seeds=2, set={"optimizer.lr": 1e12}))
    study = read_study(path)
    jobs = jobs_of(study, arms_of(study, path))
    with pytest.raises(DataError, match=r"synthetic_share=0, seed 1: ended with exit code 5 .*log\.txt"):
        do_job(jobs, tmp_path, None, False, 0, lambda _: None)
