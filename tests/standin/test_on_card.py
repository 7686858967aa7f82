"""The trainer and the tools as they run on a GPU, on a device of torch that is not the host (card.py).

What each of them computes is compared with the CPU's run of the same.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.gpu_suite import SECTIONS
from data_mixers.manifest import read_manifest
from data_mixers.schedule import Schedule
from megatron_synE.data.probe import write_probe
from tests import tiny
from tests.distributed.test_guard import GUARD, probe_of
from tests.layouts import CP2, PP2, TP2_SP, VPP, ZERO2, ZERO3
from tests.rows import read, write
from tests.tools.topic_corpus import documents
from tools.data.scores_file import scores_path

pytestmark = pytest.mark.compiler
SCRIPT = Path(__file__).with_name("on_card.py")
BF16 = "training.precision=bf16"
LAYOUTS = {
    "one, exported": (1, ["checkpoint.export_hf=true"]),
    "TP 2 SP": (2, TP2_SP),
    "ZeRO 3": (2, ZERO3),
    "DP 2": (2, []),
    "ZeRO 2": (2, ZERO2),
    "PP 2": (2, PP2),
    "VPP": (2, VPP),
    "CP 2": (2, CP2),
    "recomputed, saved in the background": (1, ["training.recompute=full", "checkpoint.async_save=true"]),
    "gradients in bf16": (1, ["training.grad_reduce_in_fp32=false"]),
    "FP8": (1, ["training.fp8=hybrid"]),
}
IN_MAKE_TEST = 3
"""The first of them; the others take half a minute more."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    tiny.prepared(root)
    return root


@pytest.fixture(scope="module")
def on_cpu(root: Path) -> Path:
    tiny.train(root / "run.yaml", f"run.dir={root / 'cpu'}", BF16)
    return root / "cpu"


def on_card(library: Path, *arguments: object, ranks: int | None = None, code: int = 0, least: int = 100) -> str:
    """`python -m …` on the card, in new processes: the warm ones of tests.tiny have imported megatron-core.

    What it said; its exit code is asserted, and that each rank ran more than `least` operations on the card.
    """
    launched = ["-c", tiny.LAUNCH, ranks] if ranks else []
    command = list(map(str, [sys.executable, "-W", "ignore", *launched, SCRIPT, library, *arguments]))
    env = os.environ | {"PYTHONPATH": str(tiny.ROOT)}
    done = subprocess.run(command, cwd=tiny.ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
    told = [int(count) for count in re.findall(r"operations of the card: (\d+)", done.stderr)]
    assert len(told) == (ranks or 1) and all(count > least for count in told)
    return done.stderr


def run_on(device: str, library: Path, *command: object) -> None:
    """`syne …` on the card, or without one."""
    if device == "cuda":
        on_card(library, "tools", *command)
    else:
        done = tiny.syne(*command)
        assert done.returncode == 0, done.stderr


def losses(run: Path) -> list[float]:
    return [float(row["lm_loss"]) for row in tiny.rows(run, "train")]


@pytest.mark.parametrize(
    "layout",
    [*LAYOUTS][:IN_MAKE_TEST] + [pytest.param(each, marks=pytest.mark.slow) for each in [*LAYOUTS][IN_MAKE_TEST:]],
)
def test_a_run_on_a_card_is_that_of_the_cpu(library: Path, root: Path, on_cpu: Path, layout: str) -> None:
    """Up to what attention rounds in another place: some 1e-4 nats of 5.5, and PPL of 260 by 0.1."""
    ranks, overrides = LAYOUTS[layout]
    run = root / layout.replace(" ", "_")
    given = (root / "run.yaml", "device=cuda", f"run.dir={run}", BF16, *overrides)
    on_card(library, "megatron_synE.train", *given, ranks=ranks)
    cpu = on_cpu
    if layout == "FP8":
        cpu = root / "cpu_fp8"
        tiny.train(root / "run.yaml", f"run.dir={cpu}", BF16, *overrides)
    assert losses(run) == pytest.approx(losses(cpu), abs=1e-3)
    found, expected = ([row["nll"] for row in tiny.rows(each, "validation")] for each in (run, cpu))
    assert len(found) == 4 and found == pytest.approx(expected, abs=1e-3)
    assert (run / "checkpoints" / "iter_0000005" / "manifest.json").is_file()


def test_the_closed_loop_decides_on_a_card_what_it_decides_on_the_cpu(library: Path, tmp_path: Path) -> None:
    """Weights of topics, the guard's steps and its probe, in fp32; begun again from the checkpoint in between."""
    hf = tiny.hf_folder(tmp_path / "hf")
    read = dict.fromkeys([("zh", "web", "law"), ("zh", "web", "food"), ("en", "web", "a")], 9000)
    tiny.manifest(tmp_path / "train", read)
    held = {("zh", "web", "law"): 600, ("zh", "web", "food"): 600, ("en", "web", "a"): 1200}
    tiny.manifest(tmp_path / "held", held, role="validation", seed=9, ids=range(3, 128))
    write_probe(probe_of(), tmp_path / "probe.json")
    tree = tiny.run_tree(
        tmp_path,
        hf=hf,
        tokens=8 * 256,
        optimizer={"lr": 3e-3},
        mixture={
            "controller": "syne", "reweight_interval_tokens": 2 * 256, "settings": {"ema": 1.0},
            "guard": GUARD | {"probe": str(tmp_path / "probe.json")},
        },
        validation={"manifests": [str(tmp_path / "held")], "interval_tokens": 2 * 256},
        checkpoint={"interval_tokens": 4 * 256, "async_save": True},
    )  # fmt: skip
    config = tiny.write_run(tmp_path, tree)
    cpu, card = tmp_path / "cpu", tmp_path / "card"
    tiny.train(config, f"run.dir={cpu}")
    command = ("megatron_synE.train", config, "device=cuda", f"run.dir={card}")
    on_card(library, *command, ranks=1)
    assert len(Schedule.from_json((cpu / "schedule.json").read_text()).phases) > 2
    assert (card / "schedule.json").read_text() == (cpu / "schedule.json").read_text()
    assert losses(card) == pytest.approx(losses(cpu), abs=1e-5)
    before = losses(card)
    shutil.rmtree(card / "checkpoints" / "iter_0000008")
    on_card(library, *command, ranks=1)
    assert (card / "checkpoints" / "iter_0000008" / "manifest.json").is_file()
    assert losses(card) == before


def test_every_section_of_the_suite_runs_on_a_card(library: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    arguments = ("--tiny", "--device", "cuda", "--in-process", "--out", out)
    on_card(library, "benchmarks.gpu_suite", *arguments)
    sections = json.loads(out.read_text())["sections"]
    assert {name: found["status"] for name, found in sections.items()} == dict.fromkeys(SECTIONS, "done")


def test_documents_are_scored_on_a_card_as_on_the_cpu(library: Path, root: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        given = ("--data", root / "held", "--hf", root / "hf", "--device", device, "--name", device)
        run_on(device, library, "data", "score-ppl", *given, "--precision", "bf16")
        manifest = read_manifest(root / "held")
        paths = [scores_path(manifest.shard_prefix(s), device) for entry in manifest.sources for s in entry.shards]
        found.append([nll for path in paths for nll in pq.read_table(path)["nll_sum"].to_pylist()])
    assert len(found[0]) > 20 and found[1] == pytest.approx(found[0], rel=1e-3)


@pytest.mark.slow
def test_a_classifier_learns_on_a_card_and_labels(library: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", documents(sources=("first", "second"), count=30))
    on_card(
        library, "tools", "data", "train-classifier", "--input", rows, "--out", tmp_path / "classifier",
        "--test-source", "second", "--steps", 20, "--batch-documents", 16, "--word-steps", 60, "--vocab-size", 400,
        "--max-length", 48, "--no-baselines", "--device", "cuda",
    )  # fmt: skip
    labelled = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        arguments = ("--input", rows, "--classifier", tmp_path / "classifier", "--out", out, "--device", device)
        run_on(device, library, "data", "label-topics", *arguments)
        labelled.append([row["topic"] for path in sorted(out.glob("*.jsonl*")) for row in read(path)])
    assert labelled[0] == labelled[1] and len(set(labelled[0])) > 2
