"""`syne slurm submit` and `acceptance` on a real Slurm: a run with its conversion behind it; a cluster's report."""

import json
import sys
from pathlib import Path

import pytest

from megatron_synE import exit_codes
from tests import tiny
from tests.evaluation import data_sets
from tests.slurm import training
from tests.slurm.cluster import Cluster
from tools.evaluation.results import read_results
from tools.slurm.acceptance_file import acceptance_fault

slurm = pytest.mark.slurm
SYNE = (sys.executable, "-m", "tools", "slurm")
ENVIRONMENT = {"PYTHONPATH": str(training.ROOT)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("submit")
    training.prepare(root)
    return root


def state(cluster: Cluster, job: str) -> str:
    return cluster.jobs("--states=all", f"--jobs={job}")[0].split()[1]


@slurm
def test_a_run_is_checked_trained_and_converted(cluster: Cluster, root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = (*SYNE, "submit", "--config", root / "run.yaml", *training.RESOURCES, "--lead", "30", f"run.dir={run}")
    submitted = cluster.run(*command, cwd=tmp_path, env=ENVIRONMENT)
    assert "runs/acceptance.json: this cluster has passed no acceptance" in submitted.stderr
    jobs = submitted.stdout.split()
    assert (run / "slurm/jobs.txt").read_text() == f"{jobs[0]} train.sbatch\n{jobs[1]} export.sbatch\n"
    again = cluster.run(*command, cwd=tmp_path, env=ENVIRONMENT, code=2)
    assert f"`scancel {' '.join(jobs)}` first" in again.stderr and "Traceback" not in again.stderr
    over = ("COMPLETED", "FAILED", "CANCELLED")
    cluster.wait("the end of both jobs", lambda: all(state(cluster, job) in over for job in jobs))
    said = "\n".join(path.read_text() for path in tmp_path.glob("*.out"))
    assert [state(cluster, job) for job in jobs] == ["COMPLETED", "COMPLETED"], said
    assert json.loads((run / "slurm/preflight.json").read_text())["nodes"] == ["node1", "node2"]
    assert tiny.syne("verify", "--hf", run / "hf", "--checkpoint", run).returncode == 0


SUITE = """
name: small
what: two kinds of items
benchmarks:
  - {name: ARC, group: g, language: en, tasks: [syne_arc_easy], shots: 0, metric: acc, chance: 0.3}
  - {name: MMLU, group: g, language: en, harness: mmlu/default, tasks: ["*_law"], shots: 5, metric: acc, chance: 0.2}
"""


@slurm
@pytest.mark.slow
def test_a_run_is_evaluated_behind_its_conversion(cluster: Cluster, tmp_path: Path) -> None:
    training.prepare(tmp_path)
    tiny.give_tokenizer(tmp_path)
    data_sets.write_science(tmp_path / "data sets", 3)
    (tmp_path / "small.yaml").write_text(SUITE)
    run = tmp_path / "run"
    submitted = cluster.run(
        *SYNE, "submit", "--config", tmp_path / "run.yaml", *training.RESOURCES, "--no-preflight",
        "--eval", "small.yaml", "--eval-data", "data sets", cwd=tmp_path, env=ENVIRONMENT,
    )  # fmt: skip
    jobs = submitted.stdout.split()
    names = ("train", "export", "eval")
    expected = "".join(f"{job} {name}.sbatch\n" for job, name in zip(jobs, names, strict=True))
    assert (run / "slurm/jobs.txt").read_text() == expected
    over = ("COMPLETED", "FAILED", "CANCELLED")
    cluster.wait("the end of all jobs", lambda: all(state(cluster, job) in over for job in jobs), seconds=400)
    said = "\n".join(path.read_text() for path in tmp_path.glob("*.out"))
    assert [state(cluster, job) for job in jobs] == ["COMPLETED"] * 3, said
    results = read_results(run / "eval/small/iter_0000060")
    assert (results.complete, results.model["iteration"]) == (True, 60)
    assert {line.name: (line.status, line.num_items) for line in results.benchmarks} == {
        "ARC": ("done", 3), "MMLU": ("missing", 0),
    }  # fmt: skip


ASKED = """
from megatron_synE.runtime.environment import independent_ranks, ranks_from_environment
print(independent_ranks(), ranks_from_environment())
"""


@slurm
def test_the_shell_of_an_interactive_job_is_no_rank_and_its_steps_are(cluster: Cluster, tmp_path: Path) -> None:
    python = (sys.executable, "-c", ASKED)
    allocated = ("salloc", "--nodes=1", "--ntasks-per-node=2", "srun")
    # What salloc itself starts where LaunchParameters has use_interactive_step.
    shell = cluster.run(*allocated, "--interactive", "--preserve-env", *python, cwd=tmp_path, env=ENVIRONMENT)
    assert shell.stdout.splitlines() == ["None None"]
    there = {"MASTER_ADDR": "node1", "MASTER_PORT": "12345"}
    step = cluster.run(*allocated, *python, cwd=tmp_path, env=ENVIRONMENT | there)
    ranks = [f"Ranks(rank={n}, world_size=2, local_rank={n})" for n in (0, 1)]
    assert sorted(step.stdout.splitlines()) == [f"{rank} {rank}" for rank in ranks]


@slurm
def test_what_slurm_would_not_take_is_not_submitted(cluster: Cluster, root: Path, tmp_path: Path) -> None:
    command = (*SYNE, "submit", "--config", root / "run.yaml", *training.RESOURCES, f"run.dir={tmp_path / 'run'}")
    refused = cluster.run(*command, "--sbatch", "partition=nowhere", cwd=tmp_path, env=ENVIRONMENT, code=2)
    assert "sbatch refuses: " in refused.stderr and "invalid partition" in refused.stderr
    assert "Traceback" not in refused.stderr
    refused = cluster.run(*command, "parallel.tensor_model_parallel_size=4", cwd=tmp_path, env=ENVIRONMENT, code=2)
    assert "tensor_model_parallel_size" in refused.stderr
    refused = cluster.run(*command, "--eval", "papr", cwd=tmp_path, env=ENVIRONMENT, code=2)
    assert "--suite papr: no such suite" in refused.stderr
    assert not cluster.jobs("--states=PENDING,RUNNING")


@slurm
@pytest.mark.slow
def test_an_acceptance_over_gloo_passes_and_its_report_is_believed(cluster: Cluster, tmp_path: Path) -> None:
    report = tmp_path / "acceptance.json"
    command = (
        *SYNE,
        "acceptance",
        *training.RESOURCES,
        "--device",
        "cpu",
        "--only",
        "tp2_sp",
        "--only",
        "dp_fp8",
        "--acceptance",
        report,
    )
    job = cluster.run(*command, cwd=tmp_path, env=ENVIRONMENT).stdout.strip()
    cluster.wait("its end", lambda: state(cluster, job) in ("COMPLETED", "FAILED", "CANCELLED"), seconds=240)
    said = "\n".join(path.read_text() for path in tmp_path.glob("*.out"))
    assert state(cluster, job) == "COMPLETED", said
    found = json.loads(report.read_text())
    assert found["passed"]
    assert set(found["results"]) == {"dp", "tp2_sp", "dp_fp8", "kill_and_resume"}
    assert found["results"]["kill_and_resume"]["bit_equal"]
    assert found["left_out"]["cp2"] == "not asked for"
    assert found["left_out"]["tp4_sp"] == "needs a multiple of 4 ranks, this job has 2"
    assert found["tokens_per_second"]["dp"] > 0
    assert acceptance_fault(report, cluster="test", nodes=2) is None
    for changed, fault in (
        ({"cluster": "other"}, "is of cluster 'other'"),
        ({"passed": False}, "failed"),
        ({"nodes": 1}, "was run on one node"),
        ({"versions": found["versions"] | {"torch": "1.0"}}, "was run with torch 1.0"),
    ):
        report.write_text(json.dumps(found | changed))
        said = acceptance_fault(report, cluster="test", nodes=2)
        assert said is not None and fault in said


def test_a_wrong_layout_fails_the_acceptance(tmp_path: Path) -> None:
    """The weights of one layout are those of another learning rate: its losses and weights are not one card's."""
    work, out = tmp_path / "acceptance.work", tmp_path / "acceptance.json"
    common = ("--nodes", "1", "--gpus-per-node", "2", "--device", "cpu", "--only", "tp2_sp", "--out", out)
    assert tiny.python("-m", "tools.slurm.acceptance_run", "prepare", work, *common).returncode == 0
    names = [line.split()[0] for line in (work / "steps").read_text().splitlines()]
    assert names == ["one_card", "dp", "tp2_sp"]
    for name in (*names, "killed"):
        wrong = ["optimizer.lr=1.2e-3"] if name == "tp2_sp" else []
        tiny.train(work / "run.yaml", f"run.dir={work / name}", *wrong)
    (work / "codes").write_text("".join(f"{name} 0\n" for name in (*names, "killed")))
    done = tiny.python("-m", "tools.slurm.acceptance_run", "judge", work, *common)
    assert done.returncode == exit_codes.CHECKPOINT_ERROR
    results = json.loads(out.read_text())["results"]
    assert {name: result["passed"] for name, result in results.items()} == {
        "dp": True, "tp2_sp": False, "kill_and_resume": True,
    }  # fmt: skip
