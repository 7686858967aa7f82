"""`syne plan --measure`: the script really runs, outlives a candidate without memory, and corrects the plan."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_synE.config.load import load_config
from tests import tiny
from tools.planner import measure
from tools.planner.figures import read_efficiency
from tools.planner.layout import Layout

TEN_GB = 10_000_000  # of address space, in KiB as `ulimit -v` counts


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tiny.manifest(tmp_path / "train", tiny.TWO_LANGUAGES)
    tree = tiny.run_tree(tmp_path, hf=tiny.hf_folder(tmp_path / "hf"), tokens=40 * 8 * 32, validation={"manifests": []})
    return tiny.write_run(tmp_path, tree)


def rendered(config: Path, folder: Path, *, nproc: int) -> Path:
    done = tiny.syne("plan", "--config", config, "--card", "h100", "--nproc", nproc, "--measure", folder)
    assert done.returncode == 0, done.stderr
    assert "next: sbatch" in done.stdout
    return folder / "measure.sbatch"


def without_memory(candidate: Path) -> None:
    """Give a candidate a model that the limit below does not hold."""
    tree = yaml.safe_load(candidate.read_text())
    tree["init"] = {"from": "random"}
    tree["model"]["hf_config"] = str(candidate.with_suffix(".config.json"))
    wide = {
        "model_type": "llama", "hidden_size": 65_536, "intermediate_size": 65_536, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 256, "max_position_embeddings": 4096,
    }  # fmt: skip
    candidate.with_suffix(".config.json").write_text(json.dumps(wide))
    candidate.write_text(yaml.safe_dump(tree))


def bash(script: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD_SIZE"))}
    command = f"ulimit -v {TEN_GB}; exec bash {script}"
    return subprocess.run(
        ["bash", "-c", command], env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=480, check=False,
    )  # fmt: skip


def results(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["candidates"]
    return rows


def check_layout(run: Path, overrides: list[str]) -> None:
    tree = yaml.safe_load(run.read_text())
    for text in overrides:
        key, _, value = text.partition("=")
        section, name = key.split(".")
        assert tree[section][name] == yaml.safe_load(value), key


def check_outcome(folder: Path, *, failed: str) -> None:
    """One candidate failed for memory, the fastest of the others is run.yaml, and the table knows their rates."""
    rows = {row["name"]: row for row in results(folder)}
    assert rows[failed]["result"] is None and rows[failed]["exit_code"] != 0
    assert "memory" in rows[failed]["last_words"]
    finished = [row for row in rows.values() if row["result"]]
    assert len(finished) == len(rows) - 1
    best = max(finished, key=lambda row: row["result"]["tokens_per_second_per_gpu"])
    check_layout(folder / "run.yaml", best["overrides"])
    table = read_efficiency(folder / "efficiency.yaml")
    assert {m.global_batch_size for m in table.measured} == {8}  # tiny.run_tree's
    assert [m.layout for m in table.measured] == [row["layout"] for row in finished]


def test_each_candidate_is_timed_in_the_layout_that_it_is_listed_with(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "measure"
    rendered(config, folder, nproc=2)
    rows = json.loads((folder / "candidates.json").read_text())["candidates"]
    for number, row in enumerate(rows, 1):
        check_layout(folder / f"candidate-{number}.yaml", row["overrides"])
    assert any("parallel.context_parallel_size=2" in row["overrides"] for row in rows)


def test_candidates_of_a_run_that_rolls_back_need_no_checkpoints(config: Path, tmp_path: Path) -> None:
    going_back = ["stability.on_nan=rollback", "stability.rollback_steps=1", "checkpoint.interval_tokens=256"]
    folder = tmp_path / "measure"
    arguments = ("--card", "h100", "--nproc", 1, "--measure", folder)
    assert tiny.syne("plan", "--config", config, *arguments, *going_back).returncode == 0
    done = tiny.syne("plan", "--config", folder / "candidate-1.yaml", "--nproc", 1)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("on_nan", ["stop", "skip", "rollback"])
def test_candidates_go_on_after_a_bad_step_where_the_run_does(config: Path, tmp_path: Path, on_nan: str) -> None:
    run, layout = load_config(config, ["stability.max_recoveries=7", f"stability.on_nan={on_nan}"]).resolved, Layout()
    stability = measure._short(run, layout, tmp_path / "run").stability
    assert (stability.on_nan, stability.max_recoveries) == ("stop" if on_nan == "stop" else "skip", 7)


def test_the_script_outlives_a_candidate_without_memory_and_the_plan_learns(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "measure"
    script = rendered(config, folder, nproc=1)
    without_memory(folder / "candidate-2.yaml")
    done = bash(script)
    assert done.returncode == 0, done.stdout + done.stderr
    check_outcome(folder, failed="candidate-2")
    # The written run is whole, and no step of it was taken by the measurement.
    checked = tiny.syne("plan", "--config", folder / "run.yaml", "--nproc", 1)
    assert checked.returncode == 0, checked.stderr
    assert yaml.safe_load((folder / "run.yaml").read_text())["run"]["dir"] == str(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # The rates belong to this CPU. Were they an H100's, the plan would take them as they are.
    table = folder / "efficiency.yaml"
    assert "card: cpu" in table.read_text()
    table.write_text(table.read_text().replace("card: cpu", "card: h100"))
    answer = tiny.syne(
        "plan", "--config", config, "--card", "h100", "--nproc", 1, "--efficiency", table, "--format", "json", "--all"
    )
    best = {c["layout"]: c for c in json.loads(answer.stdout)["best"]}
    (first,) = [row for row in results(folder) if row["name"] == "candidate-1"]
    speed = best[first["layout"]]["speed"]
    assert speed["kind"] == "measured"
    assert speed["tokens_per_second_per_gpu"] == pytest.approx(first["result"]["tokens_per_second_per_gpu"], rel=1e-3)


def test_running_again_repeats_nothing_and_says_the_same(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "measure"
    script = rendered(config, folder, nproc=1)
    for number in (1, 2):
        found = {
            "steps": 15, "step_seconds": 0.1, "tokens_per_second_per_gpu": 100.0 * number, "peak_memory_bytes": 5_000,
            "device": "cuda", "device_name": "H100", "world_size": 1,
        }  # fmt: skip
        (folder / f"candidate-{number}.result.json").write_text(json.dumps(found))
        (folder / f"candidate-{number}.code").write_text("0")
    done = bash(script)
    assert done.returncode == 0 and "steps" not in done.stderr, done.stderr
    assert results(folder)[1]["layout"] in done.stdout.split("fastest: ")[1]
    again = tiny.syne("plan", "--config", config, "--card", "h100", "--nproc", 1, "--measure", folder)
    assert again.returncode == 2 and "name another folder" in again.stderr


def test_a_run_of_fewer_steps_than_are_timed_is_refused_with_how_many_it_takes(config: Path, tmp_path: Path) -> None:
    command = ("plan", "--config", config, "--card", "h100", "--nproc", 1, "--measure", tmp_path / "measure")
    done = tiny.syne(*command, f"data.stages.0.tokens={19 * 8 * 32}")
    assert done.returncode == 2 and "times 20 steps, and the run ends after 19" in done.stderr
    cure = done.stderr.rpartition(" as ")[2].strip()
    assert cure == f"data.stages.0.tokens={20 * 8 * 32}"
    assert tiny.syne(*command, cure).returncode == 0


def test_when_no_candidate_finishes_the_script_fails(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "measure"
    rendered(config, folder, nproc=1)
    done = tiny.python("-m", "tools.planner.measurement", folder)
    assert done.returncode == 3 and "none of 2 candidates finished" in done.stderr
    assert not (folder / "run.yaml").exists()


@pytest.mark.slow
def test_six_candidates_on_two_ranks(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "measure"
    script = rendered(config, folder, nproc=2)
    assert len(list(folder.glob("candidate-*.yaml"))) == 6
    without_memory(folder / "candidate-2.yaml")
    done = bash(script)
    assert done.returncode == 0, done.stdout + done.stderr
    check_outcome(folder, failed="candidate-2")


def test_ranks_are_timed_on_the_cores_that_training_gives_them(config: Path, tmp_path: Path) -> None:
    script = rendered(config, tmp_path / "measure", nproc=2)
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    seen = tmp_path / "seen"
    (stubs / "scontrol").write_text("#!/bin/sh\necho node-1\n")
    (stubs / "srun").write_text(f'#!/bin/sh\necho "$SRUN_CPUS_PER_TASK $OMP_NUM_THREADS" >> {seen}\n')
    for stub in stubs.iterdir():
        stub.chmod(0o755)
    slurm = {"JOB_ID": "7", "JOB_NODELIST": "node-1", "CPUS_ON_NODE": "64", "NTASKS_PER_NODE": "2"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {f"SLURM_{name}": value for name, value in slurm.items()}
    environment |= {"PATH": f"{stubs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "3"}
    subprocess.run(["bash", script], env=environment, capture_output=True, check=False, timeout=240)
    assert set(seen.read_text().splitlines()) == {"32 32"}
    assert {"#SBATCH --exclusive", "#SBATCH --mem=0"} <= set(script.read_text().splitlines())
