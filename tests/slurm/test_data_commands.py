"""`syne data` commands as job arrays on a real Slurm: an element is killed, the same command completes the output."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.rows import write as write_rows
from tests.slurm.cluster import Cluster
from tests.tools import corpus, topic_corpus
from tools.data.clean import CleanOptions, clean
from tools.data.decontaminate import DecontaminateOptions, decontaminate
from tools.data.label_topics import LabelOptions, label_topics
from tools.data.preprocess import PreprocessOptions, preprocess
from tools.data.score import ScoreOptions, score_ppl
from tools.data.sort import SortOptions, sort
from tools.data.topic_labels import read_topics
from tools.data.topic_model import Shape, TopicClassifier, Trained, new_config, save_classifier, train_tokenizer

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

    cluster.wait("a result of element 1", results)
    [node] = [line.split()[1] for line in cluster.jobs("--format=%i %N") if line.split()[0].endswith("_1")]
    for place, pid in cluster.processes("launch_pickled_pipeline"):
        if place == node:
            cluster.kill(node, pid)
    unfinished(waiting)
    assert 1 <= len(results()) < 12
    assert not (out / "manifest.json").exists()

    cluster.run(*command)
    assert content(out) == content(local)


def test_score_ppl_in_an_array_of_ones_own_whose_elements_have_folders_of_their_own(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Each would else do the half of its folder and leave the other half to nobody, with exit code 0."""
    hf = tiny.hf_folder(tmp_path / "hf", num_hidden_layers=1)
    for number in range(2):
        tiny.manifest(tmp_path / f"data{number}", {("zh", "web", "law"): 900, ("en", "web", "law"): 700}, seed=number)
    command = ["data", "score-ppl", "--hf", str(hf), "--seq-length", "128", "--precision", "fp32", "--device", "cpu"]
    (tmp_path / "element.py").write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from tools.cli import main\n"
        "from tools.data import score, shares\n"
        f"while not all(Path({str(tmp_path)!r}, f'{{n}}.log').exists() for n in range(2)):\n"
        "    time.sleep(0.1)  # until both have begun\n"
        "score.MIN_CHUNK_TOKENS, shares.WAIT_SECONDS = 250, 3.0\n"
        f"sys.exit(main([*{command!r}, '--data', {str(tmp_path / 'data')!r} + os.environ['SLURM_ARRAY_TASK_ID']]))\n"
    )
    script = tmp_path / "array.sbatch"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --array=0-1 --output={tmp_path}/%a.log\n{sys.executable} {tmp_path}/element.py\n"
    )
    cluster.run("sbatch", "--wait", script)
    for number in range(2):
        said = (tmp_path / f"{number}.log").read_text()
        assert "2 of 2 token files are scored" in said, said
        assert f"of 2 processes {1 - number} did not come to" in said


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

    cluster.wait("element 1", running)
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

    cluster.wait("element 1", running)
    cluster.run("scancel", running()[0])
    assert "2 of 4 tasks are not done" in unfinished(waiting)
    assert not (out / "report.json").exists()

    cluster.run(*command)
    assert content(out) == content(local)


def submitted(cluster: Cluster, *arguments: str | Path) -> list[str]:
    """Runs a command as arrays of two elements; the stages of which it submitted one."""
    done = cluster.run(*SYNE, "data", *arguments, "--slurm-tasks", "2", *ONE_ELEMENT_PER_NODE)
    return re.findall(r"^(.+): SLURM job array \d+ submitted", done.stderr, re.MULTILINE)


def visible(folder: Path) -> dict[str, bytes]:
    return {name: raw for name, raw in content(folder).items() if not name.startswith(".")}


def test_decontaminate_gives_the_bytes_of_a_local_run(cluster: Cluster, tmp_path: Path) -> None:
    texts = [corpus.documents(200, seed=seed) for seed in range(4)]
    for number, pages in enumerate(texts):
        corpus.write_jsonl(tmp_path / f"{number}.jsonl", pages)
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": texts[n][n]}) + "\n" for n in (1, 3)), encoding="utf-8")
    local, out = tmp_path / "local", tmp_path / "out"
    inputs = f"{tmp_path}/[0-3].jsonl"
    report, _ = decontaminate(
        DecontaminateOptions(inputs=(inputs,), benchmarks=(str(questions),), out=local, remove=True)
    )
    assert report.num_dropped >= 2
    command = ("decontaminate", "--input", inputs, "--benchmarks", questions, "--remove", "--out", out)
    assert submitted(cluster, *command) == ["decontaminate"]
    assert content(out) == content(local)


def test_label_topics_gives_the_bytes_of_a_local_run(cluster: Cluster, tmp_path: Path) -> None:
    rows = topic_corpus.documents(sources=("web",), count=100)
    for number in range(4):
        write_rows(tmp_path / f"{number}.jsonl", rows[number::4])
    torch.manual_seed(0)
    tokenizer = train_tokenizer([row["text"] for row in rows], vocab_size=400, max_length=48)
    config = new_config(
        Shape(num_layers=1, hidden_size=48, num_heads=4, ffn_size=96),
        vocab_size=tokenizer.get_vocab_size(),
        max_length=48,
    )
    labels = ("law_and_policy", "medicine_and_health", "others")
    classifier = tmp_path / "classifier"
    classifier.mkdir()
    save_classifier(
        Trained(TopicClassifier(config, num_topics=3), tokenizer, read_topics(None), labels, 1.0, 0.0, 48), classifier
    )
    local, out = tmp_path / "local", tmp_path / "out"
    inputs = f"{tmp_path}/[0-3].jsonl"
    counts = label_topics(LabelOptions(inputs=(inputs,), classifier=classifier, out=local))
    assert sum(counts.values()) == len(rows) and len(counts) > 1
    command = ("label-topics", "--input", inputs, "--classifier", classifier, "--out", out)
    assert submitted(cluster, *command) == ["label-topics"]
    assert visible(out) == visible(local)


def test_sort_gives_the_bytes_of_a_local_run(cluster: Cluster, tmp_path: Path) -> None:
    hf, data = tiny.hf_folder(tmp_path / "hf", num_hidden_layers=1), tmp_path / "data"
    tiny.manifest(data, {("zh", "web", "law"): 3000, ("zh", "web", "art"): 2000, ("en", "web", "law"): 3000})
    score_ppl(ScoreOptions(data=data, hf=hf, device="cpu", precision="fp32"))
    local, out = tmp_path / "local", tmp_path / "out"
    sort(SortOptions(data=data, out=local, buckets=3))
    assert submitted(cluster, "sort", "--data", data, "--buckets", "3", "--out", out) == ["sort"]
    assert visible(out) == visible(local)
    assert len(list(out.glob("*.bin"))) == 9
