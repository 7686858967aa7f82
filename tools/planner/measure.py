"""`syne plan --measure FOLDER`: the candidates as run files, and one sbatch that times them."""

import json
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError
from megatron_synE.config.load import Tree, dump_yaml, load_config, resolved_tree
from megatron_synE.config.schema import LoggingSection, MixtureSection, RunConfig, StabilitySection, ValidationSection
from tools.planner import report
from tools.planner.command import job_of, places
from tools.planner.figures import read_efficiency
from tools.planner.layout import Job, Layout
from tools.planner.options import PlanOptions
from tools.planner.search import Candidate, Place, search, with_layout

BEST = 6
MOST_OF_A_SHAPE = 2
STEPS = 20
START_SECONDS = 300
"""Allowed for imports, process groups and loading the weights of one candidate; ours."""
SLACK = 3
"""A candidate may take this many times the expected time of its steps before it counts as hanging; ours."""
SCRIPT = "measure.sbatch"
CANDIDATES = "candidates.json"
SCHEMA_VERSION = 1
"""Of candidates.json and results.json."""
_TEMPLATE = Path(__file__).with_name("measure.sbatch.in")


def write_measurement(path: Path, overrides: Sequence[str], options: PlanOptions, folder: Path) -> str:
    """Write run files of the best candidates, candidates.json and the script into `folder`; says what to do next.

    Errors: ConfigError where no layout fits, several numbers of nodes are asked for, the run has fewer steps than are
    timed, or the folder holds results.
    """
    all_places = places(options)
    if len(all_places) != 1:
        raise ConfigError(f"--measure needs one number of nodes, not {options.nodes}; e.g. --nodes 2")
    if strange := re.search(r"[^\w.,:=/+@~-]", str(folder.resolve())):
        raise ConfigError(
            f"--measure {str(folder)!r}: Slurm would not take {strange[0]!r} in the name of a log as it stands; name "
            "another folder"
        )
    if made := sorted(folder.glob("candidate-*")):
        raise ConfigError(f"{made[0]} is there already: {folder} holds a measurement; name another folder")
    place = all_places[0]
    config = load_config(path, overrides).resolved
    job = job_of(config)
    if (steps := job.total_tokens // (job.global_batch_size * job.seq_length)) < STEPS:
        raise ConfigError(
            f"--measure times {STEPS} steps, and the run ends after {steps}; give it more, as data.stages.0.tokens="
            f"{STEPS * job.global_batch_size * job.seq_length}"
        )
    found = search(config, job, place, read_efficiency(options.efficiency))
    candidates = _worth_trying([candidate for candidate in found if candidate.status == "runs"])
    if not candidates:
        raise ConfigError(f"no layout fits {report.place_line(place)}; see `syne plan` with the same options")
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    for number, candidate in enumerate(candidates, 1):
        tree = resolved_tree(_short(config, candidate.layout, folder / "runs" / f"candidate-{number}"))
        write_atomic(folder / f"candidate-{number}.yaml", dump_yaml(tree).encode())
    write_atomic(
        folder / CANDIDATES, (json.dumps(_described(config, candidates, job, place), indent=1) + "\n").encode()
    )
    seconds = [_step_seconds(job, candidate, place) for candidate in candidates]
    write_atomic(folder / SCRIPT, _script(config, place, folder, seconds).encode())
    expected = sum(START_SECONDS + STEPS * s for s in seconds)
    return (
        f"{folder / SCRIPT}: {len(candidates)} layouts, {STEPS} steps each, about {expected / 60:.0f} minutes (computed"
        f" from the plan's rates; {START_SECONDS} s assumed to start each)\n"
        f"next: sbatch {folder / SCRIPT}      (on one machine without Slurm: bash {folder / SCRIPT})"
    )


def _worth_trying(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best, but at most two of one parallel shape: it is the shapes of which the table is least sure."""
    chosen: list[Candidate] = []
    of_shape: Counter[str] = Counter()
    for candidate in candidates:
        layout = candidate.layout
        shape = str(replace(layout, micro_batch_size=1, recompute="none"))
        if of_shape[shape] < MOST_OF_A_SHAPE and len(chosen) < BEST:
            of_shape[shape] += 1
            chosen.append(candidate)
    return chosen


def _short(config: RunConfig, layout: Layout, run_dir: Path) -> RunConfig:
    """The run in this layout, without what a measurement does not need: validation, topics that trade, trackers.

    Nor a way back after a bad step, for which there are no checkpoints: its data alone is left out.
    """
    stability = config.stability
    return replace(
        with_layout(config, layout),
        run=replace(config.run, dir=run_dir),
        mixture=MixtureSection(),
        validation=ValidationSection(),
        checkpoint=replace(config.checkpoint, interval_tokens=None, export_hf=False),
        stability=StabilitySection(
            on_nan="stop" if stability.on_nan == "stop" else "skip", max_recoveries=stability.max_recoveries
        ),
        logging=LoggingSection(tensorboard=False),
        preset=None,
    )


def _described(config: RunConfig, candidates: Sequence[Candidate], job: Job, place: Place) -> Tree:
    """What measurement.py needs to judge the results: expectations, and the run as the user means it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "card": place.card.key,
        "gpus": place.world_size,
        "num_parameters": job.architecture.num_parameters,
        "seq_length": job.seq_length,
        "candidates": [report.as_tree(candidate, job, place) for candidate in candidates],
        "run": resolved_tree(config),
    }


def _step_seconds(job: Job, candidate: Candidate, place: Place) -> float:
    assert candidate.speed is not None
    tokens = job.global_batch_size * job.seq_length
    return tokens / (candidate.speed.tokens_per_second_per_gpu * place.world_size)


def _script(config: RunConfig, place: Place, folder: Path, seconds: Sequence[float]) -> str:
    on_cpu = config.device == "cpu"
    limit = int(START_SECONDS + SLACK * STEPS * max(seconds)) + 1
    quoted = {
        name: shlex.quote(str(value))
        for name, value in {
            "folder": folder, "script": folder / SCRIPT, "workdir": Path.cwd(), "python": sys.executable,
        }.items()
    }  # fmt: skip
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        quoted,
        nodes=place.nodes,
        ranks_per_node=place.gpus_per_node,
        world_size=place.world_size,
        gpus="# device=cpu: no GPUs asked for" if on_cpu else f"#SBATCH --gpus-per-node={place.gpus_per_node}",
        minutes=-(-(len(seconds) * limit) // 60) + 5,
        limit_seconds=limit,
        steps=STEPS,
        threads=1 if on_cpu else max(1, (os.cpu_count() or 8) // place.gpus_per_node),
    )
