"""From the start of `syne train` to the end of its first step, part by part, for a new run and for one that resumes.

The limit is a process that imports torch and megatron.core and reads the same bytes of weights, measured in turn with
the command: what no trainer on these libraries can be under. Its ratio to the time before the first step says how much
is ours; the step itself is given apart. One step of a few hundred tokens, so that little depends on it.

python -m benchmarks.startup [--shape tiny smollm2] [--nproc 1] [--pairs 3]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import interleaved, ratio_of
from megatron_synE.runtime.cpu_features import cpu_has_bf16
from tests import tiny

ROOT = Path(__file__).parents[1]
SHAPES = {
    "tiny": {},
    "smollm2": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True,
    },
}  # fmt: skip
LIMIT = """
import sys
import torch
import megatron.core
room = memoryview(bytearray(1 << 24))
for path in sys.argv[1:]:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(room):
            pass
"""


def prepared(root: Path, shape: str) -> Path:
    """Model, data and configuration; returns the YAML file."""
    precision = "bf16" if cpu_has_bf16() else "fp32"
    hf = tiny.hf_folder(root / "hf", dtype=torch.bfloat16, **SHAPES[shape])
    vocabulary = SHAPES[shape].get("vocab_size", 256)
    tiny.manifest(root / "train", {("en", "web", "x"): 60_000}, vocab_size=vocabulary)
    tree = tiny.run_tree(
        root,
        hf=hf,
        training={"seq_length": 128, "global_batch_size": 2, "micro_batch_size": 1, "precision": precision},
        data={
            "manifests": [str(root / "train")],
            "stages": [{"name": "a", "tokens": 100 * 2 * 128, "languages": {"en": 1.0}}],
        },
        lr_schedule={"warmup_tokens": 0, "decay_tokens": 1280},
        validation={"manifests": []},
    )
    return tiny.write_run(root, tree)


def parts_of(config: Path, run: Path, *, nproc: int) -> dict[str, float]:
    """Seconds by part of one `syne train` that stops, and saves, after one step."""
    out = run.with_suffix(f".{len(list(run.parent.iterdir()))}.json")
    overrides = [f"run.dir={run}", "training.stop_after_iterations=1"]
    command = ["train", "--config", str(config), "--nproc", str(nproc), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._startup_run", str(time.monotonic()), str(out), *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 75:
        raise SystemExit(f"syne train: exit {done.returncode}\n{done.stderr[-3000:]}")
    seconds: dict[str, float] = json.loads(out.read_text())
    return seconds


def seconds_of_limit(files: Sequence[Path]) -> float:
    """Of a fresh process that does nothing but import and read."""
    started = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-c", LIMIT, *map(str, files)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.monotonic() - started


def report(record: Record, name: str, found: Sequence[dict[str, float]], pairs: Sequence[tuple[float, float]]) -> None:
    parts = {part: statistics.median(one.get(part, 0.0) for one in found) for part in found[-1]}
    listed = ", ".join(f"{part} {seconds:.2f}" for part, seconds in sorted(parts.items(), key=lambda item: -item[1]))
    record.add(Figure(what=f"start to the end of the first step, {name}", value=sum(parts.values()), unit="s",
                      note=listed))  # fmt: skip
    limit = statistics.median(pair[1] for pair in pairs)
    what = (
        f"before the first step, {name}, to a process that imports torch and megatron.core and reads the same weights"
    )
    record.add(Figure.of(what, ratio_of(pairs), note=f"{limit:.2f} s"))


def measured(record: Record, name: str, config: Path, run: Path, *, resumes: bool, nproc: int, num_pairs: int) -> None:
    """Print one start, new or resumed, against the limit of the bytes that it reads."""
    found: list[dict[str, float]] = []

    def ours() -> float:
        target = run if resumes else run.with_name(f"{run.name}-{len(found)}")
        found.append(parts_of(config, target, nproc=nproc))
        return sum(found[-1].values()) - found[-1]["first step"]

    def limit() -> float:
        return seconds_of_limit(_weights_read(config.parent, run if resumes else None))

    pairs = interleaved(ours, limit, num_pairs=num_pairs)
    report(record, name, found[1:], pairs)


def _weights_read(root: Path, run: Path | None) -> list[Path]:
    if run is None:
        return [root / "hf" / "model.safetensors"]
    newest = max((run / "checkpoints").glob("iter_*"))
    return [path for path in newest.rglob("*") if path.is_file()]


def main() -> None:
    parser = parser_of(__doc__, nproc=1, pairs=3)
    parser.add_argument("--shape", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    options = parser.parse_args()
    with Record("startup", keep=options.record) as record:
        for shape in options.shape:
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                config = prepared(root, shape)
                for start in ("new run", "resumed"):
                    if start == "resumed":
                        parts_of(config, root / "run", nproc=options.nproc)  # what is to be resumed
                    measured(
                        record, f"{shape}, {start}", config, root / "run", resumes=start == "resumed",
                        nproc=options.nproc, num_pairs=options.pairs,
                    )  # fmt: skip


if __name__ == "__main__":
    main()
