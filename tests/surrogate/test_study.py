"""study.yaml: every fault in one message with its key, and what each recipe factor makes of the base run."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_mixers.errors import ConfigError
from megatron_synE.config.load import load_config
from tests import tiny
from tools.cli import main
from tools.surrogate.arms import arms_of, jobs_of
from tools.surrogate.prepare import planned_variants
from tools.surrogate.study import read_study

SOURCES = {
    ("zh", "web", "law"): 3000,
    ("zh", "web", "novel"): 2000,
    ("en", "web", "computing"): 3000,
    ("synthetic", "qa", "algebra"): 1000,
    ("synthetic", "qa", "physics"): 3000,
}


def base(root: Path, **sections: Any) -> Path:
    tiny.manifest(root / "train", SOURCES)
    held = {("zh", "web", "law"): 300, ("zh", "web", "novel"): 300, ("synthetic", "qa", "algebra"): 300}
    tiny.manifest(root / "held", held, role="validation")
    languages = {"zh": 0.2, "en": 0.6, "synthetic": 0.2}
    stages = [{"name": "adapt", "tokens": 1024, "languages": languages}]
    tree = tiny.run_tree(root, hf=None, model={"preset": "tiny"}, **sections)
    tree["data"]["stages"] = stages
    return tiny.write_run(root, tree)


def study_tree(base_file: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "share", "question": "Does it help?", "base": str(base_file), "seeds": [1, 2, 3],
        "grid": {"synthetic_share": [0.0, 0.4]},
        "outcome": {"groups": {"qa": ["synthetic/*"], "zh": ["zh/*"]}, "primary": "qa", "matters": 0.01},
    } | changes  # fmt: skip


def written(root: Path, tree: dict[str, Any]) -> Path:
    file = root / "study.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return file


def languages_of(base_file: Path, overrides: tuple[str, ...]) -> dict[str, float]:
    return load_config(base_file, list(overrides)).resolved.data.stages[0].languages


def folders(path: Path) -> dict[tuple[str, int], str]:
    study = read_study(path)
    return {(job.arm, job.seed): job.folder for job in jobs_of(study, arms_of(study, path))}


def test_every_fault_is_said_at_once_with_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = study_tree(tmp_path / "nowhere.yaml", seeds=[1, 1], pilot_seeds=5)
    tree["grid"] = {"synthetic_share": [0.2, 1.5], "ordr": ["random"], "order": ["easy_first"], "corruption": [0.3]}
    tree["outcome"]["primary"] = "science"
    assert main(["surrogate", "run", str(written(tmp_path, tree))]) == 2
    said = capsys.readouterr().err
    for key in (
        "outcome.primary: 'science'", "seeds: [1, 1]", "pilot_seeds: 5", "base: ", "grid.synthetic_share: 1.5",
        "grid.ordr: no recipe factor and no section.key; did you mean order?", "grid.order: 'easy_first'",
        "corruption: missing",
    ):  # fmt: skip
        assert key in said, said
    assert "8 faults" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"synthetic_share": [0, 0.0]}}, "grid.synthetic_share: holds level 0 twice"),
        ({"grid": {"optimizer.lr": [1.0000001e-3, 1e-3]}}, "grid.optimizer.lr: holds level 0.001 twice"),
        ({"grid": {"order": {"a": {}, "b": {}}}}, "grid.order: its levels are a list of values"),
        ({"grid": {"synthetic_share": [0.1, 0.2], "text": {"a": {"data.stages.0.languages": {"zh": 1.0}}}}},
         "arms synthetic_share=0.1,text=a and synthetic_share=0.2,text=a are the same run"),
        ({"outcome": {"groups": {"qa": []}, "primary": "qa", "matters": 0.1}}, "outcome.groups.qa: "),
    ],
)  # fmt: skip
def test_a_grid_that_would_train_the_same_twice_or_measure_nothing_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["surrogate", "plan", str(written(tmp_path, study_tree(base(tmp_path), **changes)))]) == 2
    assert message in capsys.readouterr().err


def test_arms_with_other_held_out_sets_are_no_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = base(tmp_path, validation={"manifests": [str(tmp_path / "held")]})
    tiny.manifest(tmp_path / "more", {("synthetic", "qa", "physics"): 300}, role="validation")
    both = [str(tmp_path / "held"), str(tmp_path / "more")]
    grid = {"text": {"a": {}, "b": {"validation.manifests": both}}}
    assert main(["surrogate", "plan", str(written(tmp_path, study_tree(file, grid=grid)))]) == 2
    assert "synthetic/qa/physics@holdout is held out in one of text=a and text=b only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "give the study's YAML file"),
        ("- a", "expected the study's keys with their values, found a list"),
        ("grid: &a {x: *a}", "contains itself"),
        ("name: !!binary aGk=", "name"),
    ],
)
def test_a_file_that_is_no_study_is_refused_as_one(
    tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    assert main(["surrogate", "run", str(file)]) == 2
    assert message in capsys.readouterr().err


def test_schema_faults_name_their_key_and_the_nearest_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = study_tree(tmp_path / "run.yaml", seeds=["one", 2], quest="?")
    del tree["question"], tree["outcome"]["matters"]
    tree["outcome"]["powr"] = 0.5
    assert main(["surrogate", "plan", str(written(tmp_path, tree))]) == 2
    said = capsys.readouterr().err
    for text in (
        "question: missing", "outcome.matters: missing", "outcome.powr: unknown key; did you mean outcome.power?",
        "quest: unknown key; did you mean question?", "seeds.0: ",
    ):  # fmt: skip
        assert text in said, said


def test_faults_of_the_runs_are_collected_over_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = base(tmp_path)
    tree = study_tree(file, grid={"optimizer.lr": [1e-3, 1e-6], "mixture.controller": ["static", "syne"]})
    tree["outcome"]["groups"]["code"] = ["code/*"]
    tree["set"] = {"training.micro_batch_size": 3}
    assert main(["surrogate", "plan", str(written(tmp_path, tree))]) == 2
    said = capsys.readouterr().err
    assert "training.global_batch_size" in said  # 3 does not divide 8: of all arms, said once
    assert said.count("training.global_batch_size") == 1
    assert "lr_schedule.start_lr" in said
    assert "mixture.controller=syne and 1 more)" in said  # of the two arms with the lower rate, or of the two loops


def test_a_share_of_synthetic_text_shrinks_the_others_in_proportion(tmp_path: Path) -> None:
    file = base(tmp_path)
    tree = study_tree(file, grid={"synthetic_share": [0.0, 0.2, 0.4]})
    path = written(tmp_path, tree)
    none, some, much = arms_of(read_study(path), path)
    assert [arm.name for arm in (none, some, much)] == [
        "synthetic_share=0", "synthetic_share=0.2", "synthetic_share=0.4"
    ]  # fmt: skip
    assert languages_of(file, none.overrides) == pytest.approx({"zh": 0.25, "en": 0.75})
    assert languages_of(file, much.overrides) == pytest.approx({"zh": 0.15, "en": 0.45, "synthetic": 0.4})
    assert languages_of(file, some.overrides) == pytest.approx({"zh": 0.2, "en": 0.6, "synthetic": 0.2})


def test_by_topic_reads_one_discipline_after_another_as_long_as_its_text(tmp_path: Path) -> None:
    file = base(tmp_path)
    path = written(tmp_path, study_tree(file, grid={"order": ["by_topic", "random"], "synthetic_share": [0.1, 0.2]}))
    arms = arms_of(read_study(path), path)
    stages = load_config(file, list(arms[1].overrides)).resolved.data.stages
    assert [stage.name for stage in stages] == ["adapt, algebra", "adapt, physics"]
    sizes = [entry.num_tokens for entry in tiny.manifest(tmp_path / "again", SOURCES).sources][-2:]
    assert 0.125 < sizes[0] / sum(sizes) < 0.375  # so one of the four batches of 256 tokens, and no token more
    assert [stage.tokens for stage in stages] == [256, 768]
    assert [stage.topics["synthetic"] for stage in stages] == [{"qa": {"algebra": 1.0}}, {"qa": {"physics": 1.0}}]


def test_the_grid_is_every_combination_and_levels_may_be_names(tmp_path: Path) -> None:
    file = base(tmp_path)
    grid = {"optimizer.lr": [1e-3, 2e-3], "text": {"a": {"run2.x": 1}, "b": {"training.clip_grad": 2.0}}}
    path = written(tmp_path, study_tree(file, grid=grid))
    with pytest.raises(ConfigError, match=r"grid \(optimizer.lr=0.001,text=a\): (.|\n)*run2"):
        arms_of(read_study(path), path)
    grid["text"]["a"] = {"training.clip_grad": 1.5}
    path = written(tmp_path, study_tree(file, grid=grid, reference=["optimizer.lr=0.002,text=b"]))
    arms = arms_of(read_study(path), path)
    assert [arm.name for arm in arms] == [
        f"optimizer.lr={lr},text={text}" for lr in ("0.001", "0.002") for text in "ab"
    ]
    last = load_config(file, list(arms[-1].overrides)).resolved
    assert (last.optimizer.lr, last.training.clip_grad) == (2e-3, 2.0)


def test_a_job_is_known_by_what_decides_it(tmp_path: Path) -> None:
    """More arms, seeds or another place change no folder; another rate, seed or other data does."""
    file = base(tmp_path)
    path = written(tmp_path, study_tree(file))
    before = folders(path)
    grown = study_tree(file, grid={"synthetic_share": [0.0, 0.2, 0.4]}, seeds=[1, 2, 3, 4])
    path = written(tmp_path, grown)
    after = folders(path)
    assert len(after) == 12 and before.items() <= after.items()
    assert len(set(after.values())) == 12
    path = written(tmp_path, study_tree(file, set={"optimizer.lr": 2e-3}))
    other = folders(path)
    assert not set(other.values()) & set(before.values())
    (tmp_path / "run").mkdir()
    (tmp_path / "run/attempts.json").write_text("{}")  # what a start leaves in a folder is no part of it
    assert folders(written(tmp_path, study_tree(file))) == before
    tiny.manifest(tmp_path / "train", SOURCES, seed=5)
    path = written(tmp_path, study_tree(file))
    new_data = folders(path)
    assert not set(new_data.values()) & set(before.values())


def test_other_weights_of_the_same_size_are_another_start(tmp_path: Path) -> None:
    """A study that was cut would go on from the new ones, and compare its arms with those from the old."""
    weights = tiny.hf_folder(tmp_path / "hf", num_hidden_layers=1)
    path = written(tmp_path, study_tree(base(tmp_path, init={"from": "hf", "path": str(weights)})))
    before = folders(path)
    file = weights / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert not set(folders(path).values()) & set(before.values())
    content[-1] ^= 1
    file.write_bytes(content)
    assert folders(path) == before


def test_wrong_pairs_are_known_by_content_wherever_the_study_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was moved, or named from another one, would be trained again from its first run on."""
    monkeypatch.chdir(tmp_path)
    section = {"input": "pairs.jsonl", "tokenizer": "models/small", "source": "qa", "topic": "algebra"}
    grid = {"corruption": [0.0, 0.3]}
    path = written(tmp_path, study_tree(base(tmp_path), grid=grid, corruption=section))
    study = read_study(path)

    def made(out: Path, seed: int) -> list[str]:
        variants = planned_variants(study, out)
        for level, folder in variants.items():
            tiny.manifest(folder, {("synthetic", "qa", "algebra"): 500}, seed=seed + (level == 0.3))
        return [job.folder for job in jobs_of(study, arms_of(study, path, variants=variants))]

    before = made(Path("out/data"), 1)
    assert made(tmp_path / "out/data", 1) == made(Path("moved/data"), 1) == before
    assert not set(made(Path("out/data"), 7)) & set(before)
