"""Inside an acceptance's job: write its inputs and steps, then judge what the steps have left.

    prepare: <work>/run.yaml, <work>/steps (a line each: name, ranks, options)      judge: <work>/codes ─> one JSON
The job script runs one srun for each line, so that a layout that crashes takes no other with it.
"""

import argparse
import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

from data_mixers.errors import ConfigError, DataError
from megatron_synE import __version__, exit_codes
from megatron_synE.checkpoint import layout as checkpoints
from megatron_synE.runtime.run_dir import versions
from tools.cli_options import one_message
from tools.slurm import acceptance_layouts as layouts
from tools.slurm.acceptance_file import SCHEMA_VERSION
from tools.slurm.acceptance_inputs import ITERATIONS, write_inputs

LOSS_TOLERANCE = {False: 1e-5, True: 5e-3}
"""fp32: another order of additions. bf16, also under FP8: TP rounds the parts of a product before they are summed."""
WEIGHT_TOLERANCE, MOST_OUTSIDE, FURTHEST = 1e-4, 1e-6, 5e-4
"""fp32 alone: but for one weight in a million all lie within the first, that one within half a step of the rate. Adam
turns a gradient near zero, whose sign is noise, into part of a step: TP 2 over gloo has one weight at 1.03e-4 and nine
of 2.6 million beyond 1e-5, its losses 6e-7 apart."""
ANCHORS = {"llama3-8b, bf16, 8 x H100": 10_153}
"""tokens/s/GPU: NVIDIA/dgxc-benchmarking, NeMo 24.09, Llama 3.1 8B, TP1 CP2, global batch 128."""


def prepare(work: Path, *, world_size: int, device: str, only: tuple[str, ...]) -> None:
    """Model, data, run.yaml and the list of steps."""
    work.mkdir(parents=True, exist_ok=True)
    write_inputs(work, world_size=world_size, device=device)
    has_te = device == "cuda" and importlib.util.find_spec("transformer_engine") is not None
    run, left_out = layouts.chosen(world_size, has_transformer_engine=has_te, has_fp8=_has_fp8(device), only=only)
    lines = []
    for layout in run:
        ranks = 1 if layout.name.startswith(layouts.ONE_CARD) else world_size
        lines.append(" ".join([layout.name, str(ranks), *layout.options]))
    (work / "steps").write_text("\n".join(lines) + "\n", encoding="utf-8")
    speed = " ".join(layouts.LLAMA3_8B) if device == "cuda" and world_size % 4 == 0 and not only else ""
    (work / "speed").write_text(f"{speed}\n", encoding="utf-8")
    checkpoints.write_json(work / "left_out.json", left_out)


def _has_fp8(device: str) -> bool:
    from megatron_synE.runtime.device import select

    try:
        return select("cuda" if device == "cuda" else "cpu", local_rank=0).has_fp8
    except ConfigError:  # the steps see GPUs that this process does not
        return False


def judge(work: Path, *, cluster: str, nodes: int, gpus_per_node: int, device: str) -> dict[str, Any]:
    """The whole report. Errors: DataError if the one-card run itself did not go well."""
    codes = dict(line.split() for line in (work / "codes").read_text(encoding="utf-8").splitlines())
    names = [line.split()[0] for line in (work / "steps").read_text(encoding="utf-8").splitlines()]
    by_name = {layout.name: layout for layout in layouts.LAYOUTS}
    for name in names:
        if name.startswith(layouts.ONE_CARD) and codes.get(name) != "0":
            raise DataError(f"{work / name}: the run on one card ended with {codes.get(name)}; its log says why")
    results = {
        name: _compare(work, by_name[name], codes.get(name, "not run"))
        for name in names
        if not name.startswith(layouts.ONE_CARD)
    }
    results["kill_and_resume"] = _resumed(work, codes.get(layouts.KILLED, "not run"), exact=device == "cpu")
    return {
        "schema_version": SCHEMA_VERSION,
        "cluster": cluster,
        "nodes": nodes,
        "gpus_per_node": gpus_per_node,
        "device": device,
        "versions": {"megatron-synE": __version__, **versions()},
        "passed": all(result["passed"] for result in results.values()),
        "results": results,
        "left_out": json.loads((work / "left_out.json").read_text(encoding="utf-8")),
        "tokens_per_second": _speeds(work, names, nodes * gpus_per_node),
        "anchors_tokens_per_second_per_gpu": ANCHORS,
    }


def _compare(work: Path, layout: layouts.Layout, code: str) -> dict[str, Any]:
    if code != "0":
        return {"passed": False, "exit_code": code, "log": str(work / f"{layout.name}.log")}
    is_bf16 = layouts.BF16 in layout.options
    differences, weights_agree = _differences(work / layout.name, work / layout.reference)
    good = differences["loss_difference"] <= LOSS_TOLERANCE[is_bf16] and (is_bf16 or weights_agree)
    return {"passed": good, **differences, "last_loss": _losses(work / layout.name)[-1]}


def _resumed(work: Path, code: str, *, exact: bool) -> dict[str, Any]:
    """The run that was killed and begun again against the one that was not. GPUs may add in another order."""
    if code != "0":
        return {"passed": False, "exit_code": code, "log": str(work / f"{layouts.KILLED}.log")}
    differences, weights_agree = _differences(work / layouts.KILLED, work / layouts.DATA_PARALLEL)
    bit_equal = not any(differences.values())
    close = differences["loss_difference"] <= LOSS_TOLERANCE[False] and weights_agree
    return {"passed": bit_equal or (close and not exact), "bit_equal": bit_equal, **differences}


def _rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "train"]


def _losses(run: Path) -> list[float]:
    return [float(row["lm_loss"]) for row in _rows(run)]


def _differences(left: Path, right: Path) -> tuple[dict[str, float], bool]:
    """The largest of a step's loss and of a weight; and whether the weights differ by noise alone."""
    from megatron_synE.checkpoint.chunk_reader import ChunkReader

    last = Path(checkpoints.CHECKPOINTS) / checkpoints.iteration_name(ITERATIONS)
    readers = [ChunkReader(run / last) for run in (left, right)]
    worst, outside, number = 0.0, 0, 0
    for key in readers[1].keys:
        if key.startswith("optimizer."):
            continue
        shape = readers[1].shape(key)
        a, b = (reader.read(key, (0,) * len(shape), shape).float() for reader in readers)
        apart = (a - b).abs()
        worst = _larger(worst, float(apart.max()))
        outside += int((apart > WEIGHT_TOLERANCE).sum())
        number += apart.numel()
    loss = 0.0
    for one, other in zip(_losses(left), _losses(right), strict=True):
        loss = _larger(loss, abs(one - other))
    agree = worst <= FURTHEST and outside / number <= MOST_OUTSIDE
    return {"loss_difference": loss, "weight_difference": worst}, agree


def _larger(worst: float, found: float) -> float:
    """Infinity for what is no number: Python's max passes over a NaN, and every comparison with one is false."""
    return max(worst, found) if math.isfinite(found) else math.inf


def _speeds(work: Path, names: list[str], world_size: int) -> dict[str, float]:
    """Median over the steps after the second, per rank; of the small model, but for `speed`, which is 8B."""
    speeds = {}
    for name in (*names, layouts.SPEED):
        metrics = work / name / "metrics.jsonl"
        rates = [float(row["tokens_per_second"]) for row in _rows(work / name)[2:]] if metrics.exists() else []
        if rates:
            speeds[name] = median(rates) / (1 if name.startswith(layouts.ONE_CARD) else world_size)
    return speeds


def main(arguments: list[str]) -> int:
    """prepare | judge, as the job script calls it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("prepare", "judge"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus-per-node", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--cluster", default="unknown")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    world_size = given.nodes * given.gpus_per_node
    with one_message():
        if given.action == "prepare":
            only = tuple(name for name in given.only.split(",") if name)
            prepare(given.work, world_size=world_size, device=given.device, only=only)
            return 0
        report = judge(
            given.work, cluster=given.cluster, nodes=given.nodes, gpus_per_node=given.gpus_per_node, device=given.device
        )
        given.out.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.write_json(given.out, report)
    for name, result in report["results"].items():
        sys.stderr.write(f"{'passed' if result['passed'] else 'FAILED'}  {name}  {json.dumps(result)}\n")
    sys.stderr.write(f"{'passed' if report['passed'] else 'failed'}: {given.out}{os.linesep}")
    return exit_codes.FINISHED if report["passed"] else exit_codes.CHECKPOINT_ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
