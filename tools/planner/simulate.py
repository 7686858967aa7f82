"""How long a step takes on paper: arithmetic at one efficiency, messages by alpha and beta, overlap as in the trainer.

One parameter is fitted: `kernel_efficiency`, on the published rate of 8 H100s (10,153 tokens/s/GPU). Everything else is
a data sheet or assumed below. The published rates of 128 H100s and of TP 8 are held out; tests compare with them.
Left out: jitter between ranks, kernels slowed by messages beside them, data loading, checkpoints, validation.
"""

from dataclasses import dataclass, fields, replace

from scipy import optimize

from megatron_synE.model.flops import training_flops_per_token
from megatron_synE.model.presets import ARCHITECTURES
from megatron_synE.sharding.bucket_size import ELEMENTS_PER_RANK, SMALLEST_BUCKET
from tools.planner.collectives import Collective, collectives_of_step
from tools.planner.figures import Card, Efficiency, Factor, cards, loosest
from tools.planner.layout import Job, Layout
from tools.planner.memory import weights_on_rank
from tools.planner.speed import THIS_LAYOUT, Speed, balance_factor, recompute_factor, scaled

BUS_EFFICIENCY = 0.8
"""Of a link's data-sheet rate that large messages reach. Assumed."""
NVLINK_ALPHA = 3e-6
"""Seconds before a message inside a node begins to flow. Assumed."""
NETWORK_ALPHA = 10e-6
"""The same between nodes. Assumed."""
OPTIMIZER_BYTES_MOVED = 4 + 4 + 3 * 4 * 2 + 2
"""Per parameter of a shard: gradient read twice (norm, update), master and moments read and written, weight written."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step; only what is not hidden."""

    arithmetic: float
    imbalance: float
    """Waiting for the last stage, which has the output matrix."""
    bubble: float
    """Pipeline filling and draining."""
    tensor_parallel: float
    pipeline_sends: float
    context_parallel: float
    data_parallel: float
    optimizer: float

    @property
    def total(self) -> float:
        return float(sum(getattr(self, field.name) for field in fields(self)))


def ranks_per_node(collective: Collective, layout: Layout, card: Card, world_size: int) -> int:
    """Members of the group on one node. mcore numbers ranks TP first, then CP, then DP, and PP last."""
    inner = {
        "TP": 1,
        "CP": layout.tensor_model_parallel_size,
        "DP": layout.tensor_model_parallel_size,  # its group holds the CP ranks too
        "PP": world_size // layout.pipeline_model_parallel_size,
    }[collective.group]
    return max(1, min(collective.ranks, card.gpus_per_node // inner))


def seconds_of(collective: Collective, layout: Layout, card: Card, world_size: int) -> float:
    """Of one message: alpha for each hop of the ring, and the bytes over the slowest link.

    Between nodes all members on a node send over their own ports at once, up to the rate of NVLink.
    """
    here = ranks_per_node(collective, layout, card, world_size)
    nodes = -(-collective.ranks // here)
    rate = card.nvlink_bytes_per_second
    if nodes > 1:
        rate = min(rate, here * card.network_bytes_per_second)
    if collective.kind == "send":
        alpha = NETWORK_ALPHA if nodes > 1 else NVLINK_ALPHA
    else:
        rounds = 2 if collective.kind == "all-reduce" else 1
        alpha = rounds * ((here - 1) * NVLINK_ALPHA + (nodes - 1) * NETWORK_ALPHA)
    return alpha + collective.sent_bytes / collective.count / (rate * BUS_EFFICIENCY)


def simulate(
    job: Job, layout: Layout, card: Card, *, world_size: int, kernel_efficiency: float, ring: bool = False
) -> StepTime:
    """One step of `job` in `layout`. ring: context parallelism as the published reference has it, not as here."""
    m = job.num_microbatches(layout, world_size)
    tp, pp, cp = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size, layout.context_parallel_size
    flops = training_flops_per_token(job.architecture, seq_length=job.seq_length)
    tokens = job.seq_length * layout.micro_batch_size
    useful = tokens * flops / (tp * cp * pp) / (card.bf16_tflops * 1e12 * kernel_efficiency)
    mean = useful / recompute_factor(job, layout).value
    slowest = mean / balance_factor(job, layout).value
    messages = collectives_of_step(job, layout, world_size=world_size, ring=ring)
    cost = {c: c.count * seconds_of(c, layout, card, world_size) for c in messages}
    tp_seconds = sum(seconds for c, seconds in cost.items() if c.group == "TP")
    sends = sum(seconds for c, seconds in cost.items() if c.group == "PP" and c.hidden_behind == "nothing")
    keys = sum(seconds for c, seconds in cost.items() if c.group == "CP")
    attention = (flops - training_flops_per_token(job.architecture, seq_length=0)) / flops * mean * m
    per_pass = slowest + tp_seconds / m
    data_parallel = exposed_data_parallel(job, layout, card, messages, world_size=world_size, seconds_per_pass=per_pass)
    shards = job.data_parallel_size(layout, world_size) * cp
    weights = max(weights_on_rank(job, layout, stage) for stage in (0, pp - 1))
    return StepTime(
        arithmetic=m * mean,
        imbalance=m * (slowest - mean),
        bubble=(pp - 1) / (layout.virtual_pipeline_model_parallel_size or 1) * (per_pass + sends / m),
        tensor_parallel=tp_seconds,
        pipeline_sends=sends,
        context_parallel=max(0.0, keys - attention) if ring else keys,
        data_parallel=data_parallel,
        optimizer=OPTIMIZER_BYTES_MOVED * weights / shards / card.memory_bytes_per_second,
    )


def exposed_data_parallel(
    job: Job, layout: Layout, card: Card, messages: list[Collective], *, world_size: int, seconds_per_pass: float
) -> float:
    """Seconds of a step in which data-parallel messages have nothing to hide behind.

    What their window cannot hide, but at least one bucket: the last reduced and the first gathered have no cover.
    seconds_per_pass: forward and backward of one micro-batch, a third and two thirds.
    """
    m = job.num_microbatches(layout, world_size)
    window = {
        "backward of the last micro-batch": 2 / 3 * seconds_per_pass,
        "forward of the first micro-batch": 1 / 3 * seconds_per_pass,
        "backward of each micro-batch": m * 2 / 3 * seconds_per_pass,
        "forward of each micro-batch": m * 1 / 3 * seconds_per_pass,
    }
    weights = max(weights_on_rank(job, layout, stage) for stage in (0, layout.pipeline_model_parallel_size - 1))
    total = 0.0
    for behind, seconds_hidden in window.items():
        mine = [c for c in messages if c.group == "DP" and c.hidden_behind == behind]
        seconds = sum(c.count * seconds_of(c, layout, card, world_size) for c in mine)
        if mine:
            bucket = max(SMALLEST_BUCKET, ELEMENTS_PER_RANK * mine[0].ranks)  # megatron-core's own
            total += max(seconds - seconds_hidden, seconds * min(1.0, bucket / weights))
    return total


def with_sharding(speed: Speed, job: Job, layout: Layout, card: Card, *, world_size: int) -> Speed:
    """`speed`, that of ZeRO stage 1, with the messages that the layout's stage adds and its passes do not hide.

    A rate that was measured in this very layout has them already and comes back as it is.
    """
    measured = speed.factors.get("measured")
    if layout.zero_stage == 1 or (measured is not None and measured.source == THIS_LAYOUT):
        return speed
    factor = sharding_factor(job, layout, card, speed.tokens_per_second_per_gpu, world_size=world_size)
    kinds = [known.kind for known in (*speed.factors.values(), factor)]
    return scaled(speed, "sharding", factor, kind=loosest(kinds))


def sharding_factor(job: Job, layout: Layout, card: Card, rate: float, *, world_size: int) -> Factor:
    """Time of a step under stage 1 over its time under this one; `rate` is stage 1's tokens/s/GPU."""
    tokens = job.seq_length * layout.micro_batch_size
    per_pass = tokens / rate / layout.model_ranks
    step = job.num_microbatches(layout, world_size) * per_pass

    def exposed(one: Layout) -> float:
        messages = collectives_of_step(job, one, world_size=world_size)
        return exposed_data_parallel(job, one, card, messages, world_size=world_size, seconds_per_pass=per_pass)

    more = max(0.0, exposed(layout) - exposed(replace(layout, zero_stage=1)))
    return Factor(step / (step + more), "computed", "messages of every micro-batch that its passes do not hide")


REFERENCE_LAYOUT = Layout(context_parallel_size=2)
REFERENCE_BATCH_PER_GPU = 16
"""128 sequences on 8 GPUs."""


def reference_job(efficiency: Efficiency, *, gpus: int) -> Job:
    """The published run, weakly scaled to `gpus`."""
    return Job(
        architecture=ARCHITECTURES[efficiency.reference["model"]],
        seq_length=efficiency.reference["seq_length"],
        global_batch_size=REFERENCE_BATCH_PER_GPU * gpus,
        total_tokens=1,
    )


def calibrated_kernel_efficiency(efficiency: Efficiency) -> float:
    """The one fitted parameter: with it the published run of 8 GPUs takes its published time."""
    card, gpus = cards()[efficiency.reference["card"]], efficiency.reference["gpus"]
    job = reference_job(efficiency, gpus=gpus)
    target: float = job.global_batch_size * job.seq_length / gpus / efficiency.reference["tokens_per_second_per_gpu"]

    def too_long(efficiency: float) -> float:
        """Seconds; falls as the efficiency rises."""
        step = simulate(job, REFERENCE_LAYOUT, card, world_size=gpus, kernel_efficiency=efficiency, ring=True)
        return step.total - target

    return float(optimize.brentq(too_long, 0.05, 1.0))


def tokens_per_second_per_gpu(job: Job, step: StepTime, *, world_size: int) -> float:
    return job.global_batch_size * job.seq_length / step.total / world_size
