"""The closed loop: a topic that gets worse gains share, and a run that is stopped anywhere goes on bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule
from tests import tiny
from tests.data_mixers.orders import addresses
from tests.distributed.test_resume import assert_same_run

TOPICS = {("zh", "web", "law"): 9000, ("zh", "web", "food"): 9000, ("zh", "web", "music"): 9000}
BOOKS = {("zh", "book", "novel"): 6000, ("en", "web", "computing"): 9000}
DECISIONS = [4, 8, 12]  # iterations; each holds from two iterations later on


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen iterations; held-out law has words that no text to train on has, so that training makes it worse."""
    root = tmp_path_factory.mktemp("mixture")
    hf = tiny.hf_folder(root / "hf")
    common, rare = range(3, 128), range(128, 256)
    tiny.manifest(root / "train", TOPICS | BOOKS, ids=common)
    held = {("zh", "web", "food"): 2000, ("zh", "web", "music"): 2000, ("en", "web", "computing"): 500}
    tiny.manifest(root / "held", held, role="validation", seed=9, ids=common)
    tiny.manifest(root / "held_law", {("zh", "web", "law"): 2000}, role="validation", seed=10, ids=rare)
    tree = tiny.run_tree(
        root,
        hf=hf,
        optimizer={"lr": 3e-3},
        data={
            "stages": [
                {
                    "name": "adapt",
                    "tokens": 16 * 256,
                    "languages": {"zh": 0.8, "en": 0.2},
                    "sources": {"zh": {"web": 0.75, "book": 0.25}},
                }
            ],
            "num_workers": 1,
        },
        mixture={"controller": "syne", "reweight_interval_tokens": 4 * 256, "settings": {"ema": 1.0}},
        validation={"manifests": [str(root / "held"), str(root / "held_law")], "interval_tokens": 2 * 256},
    )
    tiny.write_run(root, tree)
    return root


@pytest.fixture(scope="module")
def straight(root: Path) -> Path:
    run = root / "straight"
    tiny.train(root / "run.yaml", f"run.dir={run}", nproc=2)
    return run


def law_after(run: Path) -> list[float]:
    return [row["ratios"]["law"] for row in tiny.rows(run, "reweight") if row["group"] == "zh/web"]


def test_a_topic_that_gets_worse_gains_share_within_two_intervals(straight: Path) -> None:
    ppl = [row["ppl"] for row in tiny.rows(straight, "validation") if row["set"] == "zh/web/law@holdout"]
    assert ppl[-1] > ppl[0]  # it did get worse
    reweights = tiny.rows(straight, "reweight")
    assert [(row["iteration"], row["start_sample"]) for row in reweights] == [(i, (i + 2) * 8) for i in DECISIONS]
    assert {row["group"] for row in reweights} == {"zh/web"}  # en/web has one topic, books do not trade
    assert law_after(straight)[1] > 1 / 3 + 0.01


def test_the_samples_follow_the_decisions_and_leave_the_language_alone(straight: Path) -> None:
    schedule = Schedule.from_json((straight / "schedule.json").read_text())
    assert [phase.end_sample for phase in schedule.phases] == [6 * 8, 10 * 8, 14 * 8, 16 * 8]
    for phase, row in zip(schedule.phases[1:], tiny.rows(straight, "reweight"), strict=True):
        weights = {name: weight / 2**32 for name, weight in phase.weights}
        assert weights["en/web/computing"] == pytest.approx(0.2, abs=1e-9)
        assert weights["zh/book/novel"] == pytest.approx(0.2, abs=1e-9)
        for topic, share in row["ratios"].items():
            assert weights[f"zh/web/{topic}"] == pytest.approx(0.6 * share, abs=1e-9)
    counts = tiny.rows(straight, "train")[-1]["samples_by_source"]
    expected = Sampler(schedule).cursors(schedule.num_samples)
    assert counts == {source.name: count for source, count in zip(schedule.sources, expected, strict=True)}
    assert sum(counts.values()) == 128


def test_stopped_in_a_validation_and_before_a_decision_holds_it_goes_on_bit_for_bit(
    root: Path, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "sliced"
    overrides = [f"run.dir={run}"]
    # validations at 0, 2, 4: the third, whose losses decide, is interrupted after its first micro-batches
    script = Path(__file__).with_name("stop_in_validation.py")
    tiny.launched(2, script, 3, root / "run.yaml", *overrides, code=75)
    assert not tiny.rows(run, "reweight")
    # resumed at 4, it stops at 9: what was decided at 8 holds from 10 on
    tiny.train(root / "run.yaml", *overrides, "training.stop_after_iterations=5", nproc=2, code=75)
    assert tiny.rows(run, "reweight")[-1]["start_sample"] == 80
    # stops at 12, where a validation is due: not begun, but redone after the restart
    tiny.train(root / "run.yaml", *overrides, "training.stop_after_iterations=3", nproc=2, code=75)
    tiny.train(root / "run.yaml", *overrides, nproc=2)
    for kind in ("observation", "reweight", "topic_share"):
        assert tiny.rows(run, kind) == tiny.rows(straight, kind)
    assert (run / "schedule.json").read_text() == (straight / "schedule.json").read_text()
    assert_same_run(run, straight)


def test_a_validation_that_is_done_again_after_a_kill_is_told_once(root: Path, straight: Path, tmp_path: Path) -> None:
    """Stopped at 8, before the validation there; what resumed dies at 9, with the validation done and nothing saved."""
    run = tmp_path / "killed"
    overrides = [f"run.dir={run}", "checkpoint.keep_last=null"]
    tiny.train(root / "run.yaml", *overrides, "training.stop_after_iterations=8", nproc=2, code=75)
    tiny.train(root / "run.yaml", *overrides, "training.stop_after_iterations=1", nproc=2, code=75)
    shutil.rmtree(run / "checkpoints" / "iter_0000009")
    tiny.train(root / "run.yaml", *overrides, "training.stop_after_iterations=1", nproc=2, code=75)
    for kind in ("validation", "observation", "reweight", "topic_share", "guard"):
        expected = [row for row in tiny.rows(straight, kind) if row["iteration"] < 10]
        assert expected and tiny.rows(run, kind) == expected
    assert [row["iteration"] for row in tiny.rows(run, "validation_time")] == [0, 2, 4, 6, 8]
    assert [row["iteration"] for row in tiny.rows(run, "train")] == list(range(1, 10))


def test_another_layout_follows_the_decisions_it_finds(root: Path, straight: Path, tmp_path: Path) -> None:
    """Decided on two ranks, read on one: the order of the data is that of the stored decisions."""
    run = tmp_path / "one"
    overrides = [f"run.dir={run}"]
    tiny.train(root / "run.yaml", *overrides, "training.stop_after_iterations=11", nproc=2, code=75)
    tiny.train(root / "run.yaml", *overrides, "training.stop_after_iterations=1", nproc=1, code=75)
    stored, full = (Schedule.from_json((folder / "schedule.json").read_text()) for folder in (run, straight))
    assert stored.past_digest(14 * 8) == full.past_digest(14 * 8)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["mixture.reweight_interval_tokens=null"], "mixture.reweight_interval_tokens"),
        (["mixture.reweight_interval_tokens=768"], "multiple of validation.interval_tokens"),
        (["validation.manifests=[]"], "validation.manifests"),
        (["mixture.settings.alpha=1.5"], "alpha"),
        (["mixture.settings.alfa=0.1"], "alfa"),
    ],
)
def test_settings_that_do_not_fit_are_refused(root: Path, tmp_path: Path, overrides: list[str], named: str) -> None:
    done: Any = tiny.syne("train", "--config", root / "run.yaml", f"run.dir={tmp_path}", *overrides)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_mix_replays_a_run_plans_it_and_tells_it_from_its_plan(root: Path, straight: Path, tmp_path: Path) -> None:
    done = tiny.syne("mix", "replay", straight)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 decisions as recorded" in done.stdout
    other = tiny.syne("mix", "replay", straight, "mixture.settings.max_shift=0.01")
    assert other.returncode == 3
    assert "0 of 3 decisions as recorded" in other.stdout
    planned = tiny.syne("mix", "plan", "--config", root / "run.yaml")
    assert planned.returncode == 0, planned.stderr
    # 128 samples of which 0.8 * 0.75 / 3 are law: 25 or 26 of 32 tokens
    law = next(line for line in planned.stdout.splitlines() if "zh/web/law" in line)
    assert "800" in law or "832" in law
    assert tiny.syne("mix", "diff", straight, straight / "schedule.json").stdout == "equal\n"
    stopped = tmp_path / "stopped"
    tiny.train(root / "run.yaml", f"run.dir={stopped}", "training.stop_after_iterations=1", code=75)
    differs = tiny.syne("mix", "diff", stopped, straight)
    assert differs.returncode == 3
    assert "48" in differs.stdout.splitlines()[0]  # the first decision holds from sample 48 on
    missing = tiny.syne("mix", "replay", tmp_path / "nowhere")
    assert missing.returncode == 3
    assert "Traceback" not in missing.stderr


def test_a_skipped_range_is_recorded_and_its_samples_are_never_read(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "spiked"
    overrides = [f"run.dir={run}", "mixture.controller=static"]
    tiny.train(root / "run.yaml", *overrides, "training.stop_after_iterations=5", code=75)
    before = Schedule.from_json((run / "schedule.json").read_text())
    read_already = tiny.syne("mix", "append", run, "--skip", "39:60")
    assert read_already.returncode == 2
    assert "40" in read_already.stderr
    checked = tiny.syne("mix", "append", run, "--skip", "48:64")
    assert checked.returncode == 0, checked.stderr
    override = checked.stdout.splitlines()[-1].rpartition(" ")[2].strip("'")
    assert override == 'data.skip_samples=["48:64"]'
    tiny.train(root / "run.yaml", *overrides, override, "training.stop_after_iterations=5", code=75)
    after = Schedule.from_json((run / "schedule.json").read_text())
    old, new = addresses(Sampler(before), 0, 128), addresses(Sampler(after), 0, 112)
    assert new == old[:48] + old[64:]
    tiny.train(root / "run.yaml", *overrides, override)
    last = tiny.rows(run, "train")[-1]
    assert sum(last["samples_by_source"].values()) == last["consumed_samples"]  # what was left out was not read
    # Forgetting the skip would change what was read: refused.
    done: Any = tiny.syne("train", "--config", root / "run.yaml", "--nproc", 1, *overrides)
    assert done.returncode == 2
    assert "were read already" in done.stderr
