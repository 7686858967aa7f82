"""The measurement of layouts as a job of two nodes."""

import json
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.slurm.cluster import Cluster

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.slow]
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def test_the_best_layouts_are_tried_on_two_nodes_and_one_that_fails_is_outlived(
    cluster: Cluster, tmp_path: Path
) -> None:
    tiny.manifest(tmp_path / "train", tiny.TWO_LANGUAGES)
    tree = tiny.run_tree(tmp_path, hf=tiny.hf_folder(tmp_path / "hf"), tokens=40 * 8 * 32, validation={"manifests": []})
    folder = tmp_path / "measure"
    done = tiny.syne(
        "plan", "--config", tiny.write_run(tmp_path, tree), "--card", "h100", "--nodes", 2, "--gpus-per-node", 1,
        "--measure", folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # An HF folder that is not there: a fault that both ranks see.
    candidate = folder / "candidate-2.yaml"
    candidate.write_text(candidate.read_text().replace(str(tmp_path / "hf"), str(tmp_path / "gone")))
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    cluster.run("sbatch", "--test-only", folder / "measure.sbatch")
    job = cluster.run("sbatch", "--parsable", "--export=ALL", folder / "measure.sbatch", env=environment).stdout.strip()

    def state() -> str:
        lines = cluster.jobs("--states=all", f"--jobs={job}")
        return lines[0].split()[1]

    cluster.wait("the end of the job", lambda: state() in OVER, seconds=420)
    log = (folder / f"measure-{job}.log").read_text()
    assert state() == "COMPLETED", log
    rows = json.loads((folder / "results.json").read_text())["candidates"]
    assert [row["name"] for row in rows if row["result"] is None] == ["candidate-2"], log
    assert {row["result"]["world_size"] for row in rows if row["result"]} == {2}
    assert "fastest: " in log and (folder / "run.yaml").exists()
    assert sys.executable in (folder / "measure.sbatch").read_text()
