"""`syne synth generate` as a job array: elements with servers of their own, one killed; then one server for all."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.test_data_commands import ONE_ELEMENT_PER_NODE, ROOT, SYNE, unfinished
from tests.synthesis.test_generate import read, write_seeds

pytestmark = pytest.mark.slurm
SERVER = ROOT / "tests" / "slurm" / "answer_server.py"
NUM_SEEDS = 24


def answered(out: Path) -> Counter[tuple[str, int]]:
    return Counter((row["seed_hash"], row.get("sample", 0)) for row in read(out / "pairs.jsonl.zst"))


def test_a_killed_element_is_completed_and_another_call_shares_one_server(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    texts = [f"Stone {number}." for number in range(NUM_SEEDS)]
    texts[17] = "HOLD this."  # of element 1, with others of its behind it
    seeds = write_seeds(tmp_path / "seeds.jsonl", texts)
    out, log, pipe = tmp_path / "out", tmp_path / "log", tmp_path / "hold"
    os.mkfifo(pipe)
    command = [*SYNE, "synth", "generate", "--seeds", seeds, "--model", "m", "--out", out, "--concurrency", "1"]
    own = ["--server-command", f"{sys.executable} {SERVER} {{host}} {{port}} {log} {pipe}"]
    slurm = ["--slurm-tasks", "2", "--slurm-gpus", "1", *ONE_ELEMENT_PER_NODE]

    waiting = cluster.popen(*command, *own, *slurm)
    cluster.wait("the question that is held", lambda: log.exists() and "HOLD" in log.read_text())
    cluster.wait("the end of element 0", lambda: len(list((out / ".work").glob("0*.json"))) == 1)
    [node] = [line.split()[1] for line in cluster.jobs("--format=%i %N") if line.split()[0].endswith("_1")]
    for place, pid in cluster.processes("launch_pickled_pipeline"):
        if place == node:
            cluster.kill(node, pid)
    assert "1 of 2 tasks are not done" in unfinished(waiting)
    cluster.wait("the end of its server", lambda: not cluster.processes(SERVER.name))
    assert not (out / "pairs.jsonl.zst").exists()
    pipe.unlink()

    done = cluster.run(*command, *own, *slurm)
    assert json.loads(done.stdout)["pairs"] == NUM_SEEDS
    assert answered(out) == Counter({(f"{number:032x}", 0): 1 for number in range(NUM_SEEDS)})
    questions = [line.split(" ", 1) for line in log.read_text().splitlines()]
    assert {name for name, _ in questions} == {"node1", "node2"}
    # The held one was asked twice; what was answered before the kill was not asked again.
    assert Counter(text for _, text in questions) == Counter({text: 1 + (text == "HOLD this.") for text in texts})
    assert not cluster.processes(SERVER.name)

    log.unlink()
    shared = cluster.popen(sys.executable, SERVER, "0.0.0.0", "0", log)
    assert shared.stdout is not None
    endpoint = ["--endpoint", f"http://controller:{int(shared.stdout.readline())}/v1", "--samples", "2"]
    array = ["--slurm-tasks", "2", *ONE_ELEMENT_PER_NODE]
    cluster.run(*command, *endpoint, *array)
    both = Counter({(f"{number:032x}", sample): 1 for number in range(NUM_SEEDS) for sample in (0, 1)})
    assert answered(out) == both
    assert Counter(log.read_text().splitlines()) == Counter(f"controller {text}" for text in texts)

    log.unlink()
    part = min((out / "parts").iterdir())
    first, *others = part.read_text().splitlines()
    part.write_text("\n".join([json.dumps(json.loads(first) | {"failed": "status 500"}), *others, ""]))
    cluster.run(*command, *endpoint, *array, "--retry-failed")
    shared.kill()
    shared.communicate()
    assert answered(out) == both
    assert len(log.read_text().splitlines()) == 1
