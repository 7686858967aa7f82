"""`syne plan` with a card: from the run's file and options to the planner's answer."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data_mixers.errors import ConfigError
from data_mixers.sampling import Sampler
from megatron_synE.config.derive import Device, resolve_architecture, resolve_dtype
from megatron_synE.config.examine import examine
from megatron_synE.config.load import LoadedConfig, load_config
from megatron_synE.config.schema import RunConfig
from megatron_synE.model.flops import training_flops_per_token
from tools.planner import report
from tools.planner.figures import Efficiency, card_of, read_efficiency
from tools.planner.layout import Job, Layers
from tools.planner.options import PlanOptions
from tools.planner.pipeline import Work, as_lines, pipeline, read_rates
from tools.planner.search import Candidate, Place, judge, layout_of, search
from tools.planner.speed import model_name

GIB = 1 << 30
MAX_NODES = 4096
PLANNED_DEVICE: Device = "cuda"
"""What device=auto will mean where the run goes."""
MOST_ROWS = 8
AUTO_LAYERS = "model.attention=auto: taken as transformer_engine; memory with native layers: model.attention=native"
FP8 = "training.fp8={}: memory and rates are counted as of bf16 alone; --measure tells those of FP8"
FLOPS_FORMULA = "6 * weights of all matrices but the embedding + 6 * layers * heads * kv_channels * seq_length (causal)"


def parse_nodes(text: str) -> tuple[int, ...]:
    """'16', '1,2,4' or '1..64'. A long range becomes its ends and the powers of two between them.

    Errors: ConfigError.
    """
    cure = f"write one number, a list such as 1,2,4, or a range such as 1..64; at most {MAX_NODES}"
    first, dots, last = text.partition("..")
    parts = [first, last] if dots else text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--nodes {text!r} is not a number of nodes; {cure}")
    numbers = [int(part) for part in parts]
    if min(numbers) < 1 or max(numbers) > MAX_NODES:
        raise ConfigError(
            f"--nodes {text}: {min(numbers) if min(numbers) < 1 else max(numbers)} is out of range; {cure}"
        )
    if not dots:
        return tuple(sorted(set(numbers)))
    low, high = numbers
    if low > high:
        raise ConfigError(f"--nodes {text}: the range runs backwards; write {high}..{low}")
    if high - low < MOST_ROWS:
        return tuple(range(low, high + 1))
    return tuple(sorted({low, high, *(1 << e for e in range(13) if low <= 1 << e <= high)}))


def job_of(config: RunConfig) -> Job:
    """What the run trains. Errors: ConfigError where the architecture cannot be read."""
    architecture, _ = resolve_architecture(config)
    training = config.training
    per_step = training.global_batch_size * training.seq_length
    layers: Layers = "native_cuda" if config.model.attention == "native" else "transformer_engine"
    return Job(
        architecture=architecture,
        seq_length=training.seq_length,
        global_batch_size=training.global_batch_size,
        total_tokens=sum(-(-stage.tokens // per_step) * per_step for stage in config.data.stages),
        dtype=resolve_dtype(training.precision, PLANNED_DEVICE),
        grad_reduce_in_fp32=training.grad_reduce_in_fp32,
        make_vocab_size_divisible_by=config.model.make_vocab_size_divisible_by,
        layers="native_cpu" if config.device == "cpu" else layers,
    )


def places(options: PlanOptions) -> list[Place]:
    """One for each number of nodes. Errors: ConfigError for an unknown card."""
    card = card_of(options.card or "h100")
    if options.reserve_gib * GIB >= card.memory_bytes:  # also of infinity
        raise ConfigError(
            f"--reserve-gib {options.reserve_gib:g}: a {card.name} has {card.memory_bytes / GIB:.0f} GiB; "
            "hold back less"
        )
    gpus_per_node = options.nproc or options.gpus_per_node or card.gpus_per_node
    return [
        Place(
            card=replace(card, gpus_per_node=gpus_per_node),  # messages leave a node there
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            reserve_bytes=int(options.reserve_gib * GIB),
        )
        for nodes in ((1,) if options.nproc else parse_nodes(options.nodes))
    ]


def print_planner(path: Path, overrides: Sequence[str], options: PlanOptions) -> None:
    """Print the answer for every number of nodes. Errors: ConfigError, DataError."""
    all_places = places(options)
    efficiency = read_efficiency(options.efficiency)
    loaded = load_config(path, overrides)
    job = job_of(loaded.resolved)
    epochs = _epochs(loaded, all_places[0]) if options.reads_data else None
    trees = [answer(loaded.resolved, job, place, efficiency, options, epochs) for place in all_places]
    sys.stdout.write(_rendered(trees, all_places, job, options))
    sys.stdout.flush()


def answer(
    config: RunConfig,
    job: Job,
    place: Place,
    efficiency: Efficiency,
    options: PlanOptions,
    epochs: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Everything the planner says about one number of nodes, as plain values."""
    found = search(config, job, place, efficiency)
    configured = judge(config, job, layout_of(config), place, efficiency)
    best = [candidate for candidate in found if candidate.status == "runs"]
    refused = [candidate for candidate in found if candidate.status == "refused"]

    def trees(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
        return [report.as_tree(candidate, job, place) for candidate in candidates]

    shown = len(found) if options.shows_all else report.SHOWN_BEST
    tree: dict[str, Any] = {
        "job": {
            "model": model_name(job.architecture),
            "num_parameters": job.architecture.num_parameters,
            "total_tokens": job.total_tokens,
            "seq_length": job.seq_length,
            "global_batch_size": job.global_batch_size,
            "dtype": job.dtype,
            "layers": job.layers,
            "flops_per_token": training_flops_per_token(job.architecture, seq_length=job.seq_length),
            "flops_formula": FLOPS_FORMULA,
        },
        "place": {
            "card": place.card.key, "nodes": place.nodes, "gpus_per_node": place.gpus_per_node,
            "world_size": place.world_size, "memory_bytes": place.card.memory_bytes,
            "reserve_bytes": place.reserve_bytes, "reserve_kind": "assumed",
        },
        "notes": [
            *([AUTO_LAYERS] if config.model.attention == "auto" else []),
            *([FP8.format(config.training.fp8)] if config.training.fp8 is not None else []),
        ],
        "num_candidates": len(found),
        "as_configured": report.as_tree(configured, job, place),
        "best": trees(best[:shown]),
        "num_feasible": len(best),
        "refused": report.groups(refused),
        "checkpoint": report.checkpoint_tree(job, bytes_per_second=options.save_gb_per_second * 1e9),
        "epochs": epochs,
    }  # fmt: skip
    if options.shows_all:
        tree["refused_all"] = trees(refused)
    if options.pipeline:
        works = pipeline(config, job, place, efficiency, read_rates(options.rates))
        tree["pipeline"] = [asdict(work) for work in works]
    return tree


def _epochs(loaded: LoadedConfig, place: Place) -> dict[str, float] | None:
    examination = examine(loaded.resolved, world_size=place.world_size, device=PLANNED_DEVICE)
    if examination.schedule is None:
        faults = [fault for fault in examination.faults if fault.key.startswith("data.")]
        lines = "\n  ".join(map(str, faults))
        raise ConfigError(f"the data cannot be read, so epochs are unknown; mend it, or plan with --no-data\n  {lines}")
    return Sampler(examination.schedule).epochs_read()


def _rendered(trees: list[dict[str, Any]], all_places: list[Place], job: Job, options: PlanOptions) -> str:
    if options.output_format == "json":
        return json.dumps(trees if len(trees) > 1 else trees[0], indent=1, ensure_ascii=False) + "\n"
    texts = [
        report.as_text(tree, report.place_line(place), shows_all=options.shows_all) + _pipeline_text(tree)
        for tree, place in zip(trees, all_places, strict=True)
    ]
    if len(trees) == 1:
        return texts[0]
    rows = [report.row_of(tree, place) for tree, place in zip(trees, all_places, strict=True)]
    head = (
        f"# --- planner: {trees[0]['job']['model']}, {job.total_tokens / 1e9:.4g} B tokens, {all_places[0].card.name}\n"
        "GB/GPU: computed. tok/s/GPU, hours, GPU-hours: as `kind` says. One number of nodes shows parts and refusals.\n"
    )
    text = head + "\n".join(report.columns([report.ROW_HEAD, *rows])) + "\n"
    if options.shows_all:
        text += "\n" + "\n".join(texts)
    elif options.pipeline:
        text += "".join(
            f"\n# --- {place.nodes} nodes{_pipeline_text(t)}" for t, place in zip(trees, all_places, strict=True)
        )
    return text


def _pipeline_text(tree: dict[str, Any]) -> str:
    if "pipeline" not in tree:
        return ""
    lines = ["", "## around training (rates: tools/planner/rates.yaml, or yours with --rates)"]
    return "\n".join([*lines, *as_lines([Work(**work) for work in tree["pipeline"]])]) + "\n"
