"""A run on a real Slurm, stopped by what clusters do: it goes on by itself, and is the run that was not stopped."""

import signal
from pathlib import Path

import pytest

from tests import tiny
from tests.slurm import training
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, data, run.yaml, and `straight`: the run without Slurm and without a stop."""
    root = tmp_path_factory.mktemp("slurm-training")
    config = training.prepare(root)
    tiny.train(config, f"run.dir={root / 'straight'}", nproc=2)
    return root


def test_at_its_wall_time_a_job_saves_is_requeued_and_goes_on(cluster: Cluster, root: Path, tmp_path: Path) -> None:
    job = training.job(cluster, root / "run.yaml", tmp_path / "run", "--time", "1")
    job.submit()
    job.wait("some steps", lambda: job.iteration() >= 12)
    # Held until Slurm gives the signal, which it does within 30 s: this run would be over before.
    ranks = job.ranks()
    assert sorted(node for node, _ in ranks) == ["node1", "node2"]
    for rank in ranks:
        cluster.kill(*rank, signal.SIGSTOP)
    held_at = job.iteration()
    job.wait("the signal", lambda: "syne: USR1 at" in job.log)
    for rank in ranks:
        cluster.kill(*rank, signal.SIGCONT)
    job.wait("the save", lambda: "requeue" in job.log)
    stopped_at = max(path.name for path in (job.run / "checkpoints").glob("iter_*"))
    assert held_at < int(stopped_at.removeprefix("iter_")) <= held_at + 3
    job.finished()
    assert job.log.count("syne: restart") == 2
    assert "finished" in job.log
    training.assert_same_run(job.run, root / "straight")
