"""One training step, peers side by side in one run: ours and transformers' Trainer.

All train SmolLM2-135M's shape (random weights) on the same samples of 512 tokens, 8 a step, on the same two cores, in
the precision this CPU is good at, each in fresh processes, in turn. Ours: two data-parallel processes of one
thread. transformers: see hf_trainer.py; it is fed the samples our run reads, without their borders, so ours runs
without document masking here. A bare megatron-core loop is compared in train_loop.py, in one process.

The losses of the first rows of both are printed side by side, and drawn over each other with --plot.

python -m benchmarks.train_step [--pairs 4] [--steps 3] [--layers 30] [--plot losses.png]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.hf_trainer import MICRO_BATCH, run_theirs
from benchmarks.pairs import interleaved, ratio_of
from data_mixers.manifest import read_manifest
from data_mixers.schedule import Schedule
from megatron_synE.data.scheduled_dataset import ScheduledDataset
from megatron_synE.runtime.cpu_features import cpu_has_bf16
from tests import tiny

SEQ_LENGTH, GLOBAL_BATCH, VOCABULARY = 512, 8, 49_152
TARGET = 1.3
ROOT = Path(__file__).parents[1]


def prepared(root: Path, *, layers: int, precision: str, steps: int) -> Path:
    """Model, data and configuration; returns the YAML file."""
    hf = tiny.hf_folder(
        root / "hf", dtype=torch.bfloat16, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, vocab_size=VOCABULARY, tie_word_embeddings=True,
    )  # fmt: skip
    tiny.manifest(root / "train", {("en", "web", "x"): 300_000}, vocab_size=VOCABULARY)
    tree = tiny.run_tree(
        root,
        hf=hf,
        training={
            "seq_length": SEQ_LENGTH, "global_batch_size": GLOBAL_BATCH, "micro_batch_size": MICRO_BATCH,
            "precision": precision,
        },
        optimizer={"lr": 1e-4},
        lr_schedule={"style": "constant", "start_lr": 1e-4, "warmup_tokens": 0},
        data={
            "manifests": [str(root / "train")], "max_epochs": 1000.0, "document_masking": False,
            "stages": [{"name": "a", "tokens": 2 * steps * GLOBAL_BATCH * SEQ_LENGTH, "languages": {"en": 1.0}}],
        },
        validation={"manifests": []},
    )  # fmt: skip
    del tree["lr_schedule"]["decay_tokens"]
    return tiny.write_run(root, tree)


def run_ours(config: Path, run: Path, steps: int) -> list[dict[str, float]]:
    """Rows of a fresh `syne train` of two processes."""
    command = [sys.executable, "-m", "tools", "train", "--config", str(config), "--nproc", "2", f"run.dir={run}"]
    done = subprocess.run(
        [*command, f"training.stop_after_iterations={steps}"], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode != 75:
        raise SystemExit(f"syne train: exit {done.returncode}\n{done.stderr[-3000:]}")
    return tiny.rows(run, "train")


def write_samples(config_root: Path, run: Path, count: int) -> Path:
    """The samples of a run in its order, as one array [count, SEQ_LENGTH + 1], for a peer to read."""
    schedule = Schedule.from_json((run / "schedule.json").read_text())
    dataset = ScheduledDataset(schedule, [read_manifest(config_root / "train")])
    path = config_root / "samples.npy"
    np.save(path, np.stack([dataset[index % len(dataset)].tokens for index in range(count)]))
    return path


def draw(path: Path, ours: Sequence[float], theirs: Sequence[float]) -> None:
    """Both losses over the steps, and their difference."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), height_ratios=(3, 1))
    above.plot(theirs, label="transformers' Trainer", linewidth=2.5, alpha=0.5)
    above.plot(ours, label="ours", linewidth=1.0)
    above.set_ylabel("loss, nats per token")
    above.legend()
    below.plot([a - b for a, b in zip(ours, theirs, strict=True)])
    below.set_ylabel("difference")
    below.set_xlabel("step")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print ratios of speeds, ours to each peer's, and how far apart losses are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--overlay-steps", type=int, default=0, help="of a run of each whose losses are compared")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    precision = "bf16" if cpu_has_bf16() else "fp32"
    most = max(options.steps, options.overlay_steps)
    with tempfile.TemporaryDirectory() as folder:
        root, count = Path(folder), 0
        config = prepared(root, layers=options.layers, precision=precision, steps=most)

        def ours(steps: int) -> list[dict[str, float]]:
            nonlocal count
            count += 1
            return run_ours(config, root / f"run{count}", steps)

        ours(1)  # for its schedule
        samples = write_samples(root, root / "run1", most * GLOBAL_BATCH)

        def transformers(steps: int) -> dict[str, object]:
            return run_theirs(root / "hf", steps, precision, 1, samples=samples)

        pairs = interleaved(
            lambda: statistics.median(row["step_seconds"] for row in ours(options.steps)[1:]),
            lambda: float(str(transformers(options.steps)["seconds"])),
            num_pairs=options.pairs,
        )
        speeds = ratio_of([(their, our) for our, their in pairs])
        print(f"{precision}, {options.layers} layers, ours to transformers: {speeds.against(TARGET)}", flush=True)
        print(json.dumps({"seconds": pairs}), flush=True)
        if options.overlay_steps:
            own = [row["lm_loss"] for row in ours(options.overlay_steps)]
            answer = transformers(options.overlay_steps)["losses"]
            assert isinstance(answer, list)
            apart = max(abs(a - b) for a, b in zip(own, answer, strict=True))
            print(f"losses of {len(own)} steps: {own[0]:.4f} to {own[-1]:.4f}, at most {apart:.4f} apart")
            if options.plot:
                draw(options.plot, own, answer)


if __name__ == "__main__":
    main()
