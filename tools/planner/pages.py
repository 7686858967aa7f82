"""The tables of docs/planner.md and docs/scaling.md, made from the planner: `python -m tools.planner.pages --write`.

Without --write it prints the pages. A table stands between `<!-- table NAME -->` and `<!-- end -->`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from megatron_synE.config.load import load_config
from megatron_synE.config.schema import RunConfig
from tools.cli_options import page_command
from tools.planner import report
from tools.planner.collectives import collectives_of_step
from tools.planner.command import answer, job_of, places
from tools.planner.figures import read_efficiency
from tools.planner.layout import Job, Layout
from tools.planner.memory import memory_of
from tools.planner.options import PlanOptions
from tools.planner.search import Candidate, Place, search
from tools.planner.simulate import (
    REFERENCE_BATCH_PER_GPU,
    StepTime,
    calibrated_kernel_efficiency,
    seconds_of,
    simulate,
    tokens_per_second_per_gpu,
)

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs" / "planner.md", ROOT / "docs" / "scaling.md")
CONFIG = ROOT / "examples" / "llama3_8b" / "run_recommended.yaml"
MODELS = {"8B": "llama3_8b", "70B": "llama3_70b"}
NODES = "1..64"
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
LAYOUTS_COMPARED = {
    "8B": (
        Layout(pipeline_model_parallel_size=2),
        Layout(pipeline_model_parallel_size=4, virtual_pipeline_model_parallel_size=4),
        Layout(tensor_model_parallel_size=2, sequence_parallel=True),
        Layout(tensor_model_parallel_size=4, sequence_parallel=True),
        Layout(tensor_model_parallel_size=8, sequence_parallel=True),
    ),
    "70B": (
        Layout(tensor_model_parallel_size=2, pipeline_model_parallel_size=8, sequence_parallel=True),
        Layout(tensor_model_parallel_size=4, pipeline_model_parallel_size=4, sequence_parallel=True),
        Layout(tensor_model_parallel_size=8, pipeline_model_parallel_size=2, sequence_parallel=True),
        Layout(tensor_model_parallel_size=8, pipeline_model_parallel_size=4, sequence_parallel=True),
        Layout(tensor_model_parallel_size=8, sequence_parallel=True),
    ),
}


def options(nodes: str) -> PlanOptions:
    """The command line behind the tables."""
    return PlanOptions(nodes=nodes, reads_data=False)


def run_of(model: str) -> RunConfig:
    """The recipe's run with a model's shape."""
    overrides = ["init.from=random", "init.path=null", f"model.preset={MODELS[model]}"]
    return load_config(CONFIG, overrides).resolved


def best_table(model: str) -> list[str]:
    """The best layout on each number of nodes."""
    config, chosen, efficiency = run_of(model), options(NODES), read_efficiency()
    job = job_of(config)
    rows = []
    for place in places(chosen):
        tree = answer(config, job, place, efficiency, chosen)
        counts = [str(tree["num_feasible"]), str(sum(group["count"] for group in tree["refused"]))]
        rows.append([*report.row_of(tree, place), *counts])
    return markdown([*report.ROW_HEAD, "run here", "refused"], rows)


def parts_table(model: str) -> list[str]:
    """Memory by part of layouts worth knowing on the smallest place."""
    config = run_of(model)
    job = job_of(config)
    nodes = "1" if model == "8B" else "8"
    place = places(options(nodes))[0]
    layouts = [
        Layout(), Layout(recompute="full"), Layout(context_parallel_size=2),
        Layout(context_parallel_size=2, recompute="full"), *LAYOUTS_COMPARED["8B"],
    ] if model == "8B" else list(LAYOUTS_COMPARED["70B"])  # fmt: skip
    rows = []
    for fp32 in (True, False):
        this = replace(job, grad_reduce_in_fp32=fp32)
        for layout in layouts if fp32 else layouts[:3]:
            memory = memory_of(this, layout, world_size=place.world_size)
            figures = [f"{getattr(memory, part) / report.GB:.1f}" for part in report.MEMORY_PARTS]
            verdict = "fits" if memory.total <= place.usable_bytes else "out of memory"
            rows.append([str(layout), "fp32" if fp32 else "bf16", *figures, verdict])
    return markdown(["layout", "gradients in", *report.MEMORY_PARTS, f"{place.usable_bytes / report.GB:.1f} GB"], rows)


def scaling_table(model: str, *, weak: bool) -> list[str]:
    """The layout with the shortest simulated step on each number of GPUs."""
    kernel_efficiency = calibrated_kernel_efficiency(read_efficiency())
    rows = []
    for gpus in GPUS:
        place, _, job = _scaled(model, gpus, weak=weak)
        found = _fastest(_searched(model, gpus, weak=weak), job, place, kernel_efficiency)
        if found is None:
            rows.append([str(gpus), str(job.global_batch_size), "none fits", *["-"] * 8])
            continue
        candidate, step = found
        rate = tokens_per_second_per_gpu(job, step, world_size=gpus)
        shares = [
            step.arithmetic, step.tensor_parallel, step.context_parallel, step.imbalance + step.bubble,
            step.pipeline_sends, step.data_parallel,
        ]  # fmt: skip
        row = [f"{gpus:,}", f"{job.global_batch_size:,}", str(candidate.layout), f"{step.total:.2f}"]
        rows.append([*row, *(f"{100 * share / step.total:.1f}" for share in shares), f"{rate:,.0f}"])
    head = ["GPUs", "sequences", "fastest layout", "step s", "arithmetic %", "TP %", "CP %", "stages wait %",
            "PP sends %", "DP %", "tok/s/GPU"]  # fmt: skip
    return markdown(head, rows)


def comparison_table(model: str) -> list[str]:
    """tokens/s/GPU of fixed layouts as GPUs grow at the recipe's batch."""
    kernel_efficiency = calibrated_kernel_efficiency(read_efficiency())
    layouts = LAYOUTS_COMPARED[model]
    rows = []
    for gpus in GPUS:
        place, _, job = _scaled(model, gpus, weak=False)
        verdicts = {str(c.layout): c for c in _searched(model, gpus, weak=False)}
        row = [f"{gpus:,}"]
        for layout in layouts:
            verdict = verdicts.get(str(layout))
            if verdict is None or verdict.status != "runs":
                row.append("-" if verdict is None else verdict.rule)
                continue
            step = simulate(job, layout, place.card, world_size=gpus, kernel_efficiency=kernel_efficiency)
            row.append(f"{tokens_per_second_per_gpu(job, step, world_size=gpus):,.0f}")
        rows.append(row)
    return markdown(["GPUs", *(str(layout) for layout in layouts)], rows)


def messages_table(model: str) -> list[str]:
    """Every message of a step on 128 GPUs."""
    layouts = (LAYOUTS_COMPARED[model][0], LAYOUTS_COMPARED[model][3])
    place, _, job = _scaled(model, 128, weak=False)
    rows = []
    for layout in layouts:
        for c in collectives_of_step(job, layout, world_size=128):
            seconds = c.count * seconds_of(c, layout, place.card, 128)
            rows.append([
                str(layout), c.name, c.kind, f"{c.group} ({c.ranks})", f"{c.count:,}", f"{c.payload_bytes / 1e6:,.0f}",
                f"{c.sent_bytes / 1e9:,.1f}", f"{seconds:.3f}", c.hidden_behind,
            ])  # fmt: skip
    head = ["layout", "message", "collective", "group (ranks)", "times a step", "MB each", "GB sent by a GPU",
            "seconds", "hidden behind"]  # fmt: skip
    return markdown(head, rows)


def _scaled(model: str, gpus: int, *, weak: bool) -> tuple[Place, RunConfig, Job]:
    config = run_of(model)
    if weak:
        batch = REFERENCE_BATCH_PER_GPU * gpus
        config = replace(config, training=replace(config.training, global_batch_size=batch))
    return places(options(str(gpus // 8)))[0], config, job_of(config)


@cache
def _searched(model: str, gpus: int, *, weak: bool) -> list[Candidate]:
    place, config, job = _scaled(model, gpus, weak=weak)
    return search(config, job, place, read_efficiency())


def _fastest(
    candidates: Sequence[Candidate], job: Job, place: Place, kernel_efficiency: float
) -> tuple[Candidate, StepTime] | None:
    runs = [c for c in candidates if c.status == "runs"]
    steps = [
        (c, simulate(job, c.layout, place.card, world_size=place.world_size, kernel_efficiency=kernel_efficiency))
        for c in runs
    ]
    return min(steps, key=lambda pair: pair[1].total, default=None)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


TABLES: dict[str, Callable[[], list[str]]] = {
    **{f"best {model}": partial(best_table, model) for model in MODELS},
    **{f"parts {model}": partial(parts_table, model) for model in MODELS},
    **{f"strong {model}": partial(scaling_table, model, weak=False) for model in MODELS},
    **{f"weak {model}": partial(scaling_table, model, weak=True) for model in MODELS},
    **{f"layouts {model}": partial(comparison_table, model) for model in MODELS},
    **{f"messages {model}": partial(messages_table, model) for model in MODELS},
}
_MARKED = re.compile(r"(?P<open><!-- table (?P<name>[^>]+?) -->\n).*?(?P<close><!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """A page with every marked table made anew."""

    def table(match: re.Match[str]) -> str:
        return match["open"] + "\n".join(TABLES[match["name"]]()) + "\n" + match["close"]

    return _MARKED.sub(table, text)


def made(page: Path) -> str:
    return filled(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for page in PAGES:
        page_command(page, partial(made, page), __doc__)
