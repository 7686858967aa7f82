"""Stages as job arrays on a real Slurm: the results of a local run, whatever happens to elements, nodes and caller."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.side_by_side import side_by_side

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": str(ROOT)}
PIPE = subprocess.PIPE
Scenario = Callable[[Cluster, Path], None]
"""Given a cluster and a folder of its own."""


def call(out: Path, num_tasks: int, *options: object) -> list[str]:
    return [sys.executable, "-m", "tests.slurm.held_stage", str(out), str(num_tasks), *map(str, options)]


def started(cluster: Cluster, out: Path, num_tasks: int, *options: object) -> "subprocess.Popen[str]":
    return cluster.popen(*call(out, num_tasks, *options), cwd=ROOT, env=ENVIRONMENT)


def finished(process: "subprocess.Popen[str]", code: int = 0) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == code, said
    return said


def squares(count: int) -> str:
    return json.dumps([{"square": n * n} for n in range(count)])


def starts(out: Path) -> list[int]:
    path = out / "starts"
    return sorted(int(line.split()[0]) for line in path.read_text().splitlines()) if path.exists() else []


def hold(out: Path, task: int) -> Path:
    """From now on, task `task` waits at its beginning."""
    pipe = out / f"hold-{task}"
    os.mkfifo(pipe)
    return pipe


def release(pipe: Path) -> None:
    """Later starts of the task find no pipe; the one that waits is let go, if it still lives."""
    name = pipe.rename(pipe.with_suffix(".released"))
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return  # nobody waits any more
    os.close(descriptor)


def element_of(out: Path, task: int) -> tuple[str, int]:
    """(node, pid there) of the process that has begun `task`."""
    lines = [line.split() for line in (out / "starts").read_text().splitlines()]
    return next((node, int(pid)) for number, node, pid in reversed(lines) if int(number) == task)


def an_array_gives_the_results_of_a_local_run_on_both_nodes(cluster: Cluster, folder: Path) -> None:
    local, array = folder / "local", folder / "array"
    local.mkdir()
    array.mkdir()
    pipe = hold(array, 0)  # keeps one element running, so that the other three must find their place beside it
    options = (
        "--slurm-tasks",
        4,
        "--slurm-cpus",
        4,
        "--slurm-gpus",
        2,
        "--slurm-mem-gb",
        6,
        "--slurm-partition",
        "low",
    )
    waiting = started(cluster, array, 10, *options, "--slurm-time", "5", "--slurm-args", "nice=3")
    cluster.wait("9 tasks", lambda: len(list((array / ".work").glob("0*.json"))) == 7)
    job = cluster.jobs()[0].split("_")[0]
    shown = cluster.run("scontrol", "show", "job", job).stdout
    assert "TimeLimit=00:05:00" in shown and "Requeue=1" in shown and "Nice=3" in shown
    release(pipe)
    assert squares(10) in finished(waiting)
    alone = subprocess.run(call(local, 10), cwd=ROOT, check=True, stdout=PIPE, text=True).stdout
    assert alone == squares(10)
    assert [path.read_bytes() for path in sorted(local.glob(".work/0*"))] == [
        path.read_bytes() for path in sorted(array.glob(".work/0*"))
    ]
    assert starts(array) == list(range(10))
    assert {line.split()[1] for line in (array / "starts").read_text().splitlines()} == {"node1", "node2"}
    seen = json.loads((array / "environment-3.json").read_text())
    assert Path(seen.pop("python")).parent == Path(sys.executable).parent
    assert len(seen.pop("CUDA_VISIBLE_DEVICES").split(",")) == 2
    assert seen == {
        "OMP_NUM_THREADS": "4",
        "SLURM_CPUS_PER_TASK": "4",
        "SLURM_JOB_PARTITION": "low",
        "SLURM_MEM_PER_NODE": "6144",
    }


def a_killed_element_is_named_and_done_again_alone(cluster: Cluster, folder: Path) -> None:
    killed_element(cluster, folder, lambda: cluster.kill(*element_of(folder, 2)))


def a_cancelled_element_is_named_and_done_again_alone(cluster: Cluster, folder: Path) -> None:
    def cancel() -> None:
        [element] = [line.split()[0] for line in cluster.jobs("--states=RUNNING") if line.split()[0].endswith("_2")]
        cluster.run("scancel", element)

    killed_element(cluster, folder, cancel)


def killed_element(cluster: Cluster, folder: Path, kill: Callable[[], None]) -> None:
    hold(folder, 2)
    waiting = started(cluster, folder, 6, "--slurm-tasks", 3)
    cluster.wait("the others", lambda: starts(folder) == [0, 1, 2, 3, 4])
    kill()
    said = finished(waiting, code=1)
    logs = re.search(r"2 of 6 tasks are not done; logs in (\S+);", said)
    assert logs, said
    assert list(Path(logs[1]).glob("slurm_logs/*_2.out"))
    assert "Traceback" not in said
    release(folder / "hold-2")
    assert squares(6) in finished(started(cluster, folder, 6, "--slurm-tasks", 3))
    assert starts(folder) == [0, 1, 2, 2, 3, 4, 5]


def what_a_task_raises_reaches_the_caller(cluster: Cluster, folder: Path) -> None:
    said = finished(started(cluster, folder, 4, "--broken", 1, "--slurm-tasks", 4), code=1)
    assert "1 of 4 tasks are not done (page 1 is damaged); logs in " in said
    assert "Traceback" not in said


def after_ctrl_c_the_array_goes_on_and_the_same_command_finds_it(cluster: Cluster, folder: Path) -> None:
    pipe = hold(folder, 0)
    waiting = started(cluster, folder, 2, "--slurm-tasks", 1)
    cluster.wait("the first task", lambda: starts(folder) == [0])
    job = cluster.jobs()[0].split("_")[0]
    waiting.send_signal(signal.SIGINT)
    said = finished(waiting, code=130)
    assert f"SLURM job array {job} goes on" in said and f"scancel {job}" in said
    again = started(cluster, folder, 2, "--slurm-tasks", 1)
    assert again.stdout is not None
    assert again.stdout.readline() == f"held stage: SLURM job array {job} is doing this already\n"
    release(pipe)
    assert squares(2) in finished(again)
    assert starts(folder) == [0, 1]


def what_an_array_that_was_found_leaves_undone_is_submitted_again(cluster: Cluster, folder: Path) -> None:
    pipe = hold(folder, 0)
    caller = started(cluster, folder, 2, "--slurm-tasks", 2)
    cluster.wait("both tasks", lambda: starts(folder) == [0, 1])
    caller.kill()
    caller.communicate()
    again = started(cluster, folder, 2, "--slurm-tasks", 2)
    assert again.stdout is not None
    assert "is doing this already" in again.stdout.readline()
    cluster.kill(*element_of(folder, 0))
    release(pipe)
    assert squares(2) in finished(again)
    assert starts(folder) == [0, 0, 1]


def an_element_of_a_crashed_node_is_requeued(cluster: Cluster, folder: Path) -> None:
    pipe = hold(folder, 1)
    waiting = started(cluster, folder, 2, "--slurm-tasks", 2)
    cluster.wait("both tasks", lambda: starts(folder) == [0, 1])
    cluster.wait("the result of the first", lambda: len(list((folder / ".work").glob("0*.json"))) == 1)
    node, _ = element_of(folder, 1)
    cluster.crash(node)
    release(pipe)
    assert squares(2) in finished(waiting)
    assert element_of(folder, 1)[0] != node
    assert starts(folder) == [0, 1, 1]


def what_slurm_would_refuse(cluster: Cluster, folder: Path) -> None:
    refused = {
        ("--slurm-tasks", 102): "MaxArraySize; use at most 101",
        ("--slurm-tasks", 1, "--slurm-partition", "nowhere"): "sbatch refuses the job array",
    }
    for options, message in refused.items():
        said = finished(started(cluster, folder, 1, *options), code=1)
        assert message in said
        assert "Traceback" not in said


def nothing_is_left_of_a_cluster_whose_maker_is_killed(cluster: Cluster, folder: Path) -> None:
    script = (
        "from tests.slurm.cluster import Cluster\n"
        "with Cluster() as cluster:\n"
        "    print(cluster.folder, flush=True)\n"
        "    input()\n"
    )
    pipes = {"stdin": PIPE, "stdout": PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=os.environ | ENVIRONMENT, **pipes) as maker:
        assert maker.stdout is not None
        left = Path(maker.stdout.readline().strip())
        assert mentions(str(left))
        maker.kill()
    cluster.wait("the end of all its processes", lambda: not mentions(str(left)))
    shutil.rmtree(left)


def mentions(text: str) -> list[str]:
    """The processes with `text` in their command line."""
    lines = subprocess.run(["ps", "-eo", "args="], stdout=PIPE, text=True, check=True).stdout.splitlines()
    return [line for line in lines if text in line]


SCENARIOS: tuple[Scenario, ...] = (
    an_element_of_a_crashed_node_is_requeued,
    an_array_gives_the_results_of_a_local_run_on_both_nodes,
    a_killed_element_is_named_and_done_again_alone,
    a_cancelled_element_is_named_and_done_again_alone,
    what_an_array_that_was_found_leaves_undone_is_submitted_again,
    after_ctrl_c_the_array_goes_on_and_the_same_command_finds_it,
    what_a_task_raises_reaches_the_caller,
    what_slurm_would_refuse,
    nothing_is_left_of_a_cluster_whose_maker_is_killed,
)


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Scenario, "Future[None]"]]:
    def run(scenario: Scenario, cluster: Cluster) -> None:
        scenario(cluster, tmp_path_factory.mktemp("scenario"))

    with side_by_side(request, SCENARIOS, run) as futures:
        yield futures


@pytest.mark.parametrize("scenario", [pytest.param(one, id=one.__name__) for one in SCENARIOS])
def test_on_slurm(outcomes: dict[Scenario, "Future[None]"], scenario: Scenario) -> None:
    outcomes[scenario].result()
