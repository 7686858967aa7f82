"""`syne data` commands as job arrays on a real Slurm: an element is killed, the same command completes the output."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.slurm.cluster import Cluster
from tests.tools import corpus
from tools.data.clean import CleanOptions, clean
from tools.data.preprocess import PreprocessOptions, preprocess
from tools.data.score import ScoreOptions, score_ppl

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
SYNE = (sys.executable, "-m", "tools")
ONE_ELEMENT_PER_NODE = ("--slurm-mem-gb", "12")


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process and, as SLURM hands it on, of the elements."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".in_use")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def unfinished(waiting: "subprocess.Popen[str]") -> str:
    said, _ = waiting.communicate(timeout=240)
    assert waiting.returncode == 3, said
    assert "tasks are not done; logs in" in said
    return said


def test_preprocess_with_a_process_killed_in_the_middle(cluster: Cluster, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    for number in range(24):
        texts = corpus.documents(1500, seed=number)
        corpus.write_jsonl(
            pages / f"{number:02}.jsonl", texts, topics=["law" if n % 3 else "math" for n in range(1500)]
        )
    with (pages / "07.jsonl").open("a") as stream:
        stream.write('{"broken\n')
    hf, local, out = corpus.hf_folder(tmp_path / "hf"), tmp_path / "local", tmp_path / "out"
    inputs = (f"{pages}/*.jsonl",)
    preprocess(PreprocessOptions(inputs=inputs, tokenizer=hf, out=local, topic_key="topic", holdout=40))
    assert any("holdout" in name for name in content(local))

    command = [*SYNE, "data", "preprocess", "--input", inputs[0], "--tokenizer", hf, "--out", out]
    command += ["--topic-key", "topic", "--holdout", "40", "--slurm-tasks", "2", *ONE_ELEMENT_PER_NODE]
    waiting = cluster.popen(*command)

    def results() -> list[Path]:
        """Of element 1, which has the odd ones of 24 tasks."""
        return [path for path in out.glob(".work/*/*/tokenise/0*.json") if int(path.stem) % 2]

    cluster.wait("a result of element 1", results, seconds=120)
    [node] = [line.split()[1] for line in cluster.jobs("--format=%i %N") if line.split()[0].endswith("_1")]
    for place, pid in cluster.processes("launch_pickled_pipeline"):
        if place == node:
            cluster.kill(node, pid)
    unfinished(waiting)
    assert 1 <= len(results()) < 12
    assert not (out / "manifest.json").exists()

    cluster.run(*command)
    assert content(out) == content(local)


def test_score_ppl_with_an_element_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    hf, local, out = tiny.hf_folder(tmp_path / "hf", num_hidden_layers=2), tmp_path / "local", tmp_path / "out"
    tiny.manifest(local, {("zh", "web", "law"): 3000, ("zh", "web", "art"): 2000, ("en", "web", "law"): 3000})
    shutil.copytree(local, out)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as an element with one CPU: more threads may add in another order
    score_ppl(ScoreOptions(data=local, hf=hf, device="cpu", precision="fp32"))
    torch.set_num_threads(threads)

    command = [*SYNE, "data", "score-ppl", "--data", out, "--hf", hf, "--device", "cpu", "--precision", "fp32"]
    command += ["--slurm-tasks", "2", *ONE_ELEMENT_PER_NODE]
    waiting = cluster.popen(*command)

    def running() -> list[str]:
        return [line.split()[0] for line in cluster.jobs("--states=RUNNING") if line.split()[0].endswith("_1")]

    cluster.wait("element 1", running, seconds=120)
    cluster.run("scancel", running()[0])
    assert "1 of 3 tasks are not done" in unfinished(waiting)

    cluster.run(*command)
    assert content(out) == content(local)
    assert len(list(out.glob("*.scores.parquet"))) == 3


def test_clean_with_an_element_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    for number in range(4):
        texts = corpus.documents(600, seed=number % 3)  # the fourth file repeats the first
        corpus.write_jsonl(pages / f"{number}.jsonl", [f"{text}。 " * 9 for text in texts])
    local, out = tmp_path / "local", tmp_path / "out"
    clean(CleanOptions(inputs=(f"{pages}/*.jsonl",), out=local))
    assert json.loads((local / "report.json").read_text())["documents"]["dropped"] >= 600

    command = [*SYNE, "data", "clean", "--input", f"{pages}/*.jsonl", "--out", out, "--slurm-tasks", "2"]
    command += ONE_ELEMENT_PER_NODE
    waiting = cluster.popen(*command)

    def running() -> list[str]:
        return [line.split()[0] for line in cluster.jobs("--states=RUNNING") if line.split()[0].endswith("_1")]

    cluster.wait("element 1", running, seconds=120)
    cluster.run("scancel", running()[0])
    assert "2 of 4 tasks are not done" in unfinished(waiting)
    assert not (out / "report.json").exists()

    cluster.run(*command)
    assert content(out) == content(local)
