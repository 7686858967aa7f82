"""Run folders with the rows that a run writes, without a run: of any length, with any names."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_mixers.ratios import WEIGHT_UNIT
from data_mixers.schedule import Schedule, ScheduledShard, ScheduledSource

BATCH, SEQ_LENGTH = 8, 32
TOKENS_PER_STEP = BATCH * SEQ_LENGTH
SHARES = {"zh/web/law": 0.25, "en/web/computing": 0.75}


def train_row(iteration: int, shares: Mapping[str, float] = SHARES, **changes: Any) -> dict[str, Any]:
    """A step as megatron_synE/step_log.py reports it."""
    samples = iteration * BATCH
    row = {
        "kind": "train", "iteration": iteration, "consumed_samples": samples, "consumed_tokens": samples * SEQ_LENGTH,
        "lm_loss": 2 + 1 / math.sqrt(iteration), "loss_tokens": TOKENS_PER_STEP, "grad_norm": 1.0 + (iteration % 7) / 7,
        "learning_rate": 1e-5, "step_seconds": 0.5, "tokens_per_second": 512.0, "tflops_per_device": 0.01, "mfu": None,
        "peak_memory_bytes": 1 << 30, "samples_by_source": {name: round(share * samples) for name, share in
                                                           shares.items()},
        "productive_seconds": 0.5 * iteration, "goodput": 0.8,
    }  # fmt: skip
    return row | changes


def validation_row(iteration: int, name: str, nll: float) -> dict[str, Any]:
    return {
        "kind": "validation", "iteration": iteration, "consumed_tokens": iteration * TOKENS_PER_STEP, "set": name,
        "nll": nll, "ppl": math.exp(nll), "bits_per_byte": nll * 100 / math.log(2) / 300, "tokens": 100,
        "text_bytes": 300,
    }  # fmt: skip


def rows_of(num_steps: int, names: Sequence[str] = tuple(SHARES)) -> Iterator[dict[str, Any]]:
    """Ten validations and as many checkpoints, evenly spread."""
    every = max(1, num_steps // 10)
    for iteration in range(num_steps + 1):
        if iteration:
            yield train_row(iteration, {name: 1 / len(names) for name in names})
        if iteration % every == 0 or iteration == num_steps:
            for index, name in enumerate(names):
                yield validation_row(iteration, f"{name}@holdout", 2 + 0.1 * index + 1 / (1 + iteration))
            yield {"kind": "validation_time", "iteration": iteration, "consumed_tokens": iteration * TOKENS_PER_STEP,
                   "seconds": 1.5, "share_of_job_time": 0.1}  # fmt: skip
            yield {"kind": "checkpoint", "iteration": iteration, "in_background": True, "blocking_seconds": 0.25,
                   "snapshot_bytes": 1 << 20, "seconds": 1.0}  # fmt: skip


def schedule(num_steps: int, names: Sequence[str] = tuple(SHARES)) -> Schedule:
    """One phase with equal shares."""
    each = WEIGHT_UNIT // len(names)
    weights = dict.fromkeys(names, each)
    weights[names[0]] += WEIGHT_UNIT - sum(weights.values())
    shard = ScheduledShard(num_tokens=10**9, sha256="0" * 64)
    sources = tuple(ScheduledSource(name=name, shards=(shard,)) for name in names)
    empty = Schedule(seed=7, seq_length=SEQ_LENGTH, sources=sources)
    return empty.append_weights("adapt", num_samples=num_steps * BATCH, weights=weights)


def config(folder: Path, name: str) -> dict[str, Any]:
    return {
        "run": {"name": name, "dir": str(folder), "seed": 7}, "init": {"from": "random"},
        "model": {"preset": "llama3_8b"},
        "training": {"seq_length": SEQ_LENGTH, "global_batch_size": BATCH},
        "data": {"manifests": [str(folder / "data")],
                 "stages": [{"name": "adapt", "tokens": 1, "languages": {"en": 1}}]},
    }  # fmt: skip


def attempts(num_steps: int) -> dict[str, Any]:
    """Two starts with ten minutes between them."""
    half = 0.35 * num_steps + 10
    first = {"began": 1.7e9, "last_seen": 1.7e9 + half, "first_iteration": 0, "config_digest": "a", "job": "12"}
    second = first | {
        "began": 1.7e9 + half + 600,
        "last_seen": 1.7e9 + 2 * half + 600,
        "first_iteration": num_steps // 2,
    }
    return {"schema_version": 1, "attempts": [first, second]}


def evaluation(**changes: Any) -> dict[str, Any]:
    """A results.json as `syne eval` writes it, docs/evaluation.md."""
    done = {"name": "HumanEval", "group": "code", "language": "en", "status": "done", "reason": "", "shots": 0,
            "metric": "pass@1", "average": "micro", "chance": 0.0, "score": 0.122, "num_items": 164,
            "interval": [0.080, 0.181], "confidence": 0.95, "method": "wilson", "tasks": []}  # fmt: skip
    missing = done | {"name": "GSM8K", "status": "missing", "reason": "no data", "shots": 8, "metric": "exact",
                      "score": None, "num_items": 0, "interval": None}  # fmt: skip
    model = {"label": "iter_0000040", "iteration": 40, "consumed_tokens": 10240}
    whole = {"schema_version": 1, "kind": "evaluation", "complete": True, "suite": {"name": "probe"}, "model": model,
             "harness": {"lm_eval": "0.4.13"}, "settings": {"limit": None}, "benchmarks": [done, missing],
             "sums": [done | {"name": "Code", "metric": "", "of": ["HumanEval", "MBPP"], "average": "macro"}],
             "started": "", "updated": "", "seconds": 1.0}  # fmt: skip
    return whole | changes


def write(
    folder: Path, num_steps: int = 40, *, name: str = "made", names: Sequence[str] = tuple(SHARES),
    extra: Sequence[Mapping[str, Any]] = (),
) -> Path:  # fmt: skip
    """The folder of a run of so many steps. extra: more rows, at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as stream:
        for row in [*rows_of(num_steps, names), *extra]:
            stream.write(json.dumps(row) + "\n")
    (folder / "schedule.json").write_text(schedule(num_steps, names).to_json() + "\n", encoding="utf-8")
    (folder / "run_config.yaml").write_text(json.dumps(config(folder, name)), encoding="utf-8")  # JSON is YAML
    (folder / "attempts.json").write_text(json.dumps(attempts(num_steps)), encoding="utf-8")
    manifest = {"schema_version": 1, "run": name, "started_from": "random", "source_hashes": {}, "data": {},
                "attempt": {"command": ["syne", "train"], "host": "node1", "versions": {"torch": "2.13"}, "git": {}},
                "attempts": [{"host": "node0"}]}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder
