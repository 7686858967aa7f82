"""A run on a real Slurm, stopped by what clusters do: it goes on by itself, and is the run that was not stopped."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from megatron_synE import exit_codes
from tests import tiny
from tests.slurm import training
from tests.slurm.cluster import Cluster
from tests.slurm.side_by_side import side_by_side
from tests.slurm.training import Job

pytestmark = pytest.mark.slurm
Scenario = Callable[[Cluster, Path, Path], None]
"""Given a cluster, the folder with the run's parts, and a folder of its own."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, data, run.yaml, and `straight`: the run without Slurm and without a stop."""
    root = tmp_path_factory.mktemp("slurm-training")
    config = training.prepare(root)
    tiny.train(config, f"run.dir={root / 'straight'}", nproc=2)
    return root


def at_its_wall_time_a_job_saves_is_requeued_and_goes_on(cluster: Cluster, root: Path, folder: Path) -> None:
    # Slurm gives the signal 15 to 45 s before the end; held until then, as this run would be over before.
    job = training.job(cluster, root / "run.yaml", folder / "run", "--time", "2").submit()
    held_at = job.hold(12)
    job.wait("the signal", lambda: "syne: USR1 at" in job.log)
    job.release()
    job.wait("the save", lambda: "requeue" in job.log)
    assert held_at < job.newest() <= held_at + 3
    job.finished()
    assert job.log.count("syne: restart") == 2
    assert "finished" in job.log
    training.assert_same_run(job.run, root / "straight")


def a_preempted_job_saves_in_its_grace_time(cluster: Cluster, root: Path, folder: Path) -> None:
    job = both_nodes(cluster, root, folder)
    job.submit("--partition=low")
    held_at = job.hold(12)  # SLURM's TERM comes with a CONT
    cluster.run("sbatch", "--partition=main", "--nodes=2", "--exclusive", "--wrap", "true", cwd=job.run.parent)
    job.wait("the save", lambda: job.newest() > held_at)
    assert held_at < job.newest() <= held_at + 3
    job.wait_for_restart(1)
    job.finished()
    training.assert_same_run(job.run, root / "straight")


def usr2_to_the_script_saves_and_stops_for_good(cluster: Cluster, root: Path, folder: Path) -> None:
    job = both_nodes(cluster, root, folder)
    job.submit()
    held_at = job.hold(12)
    cluster.run("scancel", "--batch", "--signal=USR2", job.id)
    job.wait("the signal", lambda: "syne: USR2 at" in job.log)
    job.release()
    job.finished(exit_codes.PREEMPTED)
    assert held_at < job.newest() <= held_at + 3
    job.submit().finished()
    training.assert_same_run(job.run, root / "straight")


def scancel_leaves_a_complete_checkpoint_and_no_requeue(cluster: Cluster, root: Path, folder: Path) -> None:
    job = both_nodes(cluster, root, folder)
    job.submit()
    job.hold(12)
    cluster.run("scancel", job.id)
    job.wait("the end of the job", lambda: not cluster.jobs() and not job.ranks())
    assert job.state == "CANCELLED"
    assert job.newest() >= 10
    job.submit().finished()
    training.assert_same_run(job.run, root / "straight")


def a_killed_rank_and_then_a_killed_slurmstepd(cluster: Cluster, root: Path, folder: Path) -> None:
    job = both_nodes(cluster, root, folder)
    job.submit()
    job.hold(12)
    saved = job.newest()
    cluster.kill(*job.ranks()[1])
    job.release()
    job.wait_for_restart(1)
    assert f"killed; iteration -1 -> {saved}: requeue" in job.log
    assert f"restart 1 of job {job.id}, from iteration {saved}" in job.log
    job.hold(32)
    [(node, pid)] = [found for found in cluster.processes(f"slurmstepd: [{job.id}.0]") if found[0] == "node2"]
    [rank] = [found for found in job.ranks() if found[0] == "node2"]
    cluster.kill(node, pid)
    # The kernel ends a stopped orphan, but not one that a busy machine has not stopped yet: it would train to the end.
    cluster.kill(*rank)
    job.release()
    job.wait_for_restart(2)
    job.finished()
    training.assert_same_run(job.run, root / "straight")


def a_crashed_node(cluster: Cluster, root: Path, folder: Path) -> None:
    job = both_nodes(cluster, root, folder)
    job.submit()
    job.hold(12)
    saved = job.newest()
    cluster.crash("node2")
    job.wait("the requeue", lambda: job.state == "PENDING")
    cluster.start_node("node2")
    job.wait_for_restart(1)
    job.finished()
    assert f"restart 1 of job {job.id}, from iteration {saved}" in job.log
    training.assert_same_run(job.run, root / "straight")


def a_run_that_loses_a_node_goes_on_with_one_and_later_with_both(cluster: Cluster, root: Path, folder: Path) -> None:
    job = training.job(cluster, root / "run.yaml", folder / "run", "--gpus-per-node", "2", "--min-nodes", "1").submit()
    job.hold(12)
    saved = job.newest()
    assert [node for node, _ in job.ranks()] == ["node1", "node1", "node2", "node2"]
    cluster.crash("node2")
    job.wait_for_restart(1)
    assert f"restart 1 of job {job.id}, from iteration {saved}" in job.log
    job.hold(32)
    assert [node for node, _ in job.ranks()] == ["node1", "node1"]
    assert "CAUTION: runs on 1 of 2 nodes (1 given). The global batch of 8 sequences" in job.log
    saved = job.newest()
    cluster.start_node("node2")
    cluster.wait_for_nodes()
    cluster.kill(*job.ranks()[0])
    job.release()
    job.wait_for_restart(2)
    assert f"restart 2 of job {job.id}, from iteration {saved}" in job.log
    job.wait("the ranks", lambda: [node for node, _ in job.ranks()] == ["node1", "node1", "node2", "node2"])
    job.finished()
    assert job.log.count("CAUTION: runs on") == 1
    training.assert_same_run_but_for_rounding(job.run, root / "straight")


def the_old_copy_on_a_node_with_a_dead_slurmd_neither_writes_nor_requeues(
    cluster: Cluster, root: Path, folder: Path
) -> None:
    job = training.job(cluster, root / "run.yaml", folder / "run", "--nodes", "1", "--gpus-per-node", "2").submit()
    job.hold(12)
    [(old, _), (same, _)] = job.ranks()
    assert old == same
    cluster.kill_slurmd(old)
    job.wait_for_restart(1)
    new = ({"node1", "node2"} - {old}).pop()
    job.wait("the new copy", lambda: [node for node, _ in job.ranks()].count(new) == 2 and job.iteration() > 20)
    job.hold(21, node=new)
    job.release(old)

    def old_copy_has_ended() -> bool:
        return job.log.count("step ended with") == 1 and old not in [node for node, _ in job.ranks()]

    job.wait("the end of the old copy", old_copy_has_ended)
    job.release()
    job.finished()
    assert job.log.count("syne: restart") == 2
    training.assert_same_run(job.run, root / "straight")


def a_cut_network_of_the_node_with_the_script(cluster: Cluster, root: Path, folder: Path) -> None:
    """And with rank 0: while it is cut off, the old copy lives there."""
    cut_network(cluster, root, folder, "node1")


def a_cut_network_of_the_other_node(cluster: Cluster, root: Path, folder: Path) -> None:
    cut_network(cluster, root, folder, "node2")


def cut_network(cluster: Cluster, root: Path, folder: Path, node: str) -> None:
    job = both_nodes(cluster, root, folder)
    job.submit()
    job.hold(12)
    saved = job.newest()
    cluster.cut(node)
    job.release()
    job.wait("the requeue", lambda: job.state == "PENDING")
    cluster.join(node)
    cluster.run("scontrol", "update", f"nodename={node}", "state=resume", code=None)  # else SLURM looks in a minute
    job.wait_for_restart(1)
    job.finished()
    assert f"restart 1 of job {job.id}, from iteration {saved}" in job.log
    training.assert_same_run(job.run, root / "straight")


def a_run_that_gets_nowhere_stops_with_its_own_code(cluster: Cluster, root: Path, folder: Path) -> None:
    job = training.job(
        cluster, root / "run.yaml", folder / "run", "--retries", "1", overrides=("checkpoint.interval_tokens=null",)
    ).submit()
    for attempt in (0, 1):
        job.wait_for_restart(attempt)
        job.hold(5)
        cluster.kill(*job.ranks()[0])
        job.release()
        (job.run / "metrics.jsonl").unlink()
    job.finished(exit_codes.NO_PROGRESS)
    assert "2 attempts in a row got no further than iteration -1: stopped" in job.log


def what_was_not_exported_to_the_job_is_not_missed_by_its_steps(cluster: Cluster, root: Path, folder: Path) -> None:
    job = both_nodes(cluster, root, folder)
    job.submit("--export=NONE")  # as some sites have it for everybody, by SBATCH_EXPORT
    job.finished()
    training.assert_same_run(job.run, root / "straight")


def a_job_that_a_restarted_job_has_submitted_is_requeued_too(cluster: Cluster, root: Path, folder: Path) -> None:
    job = both_nodes(cluster, root, folder)
    job.submit(env={"SLURM_RESTART_COUNT": "3"})  # sbatch hands on the shell's variables
    job.hold(12)
    assert "syne: restart 0 of job" in job.log
    cluster.kill(*job.ranks()[0])
    job.release()
    job.wait_for_restart(1)
    job.finished()
    training.assert_same_run(job.run, root / "straight")


def both_nodes(cluster: Cluster, root: Path, folder: Path) -> Job:
    """A job of the run, not yet submitted."""
    return training.job(cluster, root / "run.yaml", folder / "run")


SCENARIOS: tuple[Scenario, ...] = (
    at_its_wall_time_a_job_saves_is_requeued_and_goes_on,
    the_old_copy_on_a_node_with_a_dead_slurmd_neither_writes_nor_requeues,
    a_cut_network_of_the_node_with_the_script,
    a_killed_rank_and_then_a_killed_slurmstepd,
    a_crashed_node,
    a_run_that_gets_nowhere_stops_with_its_own_code,
    a_preempted_job_saves_in_its_grace_time,
    scancel_leaves_a_complete_checkpoint_and_no_requeue,
    what_was_not_exported_to_the_job_is_not_missed_by_its_steps,
    a_job_that_a_restarted_job_has_submitted_is_requeued_too,
)
SLOW_SCENARIOS: tuple[Scenario, ...] = (
    a_run_that_loses_a_node_goes_on_with_one_and_later_with_both,
    a_cut_network_of_the_other_node,
    usr2_to_the_script_saves_and_stops_for_good,
)


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Scenario, "Future[None]"]]:
    def run(scenario: Scenario, cluster: Cluster) -> None:
        scenario(cluster, root, tmp_path_factory.mktemp("scenario"))

    with side_by_side(request, SLOW_SCENARIOS + SCENARIOS, run) as futures:
        yield futures


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(one, id=one.__name__) for one in SCENARIOS]
    + [pytest.param(one, id=one.__name__, marks=pytest.mark.slow) for one in SLOW_SCENARIOS],
)
def test_on_slurm(outcomes: dict[Scenario, "Future[None]"], scenario: Scenario) -> None:
    outcomes[scenario].result()
