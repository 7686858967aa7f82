"""What else computes on a GPU: evaluation, preflight, the timing of layouts; and what must leave it alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.evaluation import data_sets
from tests.evaluation.test_eval_command import SUITE
from tests.standin.test_on_card import on_card
from tools.evaluation.results import read_task

pytestmark = [pytest.mark.compiler, pytest.mark.slow]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tools")
    tiny.prepared(root)
    tiny.give_tokenizer(root)
    return root


def test_each_item_has_the_likelihoods_of_the_cpu(library: Path, root: Path, tmp_path: Path) -> None:
    data_sets.write_science(tmp_path / "data", 3)
    data_sets.write_mathematics(tmp_path / "data", 3)
    (tmp_path / "suite.yaml").write_text(SUITE)
    found: dict[str, list[Any]] = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        given = ("eval", root / "hf", "--suite", tmp_path / "suite.yaml", "--out", out, "--data", tmp_path / "data",
                 "--offline", "--device", device)  # fmt: skip
        if device == "cuda":
            on_card(library, "tools", *given)
        else:
            assert tiny.syne(*given).returncode == 0
        (folder,) = {path.parent.parent for path in out.rglob("tasks/*.json")}
        tasks = [read_task(folder, name) for name in ("syne_arc_easy", "syne_arc_challenge", "sciq")]
        found[device] = [item for task in tasks if task is not None for item in task.items]
    assert len(found["cpu"]) == 12
    for card, cpu in zip(found["cuda"], found["cpu"], strict=True):
        assert card.id == cpu.id
        assert card.likelihoods == pytest.approx(cpu.likelihoods, rel=1e-5)


def test_preflight_measures_cards(library: Path, root: Path, tmp_path: Path) -> None:
    given = (root / "run.yaml", "device=cuda", f"run.dir={tmp_path}")
    on_card(library, "tests.standin.small_preflight", *given, ranks=2, least=20)
    report = json.loads((tmp_path / "slurm/preflight.json").read_text())
    assert report["faults"] == [] and report["all_reduce_gbps"] > 0


def test_a_layout_is_timed_on_cards(library: Path, root: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "run.yaml", tmp_path / "result.json"
    told = (root / "run.yaml").read_text().replace("device: cpu", "device: cuda")
    config.write_text(told.replace(str(root / "run"), str(tmp_path / "run")))
    on_card(library, "tools.planner.measured_run", config, out, "--steps", 4, ranks=2)
    result = json.loads(out.read_text())
    assert (result["device"], result["steps"], result["world_size"]) == ("cuda", 3, 2)
