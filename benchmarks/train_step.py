"""One training step, peers side by side in one run: ours, transformers' Trainer, and bare megatron-core.

All train SmolLM2-135M's shape (random weights) on the same samples of 512 tokens, 8 a step, on the same two cores, in
the precision this CPU is good at, each in fresh processes, in turn, and each with the micro-batch that is faster for
it: both are tried twice before the pairs.

    ours            two data-parallel processes of one thread, without document masks, which no peer here has
    transformers    Trainer, one process of two threads (_hf_trainer.py says how)
    megatron-core   its own layers and loop, two data-parallel processes of one thread (_bare_megatron.py)
    deepspeed       Trainer as above, under ZeRO-2 with checkpointing: the authors' stack
    torchtitan      never here: it trains on CUDA devices alone

A peer that cannot run says why and is left out. The last lines are what the README quotes.

python -m benchmarks.train_step [--pairs 6] [--steps 5] [--layers 30] [--peers transformers megatron-core]
python -m benchmarks.train_step --overlay losses.png [--steps 200]    # losses over each other, of a small model
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._hf_trainer import GLOBAL_BATCH, run_theirs
from benchmarks._pairs import ratio_of, rounds
from data_mixers.manifest import read_manifest
from data_mixers.schedule import Schedule
from megatron_synE.data.scheduled_dataset import ScheduledDataset
from megatron_synE.runtime.cpu_features import cpu_has_bf16
from megatron_synE.runtime.launch import launch
from tests import tiny

ROOT = Path(__file__).parents[1]
TARGETS = {"transformers": 1.3, "megatron-core": 1.0, "deepspeed": 1.3}
"""Ours; the first is the project's goal on a CPU."""
MICRO_BATCHES = (2, 4)
"""4 is all that a process of ours has of a step. 1 and 8 were slower than 2 for Trainer too."""
Answer = Mapping[str, Any]
"""{"seconds": median of all steps but the first, "losses": of each step}."""
Side = Callable[[int, int], Answer]
"""(steps, micro-batch): trains in fresh processes."""


@dataclass(frozen=True)
class Shape:
    """Of the model and its rows."""

    name: str
    seq_length: int
    model: Mapping[str, Any]


SMOLLM2 = Shape(
    "SmolLM2-135M's shape",
    512,
    {
        "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49_152, "tie_word_embeddings": True,
    },
)  # fmt: skip
SMALL = Shape(
    "a small model",
    128,
    {
        "hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 2048, "tie_word_embeddings": True,
    },
)  # fmt: skip


def missing(peer: str) -> str | None:
    """Why a peer cannot run here; None if it can."""
    if peer == "torchtitan":
        return "it trains on CUDA devices alone, and this comparison is made on a CPU"
    if peer == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        return "deepspeed is not installed (pip install deepspeed)"
    return None


@dataclass(frozen=True)
class Prepared:
    """Model, data and configuration in a folder, and the samples in the order of our run, for peers to read."""

    root: Path
    config: Path
    precision: str
    weight_decay: float
    samples: Path

    def sides(self, peers: Sequence[str]) -> dict[str, Side]:
        """By name, what trains."""
        hf, numbers = self.root / "hf", count()
        theirs = partial(run_theirs, hf, precision=self.precision, weight_decay=self.weight_decay, samples=self.samples)
        known: dict[str, Side] = {
            "ours": lambda steps, batch: run_ours(self.config, self.root / f"run{next(numbers)}", steps, batch),
            "transformers": theirs,
            "megatron-core": partial(run_bare_megatron, hf, self.samples, self.precision, self.weight_decay),
            "deepspeed": partial(theirs, deepspeed=True),
        }
        return {name: side for name, side in known.items() if name in ("ours", *peers)}


def prepared(root: Path, shape: Shape, *, layers: int, options: argparse.Namespace) -> Prepared:
    """Everything that all sides read."""
    precision, steps = options.precision, options.steps
    tiny.hf_folder(root / "hf", dtype=torch.bfloat16, num_hidden_layers=layers, **shape.model)
    tiny.manifest(root / "train", {("en", "web", "x"): 300_000}, vocab_size=shape.model["vocab_size"])
    tree = tiny.run_tree(
        root,
        hf=root / "hf",
        training={
            "seq_length": shape.seq_length, "global_batch_size": GLOBAL_BATCH, "precision": precision,
        },
        optimizer={"lr": 1e-4, "weight_decay": options.weight_decay},
        lr_schedule={"style": "constant", "start_lr": 1e-4, "warmup_tokens": 0},
        data={
            "manifests": [str(root / "train")], "max_epochs": 1000.0, "document_masking": False,
            "stages": [
                {"name": "a", "tokens": 2 * steps * GLOBAL_BATCH * shape.seq_length, "languages": {"en": 1.0}}
            ],
        },
        validation={"manifests": []},
    )  # fmt: skip
    del tree["lr_schedule"]["decay_tokens"]
    config = tiny.write_run(root, tree)
    run_ours(config, root / "first", 1, MICRO_BATCHES[0])  # for its schedule
    samples = _write_samples(root, root / "first", steps * GLOBAL_BATCH)
    return Prepared(root, config, precision, options.weight_decay, samples)


def _write_samples(root: Path, run: Path, number: int) -> Path:
    """The samples of a run in its order, as one array [number, seq_length + 1]."""
    schedule = Schedule.from_json((run / "schedule.json").read_text())
    dataset = ScheduledDataset(schedule, [read_manifest(root / "train")])
    path = root / "samples.npy"
    np.save(path, np.stack([dataset[index % len(dataset)].tokens for index in range(number)]))
    return path


def run_ours(config: Path, run: Path, steps: int, micro_batch: int) -> Answer:
    """Of a fresh `syne train` of two processes of one thread. Errors: SystemExit with what it said."""
    command = [sys.executable, "-m", "tools", "train", "--config", str(config), "--nproc", "2", f"run.dir={run}"]
    command += [f"training.stop_after_iterations={steps}", f"training.micro_batch_size={micro_batch}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    if done.returncode != 75:
        raise SystemExit(f"syne train: exit {done.returncode}\n{done.stderr[-3000:]}")
    shutil.rmtree(run / "checkpoints")  # 1.6 GB of each run
    rows = tiny.rows(run, "train")
    seconds = [row["step_seconds"] for row in rows[1:]]
    return {"seconds": statistics.median(seconds) if seconds else 0.0, "losses": [row["lm_loss"] for row in rows]}


def run_bare_megatron(
    hf: Path, samples: Path, precision: str, weight_decay: float, steps: int, micro_batch: int
) -> Answer:
    """Two fresh processes of megatron-core."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answer.json"
        os.environ["OMP_NUM_THREADS"] = "1"
        given = [hf, samples, steps, micro_batch, precision, weight_decay, out]
        code = launch(["-W", "ignore", "-m", "benchmarks._bare_megatron", *map(str, given)], 2)
        if code:
            raise SystemExit(f"megatron-core: exit {code}")
        answer: Answer = json.loads(out.read_text())
    return answer


def seconds_of(side: Side, steps: int, micro_batch: int) -> float:
    return float(side(steps, micro_batch)["seconds"])


def faster_micro_batch(side: Side, steps: int) -> int:
    return min(MICRO_BATCHES, key=lambda batch: min(seconds_of(side, steps, batch) for _ in range(2)))


def compare_speeds(options: argparse.Namespace, peers: Sequence[str]) -> None:
    """Print tokens per second of each side and the ratio of ours to each peer's."""
    name = "-".join(["train_step", *peers])
    with Record(name, keep=options.record) as record, tempfile.TemporaryDirectory() as folder:
        made = prepared(Path(folder), SMOLLM2, layers=options.layers, options=options)
        best = {name: faster_micro_batch(side, options.steps) for name, side in made.sides(peers).items()}
        timed = {name: partial(seconds_of, side, options.steps, best[name]) for name, side in made.sides(peers).items()}
        found = rounds(timed, num_rounds=options.pairs)
        tokens = GLOBAL_BATCH * SMOLLM2.seq_length
        rates = {name: tokens / statistics.median(seconds) for name, seconds in found.items()}
        shape = f"{SMOLLM2.name}, {options.layers} layers, {options.precision}, {tokens:,} tokens a step, two cores"
        for name in peers:
            speeds = ratio_of(list(zip(found[name], found["ours"], strict=True)))
            note = (
                f"{rates['ours']:.0f} against {rates[name]:.0f} tokens/s, micro-batches of {best['ours']}, {best[name]}"
            )
            what = f"one training step, ours to {name}, {shape}"
            record.add(Figure.of(what, speeds, target=TARGETS[name], note=note))


def overlay(options: argparse.Namespace, peers: Sequence[str]) -> None:
    """Draw the losses of all sides over each other, and print how far apart they are."""
    with Record("train_step-overlay", keep=options.record) as record, tempfile.TemporaryDirectory() as folder:
        made = prepared(Path(folder), SMALL, layers=4, options=options)
        losses = {
            name: list(side(options.steps, MICRO_BATCHES[0])["losses"]) for name, side in made.sides(peers).items()
        }
        ours = losses["ours"]
        setting = f"{SMALL.name}, {options.precision}, weight decay {options.weight_decay:g}, {len(ours)} steps"
        note = f"{setting}, loss from {ours[0]:.4f} to {ours[-1]:.4f}"
        for name in peers:
            gaps = [abs(a - b) for a, b in zip(ours, losses[name], strict=True)]
            largest = f"largest {max(gaps):.4f}; {note}"
            what = f"losses of ours and {name} over the same samples, mean distance"
            record.add(Figure(what=what, value=statistics.mean(gaps), unit="nats", note=largest))
    draw(options.overlay, losses)
    print(f"drawn: {options.overlay}")


def draw(path: Path, losses: Mapping[str, Sequence[float]]) -> None:
    """Every side's loss over the steps, and below what each peer's is above ours. PNG."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(8, 6))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    ours = losses["ours"]
    for name, values in losses.items():
        width = 1.0 if name == "ours" else 2.5
        (line,) = above.plot(range(1, len(values) + 1), values, label=name, linewidth=width, alpha=0.8)
        if name != "ours":
            gap = [a - b for a, b in zip(values, ours, strict=True)]
            below.plot(range(1, len(gap) + 1), gap, color=line.get_color(), linewidth=1.0)
    above.set_ylabel("loss, nats per token")
    above.legend()
    below.axhline(0, color="black", linewidth=0.5)
    below.set_ylabel("minus ours")
    below.set_xlabel("step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Compare speeds, or with --overlay losses."""
    parser = parser_of(__doc__, layers=30)
    parser.add_argument("--pairs", type=int, default=6, help="runs of each side, in rounds")
    parser.add_argument("--steps", type=int, help="a run; 5, and 200 with --overlay")
    parser.add_argument("--peers", nargs="+", choices=[*TARGETS, "torchtitan"], default=[*TARGETS, "torchtitan"])
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="default: what this CPU is good at")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="0: peers let norms decay, ours does not")
    parser.add_argument("--overlay", type=Path, metavar="PNG", help="draw losses instead of measuring speeds")
    options = parser.parse_args()
    options.steps = options.steps or (200 if options.overlay else 5)
    for peer in options.peers:
        if reason := missing(peer):
            print(f"{peer}: left out: {reason}")
    peers = [peer for peer in options.peers if missing(peer) is None]
    options.precision = options.precision or ("bf16" if cpu_has_bf16() else "fp32")
    (overlay if options.overlay else compare_speeds)(options, peers)


if __name__ == "__main__":
    main()
