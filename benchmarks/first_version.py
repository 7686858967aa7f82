"""`syne train` beside the first version of this project that trained: seconds of a step, each in its own checkout.

Both make the same random weights of SmolLM2-135M's shape and the same documents by their own `tests/tiny.py`, and train
with document masks as two processes of one thread. That the work is the same is seen from the losses: they are compared
before a figure is kept. Each has the micro-batch that is faster for it: both are tried twice before the pairs. Needs
the repository's history.

python -m benchmarks.first_version [--pairs 6] [--steps 5] [--layers 30] [--commit 2a4a04e]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import interleaved, ratio_of
from megatron_synE.runtime.cpu_features import cpu_has_bf16

ROOT = Path(__file__).parents[1]
TARGET = 1.5
FIRST = "2a4a04e"
MICRO_BATCHES = (2, 4)
"""4 is all that a process has of a step."""
LOSS_TOLERANCE = 0.01
"""Ours, in bf16: another order of summation moves the first losses by thousandths, another sample by more."""
PREPARE = """
import sys, torch
from pathlib import Path
from tests import tiny
root, precision, layers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
hf = tiny.hf_folder(
    root / "hf", dtype=torch.bfloat16, hidden_size=576, intermediate_size=1536, num_attention_heads=9,
    num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True, num_hidden_layers=layers,
)
tiny.manifest(root / "train", {("en", "web", "x"): 300_000}, vocab_size=49152)
tree = tiny.run_tree(
    root, hf=hf, tokens=100 * 8 * 512,
    training={"seq_length": 512, "global_batch_size": 8, "precision": precision},
    optimizer={"lr": 1e-4}, lr_schedule={"style": "constant", "start_lr": 1e-4, "warmup_tokens": 0},
    validation={"manifests": []},
)
del tree["lr_schedule"]["decay_tokens"]
tree["data"] |= {"max_epochs": 1000.0}
tree["data"]["stages"][0]["languages"] = {"en": 1.0}
tiny.write_run(root, tree)
"""


def python_in(checkout: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """That checkout's code, one thread a process."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)], cwd=checkout, capture_output=True, text=True,
        check=False, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)},
    )  # fmt: skip


def steps_of(checkout: Path, config: Path, run: Path, steps: int, micro_batch: int) -> Mapping[str, Any]:
    """{"seconds": median of all steps but the first, "losses": of each} of a fresh run. Errors: SystemExit."""
    command = ["-m", "tools", "train", "--config", config, "--nproc", 2, f"run.dir={run}"]
    command += [f"training.stop_after_iterations={steps}", f"training.micro_batch_size={micro_batch}"]
    done = python_in(checkout, *command)
    if done.returncode != 75:
        raise SystemExit(f"syne train in {checkout}: exit {done.returncode}\n{done.stderr[-3000:]}")
    shutil.rmtree(run / "checkpoints")  # 1.6 GB of each run
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "train"]
    seconds = statistics.median(row["step_seconds"] for row in rows[1:])
    return {"seconds": seconds, "losses": [row["lm_loss"] for row in rows]}


def measure(record: Record, first: Path, folder: Path, options: argparse.Namespace) -> None:
    """One figure. Errors: SystemExit where the two do not do the same work."""
    precision = "bf16" if cpu_has_bf16() else "fp32"
    roots = {ROOT: folder / "now", first: folder / "then"}
    for checkout, root in roots.items():
        done = python_in(checkout, "-c", PREPARE, root, precision, options.layers)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
    losses: dict[Path, list[float]] = {}

    def one(checkout: Path, micro_batch: int) -> float:
        root = roots[checkout]
        run = root / f"run{len(list(root.iterdir()))}"
        answer = steps_of(checkout, root / "run.yaml", run, options.steps, micro_batch)
        losses[checkout] = answer["losses"]
        return float(answer["seconds"])

    def faster(checkout: Path) -> int:
        return min(MICRO_BATCHES, key=lambda batch: min(one(checkout, batch) for _ in range(2)))

    now, then = faster(ROOT), faster(first)
    pairs = interleaved(lambda: one(first, then), lambda: one(ROOT, now), num_pairs=options.pairs)
    apart = max(abs(a - b) for a, b in zip(losses[ROOT], losses[first], strict=True))
    if apart > LOSS_TOLERANCE:
        raise SystemExit(f"the losses lie {apart:.4f} apart, so the two did not train on the same: {losses}")
    medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
    what = (
        f"one training step, ours to our first version's, SmolLM2-135M's shape, {options.layers} layers, {precision}, "
        "4,096 tokens a step, two cores"
    )
    note = (
        f"{medians[1]:.2f} against {medians[0]:.2f} s, micro-batches of {now}, {then}; losses at most {apart:.4f} apart"
    )
    record.add(Figure.of(what, ratio_of(pairs), target=TARGET, note=note))


def main() -> None:
    parser = parser_of(__doc__, pairs=6, steps=5, layers=30)
    parser.add_argument("--commit", default=FIRST)
    options = parser.parse_args()
    with Record("first_version", keep=options.record) as record, tempfile.TemporaryDirectory() as name:
        first = Path(name) / "first"
        git = ["git", "-C", str(ROOT), "worktree"]
        if subprocess.run([*git, "add", "--quiet", "--detach", str(first), options.commit], check=False).returncode:
            raise SystemExit(f"no commit {options.commit} here: a clone with its history has it")
        try:
            measure(record, first, Path(name), options)
        finally:
            subprocess.run([*git, "remove", "--force", str(first)], check=False)


if __name__ == "__main__":
    main()
