"""The forgetting guard in a run: English gets worse, its share rises by its step, and stops leave no trace."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from data_mixers.manifest import TokenizerIdentity
from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule
from megatron_synE.data.probe import SCHEMA_VERSION, Probe, ProbeItem, write_probe
from tests import tiny
from tests.data_mixers.orders import index_of
from tests.distributed.test_resume import assert_same_run

TRAIN = {("zh", "web", "law"): 9000, ("zh", "web", "food"): 9000, ("en", "web", "computing"): 9000}
GUARD = {"language": "en", "action": "raise", "step": 0.04, "max_rise": 0.06}
ITERATIONS = 10
NUM_ITEMS = 12


def probe_of(seed: int = 0) -> Probe:
    """Items of random tokens, so that a random model is right about some of them."""
    random = torch.Generator().manual_seed(seed)
    items = []
    for number in range(NUM_ITEMS):
        context = torch.randint(3, 256, (int(torch.randint(1, 9, (1,), generator=random)),), generator=random).tolist()
        choices = []
        for _ in range(2 + number % 3):
            length = int(torch.randint(1, 6, (1,), generator=random))
            choices.append((*context, *torch.randint(3, 256, (length,), generator=random).tolist(), tiny.EOS))
        items.append(ProbeItem(choices=tuple(choices), answer=number % 2))
    identity = TokenizerIdentity(digest="0" * 64, vocab_size=256, eos_id=tiny.EOS, bos_id=1)
    return Probe(schema_version=SCHEMA_VERSION, language="en", tokenizer=identity, items=tuple(items))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten iterations, validation at every second; held-out English has words that no text to train on has."""
    root = tmp_path_factory.mktemp("guard")
    hf = tiny.hf_folder(root / "hf")
    common, rare = range(3, 128), range(128, 256)
    tiny.manifest(root / "train", TRAIN, ids=common)
    held = {("zh", "web", "law"): 600, ("zh", "web", "food"): 600}
    tiny.manifest(root / "held", held, role="validation", seed=9, ids=common)
    tiny.manifest(root / "held_en", {("en", "web", "computing"): 1200}, role="validation", seed=10, ids=rare)
    write_probe(probe_of(), root / "probe.json")
    tree = tiny.run_tree(
        root,
        hf=hf,
        tokens=ITERATIONS * 256,
        optimizer={"lr": 3e-3},
        mixture={
            "controller": "syne",
            "reweight_interval_tokens": 4 * 256,
            "settings": {"ema": 1.0},
            "guard": GUARD | {"probe": str(root / "probe.json")},
        },
        validation={"manifests": [str(root / "held"), str(root / "held_en")], "interval_tokens": 2 * 256},
    )
    tiny.write_run(root, tree)
    return root


@pytest.fixture(scope="module")
def straight(root: Path) -> Path:
    run = root / "straight"
    done = tiny.train(root / "run.yaml", f"run.dir={run}", nproc=2)
    (run / "stderr").write_text(done.stderr)
    return run


def test_english_that_gets_worse_gains_share_step_by_step_up_to_the_bound(straight: Path) -> None:
    rows = tiny.rows(straight, "guard")
    assert [row["iteration"] for row in rows] == [0, 2, 4, 6, 8, 10]
    # Inside its noise at 2, worse from 4 on; what is decided at t holds from iteration t + 2, and 10 is the end.
    assert [row["worse"] for row in rows] == [[], [], ["loss"], ["loss"], ["loss"], ["loss"]]
    assert [row["rise"] for row in rows] == [0.0, 0.0, 0.04, 0.06, 0.06, 0.06]
    assert [row["start_sample"] for row in rows] == [None, None, 6 * 8, 8 * 8, None, None]
    schedule = Schedule.from_json((straight / "schedule.json").read_text())
    phases = [(phase.kind, phase.start_sample) for phase in schedule.phases]
    assert phases == [("stage", 0), ("guard", 48), ("guard", 64)]  # at 48 the controller moved topics too
    weights = [{name: weight / 2**32 for name, weight in phase.weights} for phase in schedule.phases]
    assert [w["en/web/computing"] for w in weights] == pytest.approx([0.8, 0.84, 0.86], abs=1e-9)
    (reweight,) = tiny.rows(straight, "reweight")
    assert reweight["start_sample"] == 48
    for w, zh in zip(weights[1:], (0.16, 0.14), strict=True):
        assert w["zh/web/law"] == pytest.approx(zh * reweight["ratios"]["law"], abs=1e-9)
    stderr = (straight / "stderr").read_text()
    assert "above the first validation's, more than its noise" in stderr
    assert "guard: from sample 48 on en has 0.04 above its planned share" in stderr
    read = Sampler(schedule).cursors(schedule.num_samples)
    assert (
        tiny.rows(straight, "train")[-1]["samples_by_source"]["en/web/computing"]
        == read[index_of(schedule, "en/web/computing")]
    )


def test_the_probe_is_answered_as_transformers_answers_it(root: Path, straight: Path) -> None:
    """The likelihood of each choice given its context and nothing else, computed by another implementation."""
    model = AutoModelForCausalLM.from_pretrained(root / "hf", dtype=torch.float32).eval()
    right = []
    for item in probe_of().items:
        common = 0  # tokens that all choices share
        while len({choice[common] for choice in item.choices}) == 1:
            common += 1
        scores = []
        for choice in item.choices:
            with torch.no_grad():
                logits = model(torch.tensor([choice])).logits[0, :-1].log_softmax(-1)
            targets = torch.tensor(choice[1:])
            scores.append(float(logits.gather(1, targets[:, None])[common - 1 :].sum()))
        right.append(int(max(range(len(scores)), key=scores.__getitem__) == item.answer))
    assert 0 < sum(right) < NUM_ITEMS
    assert tiny.rows(straight, "guard")[0]["answers"]["correct"] == right


def test_stopped_before_a_decision_holds_it_goes_on_bit_for_bit(root: Path, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "sliced"
    overrides = [f"run.dir={run}"]
    # decided at 4, holds from 6 on: stopped at 5, and again where a validation is due
    tiny.train(root / "run.yaml", *overrides, "training.stop_after_iterations=5", nproc=2, code=75)
    assert tiny.rows(run, "guard")[-1]["start_sample"] == 48
    tiny.train(root / "run.yaml", *overrides, "training.stop_after_iterations=3", nproc=2, code=75)
    tiny.train(root / "run.yaml", *overrides, nproc=2)
    for kind in ("guard", "observation", "reweight"):
        assert tiny.rows(run, kind) == tiny.rows(straight, kind)
    assert (run / "schedule.json").read_text() == (straight / "schedule.json").read_text()
    assert_same_run(run, straight)


def test_a_warning_moves_nothing(root: Path, straight: Path, tmp_path: Path) -> None:
    """Tensor-parallel, so that the probe is scored over split weights too."""
    run = tmp_path / "warned"
    quiet = ["mixture.guard.action=warn", "mixture.controller=static", "parallel.tensor_model_parallel_size=2"]
    done = tiny.train(root / "run.yaml", f"run.dir={run}", *quiet, nproc=2)
    rows = tiny.rows(run, "guard")
    assert [bool(row["worse"]) for row in rows] == [False, False, True, True, True, True]
    assert {row["rise"] for row in rows} == {0.0}
    assert "above the first validation's, more than its noise" in done.stderr
    assert len(Schedule.from_json((run / "schedule.json").read_text()).phases) == 1
    assert rows[0]["answers"]["correct"] == tiny.rows(straight, "guard")[0]["answers"]["correct"]
    replayed = tiny.syne("mix", "replay", run)
    assert (replayed.returncode, "no decision" in replayed.stdout) == (0, True)


def test_replay_takes_the_decisions_again(straight: Path) -> None:
    done = tiny.syne("mix", "replay", straight)
    assert done.returncode == 0, done.stdout
    assert "6 of 6 decisions as recorded" in done.stdout  # five of the guard, one of the controller
    other = tiny.syne("mix", "replay", straight, "mixture.guard.step=0.02")
    assert other.returncode == 3
    assert "0.020000" in other.stdout


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["mixture.guard.step=0"], "guard.step"),
        (["mixture.guard.stepp=0.1"], "did you mean mixture.guard.step"),
        (["mixture.guard.max_rise=0.2"], "mixture.guard.max_rise"),
        (["mixture.guard.language=de", "mixture.guard.probe=null"], "mixture.guard.language"),
        (["data.stages.0.languages={en: 1.0}"], "mixture.guard.language"),
        (["mixture.controller=static", "validation.interval_tokens=null"], "validation.interval_tokens"),
        (["mixture.guard.language=zh"], "is of language en"),
        (["mixture.guard.probe=nowhere.json"], "syne data probe"),
        (["training.seq_length=8"], "can score in one piece"),
        (["mixture.controller=static", "validation={manifests: []}"], "mixture.guard.probe"),
    ],
)
def test_a_guard_without_sense_is_refused(root: Path, tmp_path: Path, overrides: list[str], named: str) -> None:
    done = tiny.syne("train", "--config", root / "run.yaml", f"run.dir={tmp_path}", *overrides)
    assert done.returncode in (2, 3)
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_probe_of_another_tokenizer_is_refused(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "probe.json"
    file.write_text((root / "probe.json").read_text().replace("0" * 64, "1" * 64))
    done = tiny.syne("train", "--config", root / "run.yaml", f"run.dir={tmp_path}", f"mixture.guard.probe={file}")
    assert done.returncode == 2
    assert "another tokenizer" in done.stderr


def test_the_default_only_warns(root: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load((root / "run.yaml").read_text())
    del tree["mixture"]
    file = tiny.write_run(tmp_path, tree)
    done = tiny.train(file, f"run.dir={tmp_path / 'plain'}", "training.stop_after_iterations=5", code=75)
    rows = tiny.rows(tmp_path / "plain", "guard")
    assert [(row["set"], row["rise"]) for row in rows] == [("en", 0.0)] * 3
    assert rows[-1]["worse"] == ["loss"]
    assert "above the first validation's, more than its noise" in done.stderr
