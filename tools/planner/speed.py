"""Tokens per second of a layout: arithmetic per token, the card's peak, and the factors of the efficiency table."""

import math
import re
from dataclasses import dataclass, replace
from statistics import median

from megatron_synE.model.flops import training_flops_per_token
from megatron_synE.model.llama import LlamaArchitecture
from megatron_synE.model.presets import ARCHITECTURES
from tools.planner.figures import Card, Efficiency, Factor, Kind, Measured, cards, loosest
from tools.planner.layout import Job, Layout

THIS_LAYOUT = "this layout, measured"
_LAYOUT = re.compile(
    r"(?!.*[PS]0)TP(?P<tp>\d+)(?P<sp> SP)?, PP(?P<pp>\d+)(?: VPP(?P<vpp>\d+))?(?:, CP(?P<cp>\d+))?, MBS(?P<mbs>\d+), "
    r"recompute (?P<recompute>none|selective|full)(?:, ZeRO(?P<zero>[23]))?"
)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a layout is expected to do, and from what."""

    tokens_per_second_per_gpu: float
    kind: Kind
    mfu: float
    """Useful arithmetic over the dense bf16 peak, causal convention."""
    factors: dict[str, Factor]


def pipeline_factor(layout: Layout, *, num_microbatches: int) -> Factor:
    """m / (m + (PP - 1) / VPP): the share of time in which a stage has work. Source: arXiv 2104.04473, section 2.2."""
    chunks = layout.virtual_pipeline_model_parallel_size or 1
    idle = (layout.pipeline_model_parallel_size - 1) / chunks
    # Without stages nothing waits, also where a replica has no micro-batch: scoring on more GPUs than a step has rows.
    share = num_microbatches / (num_microbatches + idle) if idle else 1.0
    return Factor(share, "computed", "m / (m + (PP - 1) / VPP)")


def balance_factor(job: Job, layout: Layout) -> Factor:
    """Mean work of a pipeline stage over that of the last one, which has the output matrix on top of its layers.

    Every stage waits for the slowest. Work is counted in FLOPs: layers / PP each, and 6 * h * vocabulary on the last.
    """
    a, pp = job.architecture, layout.pipeline_model_parallel_size
    whole = training_flops_per_token(a, seq_length=job.seq_length)
    head = 6.0 * a.hidden_size * a.vocab_size
    return Factor(whole / pp / ((whole - head) / pp + head), "computed", "mean stage / last stage, which has the head")


def recompute_factor(job: Job, layout: Layout) -> Factor:
    """Useful over all arithmetic. full: one more forward pass of the layers; selective: of the core attention.

    The layers' forward pass is a third of all training arithmetic without the output matrix.
    """
    a = job.architecture
    whole = training_flops_per_token(a, seq_length=job.seq_length)
    without_attention = training_flops_per_token(a, seq_length=0)
    head = 6.0 * a.hidden_size * a.vocab_size
    again = {"none": 0.0, "selective": (whole - without_attention) / 3, "full": (whole - head) / 3}[layout.recompute]
    return Factor(whole / (whole + again), "computed", "useful arithmetic / arithmetic with recomputation")


def context_parallel_factor(layout: Layout) -> Factor:
    """CP 1 and 2 are the reference's; each doubling beyond costs a point more, for keys and values nothing hides."""
    doublings = max(0, layout.context_parallel_size.bit_length() - 2)
    if doublings == 0:
        return Factor(1.0, "computed", "the reference has CP 2")
    return Factor(1.0 - 0.01 * doublings, "assumed", "a point for each doubling beyond CP 2")


def model_name(architecture: LlamaArchitecture) -> str:
    """The preset of this architecture, or `other`."""
    return next((name for name, known in ARCHITECTURES.items() if known == architecture), "other")


def expected_speed(job: Job, layout: Layout, card: Card, efficiency: Efficiency, *, world_size: int) -> Speed:
    """Tokens/s/GPU = peak * reference MFU * factors / FLOPs per token.

    A run of this very layout and global batch, measured, wins over the product; other measured runs of this card and
    model scale it by the median of measured over expected.
    """
    speed = _from_table(job, layout, card, efficiency, world_size=world_size)
    what = (card.key, job.architecture.num_parameters, job.seq_length)
    alike = [m for m in efficiency.measured if (m.card, m.num_parameters, m.seq_length) == what]
    this = (str(layout), world_size, job.global_batch_size)  # with its bubble and its messages a step
    exact = [
        m.tokens_per_second_per_gpu for m in alike
        if (m.layout, m.gpus, m.global_batch_size or job.global_batch_size) == this
    ]  # fmt: skip
    if exact:
        measured = Factor(exact[-1] / speed.tokens_per_second_per_gpu, "measured", THIS_LAYOUT)
        return scaled(speed, "measured", measured, kind="measured")
    ratios = [r for m in alike if (r := _ratio(m, job, card, efficiency)) is not None]
    if ratios:
        source = f"median of {len(ratios)} measured layouts over expected"
        return scaled(speed, "measured", Factor(median(ratios), "measured", source), kind=speed.kind)
    return speed


def _ratio(measured: Measured, job: Job, card: Card, efficiency: Efficiency) -> float | None:
    """Measured over what the plan says of that layout, messages in parts included; None for one that cannot be read."""
    from tools.planner.simulate import with_sharding  # which stands on this file

    layout = parse_layout(measured.layout)
    job = replace(job, global_batch_size=measured.global_batch_size or job.global_batch_size)
    if layout is None or measured.gpus < layout.model_ranks or not job.num_microbatches(layout, measured.gpus):
        return None
    table = _from_table(job, layout, card, efficiency, world_size=measured.gpus)
    table = with_sharding(table, job, layout, card, world_size=measured.gpus)
    return measured.tokens_per_second_per_gpu / table.tokens_per_second_per_gpu


def parse_layout(text: str) -> Layout | None:
    """The inverse of str(Layout)."""
    found = _LAYOUT.fullmatch(text)
    if found is None:
        return None
    return Layout(
        tensor_model_parallel_size=int(found["tp"]),
        pipeline_model_parallel_size=int(found["pp"]),
        virtual_pipeline_model_parallel_size=int(found["vpp"]) if found["vpp"] else None,
        context_parallel_size=int(found["cp"] or 1),
        sequence_parallel=found["sp"] is not None,
        micro_batch_size=int(found["mbs"]),
        recompute=found["recompute"],  # type: ignore[arg-type]  # one of the three, as found
        zero_stage=int(found["zero"] or 1),  # type: ignore[arg-type]  # a digit of the pattern above
    )


def _from_table(job: Job, layout: Layout, card: Card, efficiency: Efficiency, *, world_size: int) -> Speed:
    flops = training_flops_per_token(job.architecture, seq_length=job.seq_length)
    reference = efficiency.reference
    reference_architecture = ARCHITECTURES[reference["model"]]
    reference_flops = training_flops_per_token(reference_architecture, seq_length=reference["seq_length"])
    peak = card.bf16_tflops * 1e12
    reference_peak = cards()[reference["card"]].bf16_tflops * 1e12
    reference_mfu = reference["tokens_per_second_per_gpu"] * reference_flops / reference_peak
    name = model_name(job.architecture)
    factors = {
        "reference MFU": Factor(reference_mfu, reference["kind"], reference["source"]),
        "card": efficiency.card.get(card.key, Factor(1.0, "assumed", "no entry in the table")),
        "model": efficiency.model.get(name, efficiency.model["other"]),
        "tensor parallel": efficiency.tensor_parallel_at(layout.tensor_model_parallel_size),
        "scale": efficiency.scale_at(world_size),
        "pipeline": pipeline_factor(layout, num_microbatches=job.num_microbatches(layout, world_size)),
        "stage balance": balance_factor(job, layout),
        "recompute": recompute_factor(job, layout),
        "context parallel": context_parallel_factor(layout),
    }
    if job.seq_length != reference["seq_length"]:
        factors["sequence length"] = Factor(1.0, "assumed", f"the share of peak at {reference['seq_length']} tokens")
    mfu = math.prod(factor.value for factor in factors.values())
    return Speed(
        tokens_per_second_per_gpu=peak * mfu / flops,
        kind=loosest([factor.kind for factor in factors.values()]),
        mfu=mfu,
        factors=factors,
    )


def scaled(speed: Speed, name: str, factor: Factor, *, kind: Kind) -> Speed:
    """`speed` with one more factor, called `name`, and as sure as `kind`."""
    return Speed(
        tokens_per_second_per_gpu=speed.tokens_per_second_per_gpu * factor.value,
        kind=kind,
        mfu=speed.mfu * factor.value,
        factors=speed.factors | {name: factor},
    )
