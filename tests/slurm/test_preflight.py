"""A preflight finds the odd rank, file, version, clock, link and disk, and names the node."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_synE.config.load import load_config
from tests import tiny
from tests.slurm import training
from tests.slurm.cluster import Cluster
from tools.slurm import preflight as checked_job
from tools.slurm.preflight_judge import Limits, RankFacts, judge

ROOT = Path(__file__).parents[2]


def healthy(nodes: int = 4, ranks_of_node: int = 2) -> list[RankFacts]:
    names = [f"gpu{index}" for index in range(nodes)]
    ring = {name: (names[index - 1], names[(index + 1) % nodes]) for index, name in enumerate(names)}
    return [
        RankFacts(
            rank=rank,
            node=(node := names[rank // ranks_of_node]),
            versions={"torch": "2.13.0"},
            hashes={"data/a.bin": "12ab"},
            clock=1000.0 + 0.003 * rank,
            matmul_tflops=700.0 + 2 * rank,
            memory_gbps=3000.0 - rank,
            write_mbps=900.0 if rank % ranks_of_node == 0 else None,
            pairs_gbps=dict.fromkeys(ring[node], 40.0) if rank % ranks_of_node == 0 else {},
        )
        for rank in range(nodes * ranks_of_node)
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "its card fails (CUDA out of memory); look at nvidia-smi there"),
        (torch.AcceleratorError("uncorrectable ECC error"), "its card fails (uncorrectable ECC error)"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(…)`"),
            "its card fails (CU",
        ),
        (RuntimeError("NCCL error in: a.cpp:1, unhandled cuda error"), "the ranks do not reach each other (NCCL error"),
        (RuntimeError("Connection refused"), "the ranks do not reach each other (Connection refused); over another"),
    ],
)
def test_a_card_that_fails_is_not_called_a_network(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_preflight(*_: object) -> int:
        raise error

    monkeypatch.setattr(checked_job, "run_preflight", run_preflight)
    assert checked_job.main(["run.yaml"]) == 2
    assert f"{os.uname().nodename}: {said}" in capsys.readouterr().err


def test_healthy_nodes_have_no_fault() -> None:
    assert judge(healthy(), Limits()) == []
    assert judge(healthy(nodes=1), Limits()) == []
    assert judge(healthy(nodes=1, ranks_of_node=1), Limits()) == []


@pytest.mark.parametrize(
    ("rank", "changes", "said"),
    [
        (5, {"versions": {"torch": "2.12.1"}}, ["version of torch: gpu2 has 2.12.1; the others have 2.13.0"]),
        (4, {"versions": {}}, ["version of torch: gpu2 has missing; the others have 2.13.0"]),
        (6, {"hashes": {"data/a.bin": "ffff"}}, ["content of data/a.bin: gpu3 has ffff; the others have 12ab"]),
        (3, {"clock": 1012.5}, ["gpu1: its clock is +12.5 s off the others'"]),
        (7, {"matmul_tflops": 400.0}, ["gpu3, rank 7: matmul 400 TFLOP/s, the others 709"]),
        (0, {"memory_gbps": 1500.0}, ["gpu0, rank 0: memory copy 1.5e+03 GB/s, the others 3e+03"]),
        (2, {"write_mbps": 10.0}, ["gpu1, rank 2: write and fsync 10 MB/s, the others 900"]),
        (2, {"file_fault": "run.dir is read-only"}, ["gpu1: run.dir is read-only"]),
    ],
)
def test_the_odd_one_is_named(rank: int, changes: dict[str, object], said: list[str]) -> None:
    ranks = healthy()
    ranks[rank] = replace(ranks[rank], **changes)
    assert judge(ranks, Limits()) == said


def test_a_slow_node_and_a_slow_link_are_told_apart() -> None:
    """In the ring gpu0 - gpu1 - gpu2 - gpu3: both links of gpu1 slow, or the one between gpu2 and gpu3."""
    node, link = healthy(ranks_of_node=1), healthy(ranks_of_node=1)
    for rank, other in ((0, "gpu1"), (1, "gpu0"), (1, "gpu2"), (2, "gpu1")):
        node[rank] = replace(node[rank], pairs_gbps={**node[rank].pairs_gbps, other: 4.0})
    assert judge(node, Limits()) == ["gpu1: all-reduce with its neighbours 4, 4 GB/s, other pairs 40"]
    for rank, other in ((2, "gpu3"), (3, "gpu2")):
        link[rank] = replace(link[rank], pairs_gbps={**link[rank].pairs_gbps, other: 4.0})
    assert judge(link, Limits()) == ["gpu2 and gpu3: all-reduce 4 GB/s, other pairs 40"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("preflight")
    training.prepare(root)
    return root


def preflight(script: Path | str, root: Path, *overrides: str) -> "subprocess.CompletedProcess[str]":
    """The script as two ranks."""
    script = [str(script)] if isinstance(script, Path) else ["-m", script]
    command = [sys.executable, "-c", tiny.LAUNCH, "2", *script, str(root / "run.yaml"), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_two_healthy_ranks_pass_and_leave_a_report(root: Path, tmp_path: Path) -> None:
    (tmp_path / "run/slurm/preflight").mkdir(parents=True)
    for left in ("node7", ".node7.tmp"):  # of one that was killed on another node
        (tmp_path / "run/slurm/preflight" / left).touch()
    done = preflight("tools.slurm.preflight", root, f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run/slurm/preflight.json").read_text())
    assert report["faults"] == []
    assert len(report["ranks"]) == 2
    assert all(rank["matmul_tflops"] > 0 and rank["hashes"] >= 9 for rank in report["ranks"])
    assert report["all_reduce_gbps"] > 0
    assert report["seconds"] < 120
    assert not list((tmp_path / "run/slurm/preflight").iterdir())


def test_a_slowed_rank_is_named(root: Path, tmp_path: Path) -> None:
    done = preflight(Path(__file__).with_name("slow_rank.py"), root, f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    assert f"error: {os.uname().nodename}, rank 1: matmul" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_folder_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "slurm").write_text("a file where a folder should be")
    done = preflight("tools.slurm.preflight", root, f"run.dir={tmp_path}")
    assert done.returncode == 2, done.stderr
    assert f"{tmp_path}/slurm/preflight: cannot be written (" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_little_room_for_the_checkpoints(root: Path, tmp_path: Path) -> None:
    """70 B parameters in fp32 with two moments, twice and one being written: no disk here has 2.5 TB."""
    from megatron_synE.config.derive import derive
    from megatron_synE.model.presets import ARCHITECTURES
    from tools.slurm.preflight_checks import disk_fault

    config = load_config(root / "run.yaml", [f"run.dir={tmp_path}", "checkpoint.keep_last=2"]).resolved
    plan = derive(config, ARCHITECTURES["llama3_70b"], 2, device="cpu")
    said = disk_fault(config, plan, 0)
    assert said is not None
    # 70.55e9 x 12 bytes, three of them
    assert "2540." in said or "2539." in said
    assert "lower checkpoint.keep_last" in said
    assert disk_fault(config, replace(plan, num_parameters=1000), 0) is None


@pytest.mark.slurm
def test_a_node_with_another_file_and_another_version_stops_the_job(
    cluster: Cluster, root: Path, tmp_path: Path
) -> None:
    """node2 has its own mounts: over a token file one of the same length, over a package's metadata another version."""
    shard = next((root / "train").glob("*.bin"))
    other = bytearray(shard.read_bytes())
    other[0] ^= 1
    (tmp_path / "shard").write_bytes(other)
    metadata = next(Path(sys.prefix).glob("lib/*/site-packages/safetensors-*.dist-info/METADATA"))
    (tmp_path / "metadata").write_text(metadata.read_text().replace("\nVersion: 0.", "\nVersion: 9.", 1))
    for source, target in (("shard", shard), ("metadata", metadata)):
        cluster.on("node2", "mount", "--bind", tmp_path / source, target)
    try:
        job = training.job(cluster, root / "run.yaml", tmp_path / "run", "--preflight").submit()
        job.finished(2)
    finally:
        for target in (shard, metadata):
            cluster.on("node2", "umount", target)
    assert f"content of {shard}: node1 has " in job.log and ", node2 has " in job.log
    assert "version of safetensors: node1 has 0." in job.log and ", node2 has 9." in job.log
    assert job.iteration() == 0
