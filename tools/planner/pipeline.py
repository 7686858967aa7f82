"""`syne plan --pipeline`: GPU-hours, core-hours, disk and wall time of what surrounds training, from stated rates.

Formulas, N weights of the model, peak of the card in FLOP/s:
    score       tokens * (training FLOPs per token / 3) / (peak * mfu * share of the forward rate)
    generate    one decoding step of B sequences reads all weights and B * T / 2 tokens of keys and values:
                tokens/s = B * bandwidth * share / (2 * N_generator + B * kv_bytes * T / 2)
    evaluate    evaluations * items * tokens * (training FLOPs per token / 3) / (peak * mfu)
    disk        tokens * 4 bytes of ids (2 below 65,500 of them), tokens * bytes of text, kept checkpoints
"""

import math
from dataclasses import dataclass
from pathlib import Path

from data_mixers.errors import ConfigError
from data_mixers.file_version import check_version
from megatron_synE.config.load import read_yaml
from megatron_synE.config.schema import RunConfig
from megatron_synE.data.indexed import token_dtype
from megatron_synE.model.flops import training_flops_per_token
from tools.planner.figures import KINDS, Efficiency, Kind, loosest
from tools.planner.layout import Job, Layout
from tools.planner.memory import checkpoint_bytes
from tools.planner.report import GB, columns
from tools.planner.search import Place
from tools.planner.speed import expected_speed

RATES_VERSION = 1  # of a file for --rates


@dataclass(frozen=True)
class Rate:
    """One figure; None where the formula gives it."""

    value: float | None
    kind: Kind
    source: str


@dataclass(frozen=True, kw_only=True)
class Work:
    """One step of the pipeline. None where no rate is known."""

    name: str
    tokens: float
    gpu_hours: float | None = None
    core_hours: float | None = None
    hours: float | None = None
    """Wall time on all GPUs, or cores, of the plan."""
    disk_bytes: float = 0.0
    kind: Kind
    counted: str
    """From which rate."""


def read_rates(user_file: Path | None) -> dict[str, Rate]:
    """The shipped rates with the user's over them: name: number, or name: {value, kind, source}.

    Errors: ConfigError naming file and key.
    """
    tree = read_yaml(Path(__file__).with_name("rates.yaml"))
    if user_file is not None:
        user = read_yaml(user_file, what="table of rates")
        cure = "write it as tools/planner/rates.yaml is"
        check_version(user, understood=RATES_VERSION, file=user_file, cure=cure, fault=ConfigError, absent=1)
        user.pop("schema_version", None)
        for name, value in user.items():
            if name not in tree:
                raise ConfigError(f"{user_file}: no rate is called {name!r}; the rates are {', '.join(tree)}")
            whole = value if isinstance(value, dict) else {"value": value}
            tree[name] = {"kind": "measured", "source": str(user_file)} | whole
    rates = {}
    for name, entry in tree.items():
        value, kind = entry.get("value"), entry.get("kind")
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if kind not in KINDS or not (value is None or is_number):
            raise ConfigError(f"{user_file}: {name}: {entry} is not a rate; write a positive number")
        rates[name] = Rate(None if value is None else float(value), kind, str(entry.get("source", "")))
    return rates


def pipeline(config: RunConfig, job: Job, place: Place, efficiency: Efficiency, rates: dict[str, Rate]) -> list[Work]:
    """All steps around training, in their order."""
    return [
        _text(job, place, rates, name="preprocess", rate="preprocess_mb_per_core_second"),
        _text(job, place, rates, name="label topics", rate="label_mb_per_core_second"),
        _score(job, place, efficiency, rates),
        _generate(place, rates),
        _evaluate(job, place, efficiency, rates),
        _checkpoints(config, job),
    ]


def _number(rates: dict[str, Rate], name: str) -> float:
    value = rates[name].value
    if value is None:
        raise ConfigError(f"--rates: {name} needs a number")
    return value


def _text(job: Job, place: Place, rates: dict[str, Rate], *, name: str, rate: str) -> Work:
    size = job.total_tokens * _number(rates, "text_bytes_per_token")
    id_bytes = 2 if token_dtype(job.architecture.vocab_size) == "uint16" else 4
    disk = size if name != "preprocess" else float(job.total_tokens * id_bytes)
    speed = rates[rate]
    if speed.value is None:
        return Work(name=name, tokens=job.total_tokens, disk_bytes=disk, kind="assumed", counted=speed.source)
    core_hours = size / (speed.value * 1e6) / 3600
    cores = place.nodes * _number(rates, "cpu_cores_per_node")
    kinds = [speed.kind, rates["text_bytes_per_token"].kind, rates["cpu_cores_per_node"].kind]
    return Work(
        name=name, tokens=job.total_tokens, core_hours=core_hours, hours=core_hours / cores, disk_bytes=disk,
        kind=loosest(kinds), counted=f"{speed.value:g} MB a core-second ({speed.kind}), {cores:g} cores",
    )  # fmt: skip


def _forward_seconds(job: Job, place: Place, efficiency: Efficiency, rates: dict[str, Rate]) -> tuple[float, Kind, str]:
    """GPU-seconds of one token forward, how sure, and from what."""
    flops = training_flops_per_token(job.architecture, seq_length=job.seq_length) / 3
    given = rates["score_mfu"]
    if given.value is not None:
        mfu, kind, counted = given.value, given.kind, f"MFU {given.value:.1%} ({given.kind})"
    else:
        plain = expected_speed(job, Layout(), place.card, efficiency, world_size=place.world_size)
        mfu, kind = plain.mfu, plain.kind
        counted = f"forward FLOPs at {mfu:.1%} of peak, training's share (formula; {kind})"
    return flops / (place.card.bf16_tflops * 1e12 * mfu), kind, counted


def _score(job: Job, place: Place, efficiency: Efficiency, rates: dict[str, Rate]) -> Work:
    seconds, kind, counted = _forward_seconds(job, place, efficiency, rates)
    share = rates["score_share_of_forward_rate"]
    tokens = job.total_tokens * _number(rates, "scored_share")
    gpu_hours = tokens * seconds / _number(rates, "score_share_of_forward_rate") / 3600
    return Work(
        name="score PPL", tokens=tokens, gpu_hours=gpu_hours, hours=gpu_hours / place.world_size,
        kind=loosest([kind, share.kind]), counted=f"{counted}, {share.value:g} of the forward rate ({share.kind})",
    )  # fmt: skip


def _generate(place: Place, rates: dict[str, Rate]) -> Work:
    tokens = _number(rates, "synthetic_tokens") / _number(rates, "generate_kept_share")
    given = rates["generate_tokens_per_second_per_gpu"]
    if given.value is not None:
        speed, kind, counted = given.value, given.kind, f"{given.value:,.0f} tok/s/GPU ({given.kind})"
    else:
        batch, length = _number(rates, "generate_batch"), _number(rates, "generate_tokens_per_sequence")
        read = 2 * _number(rates, "generator_parameters")
        read += batch * _number(rates, "generator_kv_bytes_per_token") * length / 2
        bandwidth = place.card.memory_bytes_per_second * _number(rates, "generate_bandwidth_share")
        speed, kind = batch * bandwidth / read, "assumed"
        counted = f"{speed:,.0f} tok/s/GPU: memory-bound decoding of {batch:g} sequences (formula)"
    gpu_hours = tokens / speed / 3600
    return Work(
        name="synthesize", tokens=tokens, gpu_hours=gpu_hours, hours=gpu_hours / place.world_size,
        disk_bytes=tokens * _number(rates, "text_bytes_per_token"),
        kind=loosest([kind, rates["generate_kept_share"].kind]), counted=counted,
    )  # fmt: skip


def _evaluate(job: Job, place: Place, efficiency: Efficiency, rates: dict[str, Rate]) -> Work:
    seconds, kind, counted = _forward_seconds(job, place, efficiency, rates)
    names = ("evaluations", "evaluation_items", "evaluation_tokens_per_item")
    tokens = math.prod(_number(rates, name) for name in names)
    gpu_hours = tokens * seconds / 3600
    return Work(
        name="evaluate", tokens=tokens, gpu_hours=gpu_hours, hours=gpu_hours / place.world_size,
        kind=loosest([kind, *(rates[name].kind for name in names)]), counted=f"{counted}; prompts alone, no answers",
    )  # fmt: skip


def _checkpoints(config: RunConfig, job: Job) -> Work:
    """The kept ones and one being written; with keep_last=null all of the run."""
    per_step = job.global_batch_size * job.seq_length
    interval = config.checkpoint.interval_tokens
    written = 1 if interval is None else max(1, job.total_tokens // max(interval, per_step))
    most = config.checkpoint.keep_last
    kept = written if most is None else min(written, most + (config.stability.reach > 0))
    return Work(
        name="checkpoints", tokens=job.total_tokens, disk_bytes=float((kept + 1) * checkpoint_bytes(job)),
        kind="computed", counted=f"{kept} kept and one being written, {written} in all",
    )  # fmt: skip


def as_lines(works: list[Work]) -> list[str]:

    def shown(value: float | None, form: str = ",.1f") -> str:
        return "not known" if value is None else format(value, form)

    rows = [["step", "B tokens", "GPU-hours", "core-hours", "hours", "disk GB", "kind", "counted from"]]
    for work in works:
        gives_time = work.name != "checkpoints"
        uses_gpu = work.name in ("score PPL", "synthesize", "evaluate")
        rows.append([
            work.name, f"{work.tokens / 1e9:,.2f}",
            shown(work.gpu_hours) if uses_gpu else "-",
            shown(work.core_hours) if gives_time and not uses_gpu else "-",
            shown(work.hours, ",.2f") if gives_time else "-",
            f"{work.disk_bytes / GB:,.0f}", work.kind, work.counted,
        ])  # fmt: skip
    return columns(rows)
