"""The ready studies: those at 1.1 B fit one node of eight H100s and have no fault; the small ones parse.

That those at 1.1 B read what their page makes is shown by tests/examples/test_tinyllama_studies.py.
"""

import json
from pathlib import Path

import pytest

from megatron_synE.config.load import load_config
from megatron_synE.model.llama import hf_config_of
from megatron_synE.model.presets import ARCHITECTURES
from tests.config.tiny_dataset import write_dataset
from tools.cli import main
from tools.planner.command import answer, job_of, places
from tools.planner.figures import read_efficiency
from tools.planner.options import PlanOptions
from tools.surrogate.arms import arms_of, check_jobs, jobs_of
from tools.surrogate.study import read_study

ROOT = Path(__file__).parents[2]
FOLDER = "examples/surrogate/tinyllama"
STUDIES = sorted(p.stem for p in (ROOT / FOLDER).glob("*.yaml") if p.stem != "base")
DISCIPLINES = ("astronomy", "biology", "chemistry", "computer_science")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Model and data of the shape that the studies name; thousands of tokens for billions."""
    (tmp_path / "models/TinyLlama_v1.1").mkdir(parents=True)
    config = json.dumps(hf_config_of(ARCHITECTURES["tinyllama_1.1b"]))
    (tmp_path / "models/TinyLlama_v1.1/config.json").write_text(config, encoding="utf-8")
    data = tmp_path / "data/tinyllama"
    write_dataset(data / "normal", {("zh", "web", "law"): 20000, ("en", "web", "computing"): 20000})
    for name in ("synthetic", "synthetic_sorted", "webinstruct", "cosmopedia"):
        write_dataset(data / name, {("synthetic", "qa", topic): 20000 for topic in DISCIPLINES})
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_at_one_billion_has_no_fault_and_fits_a_node(
    name: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(FOLDER) / f"{name}.yaml"
    assert main(["surrogate", "plan", str(path), "--no-data"]) == 0, capsys.readouterr().err
    study = read_study(path)
    arms = arms_of(study, path)
    assert len(study.seeds) >= 5 and len(arms) >= 2
    # by_topic: each discipline is a whole number of batches
    assert all(arm.tokens == pytest.approx(5e9, abs=512 * 2048) for arm in arms)
    check_jobs(study, path, jobs_of(study, arms)[:1], world_size=8, reads_data=False)
    config = load_config(study.base, list(arms[-1].overrides)).resolved
    options = PlanOptions(nodes="1", reads_data=False)
    (place,) = places(options)
    found = answer(config, job_of(config), place, read_efficiency(None), options)
    assert found["best"], found


def test_the_papers_studies_and_the_comparison_are_all_there() -> None:
    assert (
        sorted(["synthetic_or_not", "share", "order_ppl", "order_discipline", "corruption", "other_datasets"])
        == STUDIES
    )
    shares = read_study(ROOT / FOLDER / "share.yaml").grid["synthetic_share"]
    wrong = read_study(ROOT / FOLDER / "corruption.yaml").grid["corruption"]
    assert (min(shares), max(shares), min(wrong), max(wrong)) == (0.0, 0.4, 0.0, 0.7)
