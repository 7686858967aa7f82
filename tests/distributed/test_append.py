"""A stage with data of its own joins a run that is under way: what was read stays, and the run goes on with it."""

from pathlib import Path

import pytest
import yaml

from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule
from tests import tiny
from tests.data_mixers.orders import addresses, index_of
from tests.distributed.test_resume import assert_same_tensors, training_rows

OLD, NEW = 6, 4  # iterations
BOUNDARY = OLD * 8


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one stage whose topics share by the tokens present, and the file of a stage that brings a topic."""
    root = tmp_path_factory.mktemp("append")
    hf = tiny.hf_folder(root / "hf")
    tiny.manifest(root / "train", tiny.TWO_LANGUAGES)
    tiny.manifest(root / "joins", {("zh", "web", "food"): 6000}, seed=3)
    held = {("zh", "web", "law"): 300, ("en", "web", "computing"): 300}
    tiny.manifest(root / "held", held, role="validation", seed=9)
    tree = tiny.run_tree(root, hf=hf, tokens=OLD * 256, lr_schedule={"style": "constant", "decay_tokens": 0})
    tiny.write_run(root, tree)
    stage = {
        "name": "more",
        "tokens": NEW * 256,
        "languages": {"zh": 0.6, "en": 0.4},
        "manifests": [str(root / "joins")],
    }
    (root / "stage.yaml").write_text(yaml.safe_dump(stage))
    return root


def schedule_of(run: Path) -> Schedule:
    return Schedule.from_json((run / "schedule.json").read_text())


def appended(run: Path, stage: Path) -> str:
    """The override that `syne mix append` prints."""
    done = tiny.syne("mix", "append", run, "--stage", stage)
    assert done.returncode == 0, done.stderr
    assert f"the same data in the {BOUNDARY} samples both have" in done.stdout
    assert "new source zh/web/food" in done.stdout
    return done.stdout.splitlines()[-1].partition("run_config.yaml ")[2].strip("'")


def test_a_stage_appended_under_way_leaves_the_past_and_is_read_after_its_boundary(root: Path, tmp_path: Path) -> None:
    plain, run = tmp_path / "plain", tmp_path / "run"
    tiny.train(root / "run.yaml", f"run.dir={plain}")
    tiny.train(root / "run.yaml", f"run.dir={run}", "training.stop_after_iterations=3", code=75)
    override = appended(run, root / "stage.yaml")
    # As `mix append` prints it: the job's time slice is no part of the run's configuration.
    tiny.train(run / "run_config.yaml", override)
    old, new = Sampler(schedule_of(plain)), Sampler(schedule_of(run))
    assert addresses(new, 0, BOUNDARY) == addresses(old, 0, BOUNDARY)
    assert training_rows(run)[:OLD] == training_rows(plain)  # losses and norms, bit for bit
    counts = [row["samples_by_source"].get("zh/web/food", 0) for row in tiny.rows(run, "train")]
    assert counts[:OLD] == [0] * OLD
    assert counts[-1] == new.cursors(BOUNDARY + NEW * 8)[index_of(schedule_of(run), "zh/web/food")] > 0
    # The same as the run whose plan had both stages from the start.
    whole = tmp_path / "whole"
    tiny.train(root / "run.yaml", f"run.dir={whole}", override)
    assert schedule_of(whole) == schedule_of(run)
    assert_same_tensors(run / "checkpoints/iter_0000010", whole / "checkpoints/iter_0000010")
    forgotten = tiny.syne("train", "--config", root / "run.yaml", "--nproc", 1, f"run.dir={run}")
    assert forgotten.returncode == 2
    assert "were read already" in forgotten.stderr


def test_a_finished_run_goes_on_and_an_edited_past_is_refused(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    decays = ["lr_schedule={style: wsd, warmup_tokens: 256, decay_tokens: 512}"]
    tiny.train(root / "run.yaml", f"run.dir={run}", *decays)
    done = tiny.syne("mix", "append", run, "--stage", root / "stage.yaml")
    # The decay was over, and is not any more: what the rate jumps to is said.
    assert "learning rate of the next iteration: 0.0000e+00 -> 1.0000e-03" in done.stdout
    override = appended(run, root / "stage.yaml")
    go_on = ("train", "--config", run / "run_config.yaml", "--nproc", 1)
    edited = tiny.syne(*go_on, override, "data.stages.0.languages={zh: 0.3, en: 0.7}")
    assert edited.returncode == 2
    assert "were read already" in edited.stderr
    # As data of the whole run the new topic would have been in the first stage too.
    early = tiny.syne(*go_on, f"data.manifests=[{root}/train, {root}/joins]")
    assert early.returncode == 2
    assert "that stage's own manifests" in early.stderr
    tiny.train(run / "run_config.yaml", override)
    assert len(tiny.rows(run, "train")) == OLD + NEW


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokns": 1}, "data.stages.1.tokns"),
        ({"languages": {"zh": 0.5, "en": 0.4}}, "sum to 0.9"),
        ({"name": "adapt"}, "two stages are called 'adapt'"),
        ({"manifests": ["nowhere"]}, "nowhere"),
        ({"manifests": []}, "food"),
        ({"tokens": 256 * 4000}, "more often than allowed"),
    ],
)
def test_a_stage_that_does_not_fit_is_refused(
    root: Path, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    run = root / "begun"
    if not run.exists():
        tiny.train(root / "run.yaml", f"run.dir={run}", "training.stop_after_iterations=1", code=75)
    stage = yaml.safe_load((root / "stage.yaml").read_text())
    if changes == {"manifests": []}:
        stage["topics"] = {"zh": {"web": {"food": 1.0}}}  # a topic that nothing brings
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(stage | changes))
    done = tiny.syne("mix", "append", run, "--stage", tmp_path / "stage.yaml")
    assert done.returncode in (2, 3)
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_append_wants_one_entry(root: Path) -> None:
    for arguments in ([], ["--skip", "1:2", "--stage", root / "stage.yaml"]):
        done = tiny.syne("mix", "append", root, *arguments)
        assert (done.returncode, "either --skip" in done.stderr) == (2, True)
