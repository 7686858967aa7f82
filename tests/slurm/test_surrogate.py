"""A study as a job array on a real Slurm gives what it gives here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.surrogate.test_study import base, study_tree, written

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


def test_a_study_as_an_array_has_the_curves_of_a_local_one(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    file = base(tmp_path)
    tree = study_tree(file, seeds=[1, 2], pilot_seeds=2, grid={"optimizer.lr": [1e-3, 2e-3]})
    command = [sys.executable, "-m", "tools", "surrogate", "run", str(written(tmp_path, tree)), "--anyway"]
    array, local = tmp_path / "array", tmp_path / "local"
    cluster.run(*command, "--out", str(array), "--slurm-tasks", "2", "--slurm-mem-gb", "6", cwd=ROOT, timeout=600)
    subprocess.run([*command, "--out", str(local)], cwd=ROOT, check=True, capture_output=True, timeout=600)
    jobs = [json.loads((out / "results.json").read_text())["jobs"] for out in (array, local)]
    for here, there in zip(*jobs, strict=True):
        assert (here["arm"], here["seed"], here["curve"]) == (there["arm"], there["seed"], there["curve"])
    assert list(array.glob(".work/arms/slurm/*/slurm_logs/*.out")) or list(array.glob(".work/*/slurm/*"))
