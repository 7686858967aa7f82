"""Every layout of a small grid on a number of GPUs: which fit, how fast each is, and why the others do not."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Literal

from megatron_synE.config.schema import RunConfig
from megatron_synE.config.validate import layout_faults
from tools.planner.figures import Card, Efficiency
from tools.planner.layout import RECOMPUTE, Job, Layout, ZeroStage, section_of
from tools.planner.memory import MemoryParts, memory_of
from tools.planner.simulate import with_sharding
from tools.planner.speed import Speed, expected_speed

TENSOR = (1, 2, 4, 8, 16)
PIPELINE = (1, 2, 3, 4, 5, 8, 10, 16)
VIRTUAL = (None, 2, 4)
CONTEXT = (1, 2, 4)
MICRO_BATCH = (1, 2, 4)

SHARDED: tuple[ZeroStage, ...] = (2, 3)
OUT_OF_MEMORY = "out of memory"

TIGHT_SHARE = 0.05
"""Of the usable memory: less free than this is within the formulas' promised error, and is said."""

Status = Literal["runs", "refused"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    layout: Layout
    status: Status
    rule: str
    """Short name of what decided, to group by."""
    reason: str
    """In full, with the values."""
    memory: MemoryParts | None = None
    speed: Speed | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    card: Card
    nodes: int
    gpus_per_node: int
    reserve_bytes: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def usable_bytes(self) -> int:
        return self.card.memory_bytes - self.reserve_bytes


def grid(gpus: int) -> Iterator[Layout]:
    """All combinations tried; those that need more GPUs than there are in one replica are left to the rules."""
    for tp, pp, cp in product(TENSOR, PIPELINE, CONTEXT):
        if tp * pp * cp > max(gpus, TENSOR[-1]):
            continue
        sequence_parallel, virtual = (True, False) if tp > 1 else (False,), VIRTUAL if pp > 1 else (None,)
        for sp, vpp, micro_batch_size, recompute in product(sequence_parallel, virtual, MICRO_BATCH, RECOMPUTE):
            yield Layout(
                tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp,
                virtual_pipeline_model_parallel_size=vpp, context_parallel_size=cp, sequence_parallel=sp,
                micro_batch_size=micro_batch_size, recompute=recompute,
            )  # fmt: skip


def layout_of(config: RunConfig) -> Layout:
    """The layout as the user wrote it."""
    return Layout(**{key.name: getattr(getattr(config, section_of(key.name)), key.name) for key in fields(Layout)})


def search(config: RunConfig, job: Job, place: Place, efficiency: Efficiency) -> list[Candidate]:
    """All candidates: those that run here by falling speed (then free memory), then the others in the grid's order.

    A layout that is out of memory is also tried with gradients, then with weights, in parts (ZeRO stages 2 and 3).
    """
    found = []
    for plain in grid(place.world_size):
        found.append(judge(config, job, plain, place, efficiency))
        for stage in SHARDED:
            shares = job.data_parallel_size(plain, place.world_size) * plain.context_parallel_size
            if found[-1].rule != OUT_OF_MEMORY or shares < 2:
                break
            found.append(judge(config, job, replace(plain, zero_stage=stage), place, efficiency))
    runs = [candidate for candidate in found if candidate.status == "runs"]
    return sorted(runs, key=_rank) + [candidate for candidate in found if candidate.status != "runs"]


def judge(config: RunConfig, job: Job, layout: Layout, place: Place, efficiency: Efficiency) -> Candidate:
    """One layout: the trainer's own rules, then the node's border, then memory."""
    if refusal := _rule_against(config, job, layout, place):
        return Candidate(layout=layout, status="refused", rule=refusal[0], reason=refusal[1])
    memory = memory_of(job, layout, world_size=place.world_size)
    if memory.total > place.usable_bytes:
        parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in vars(memory).items())
        reason = f"needs {memory.total / 1e9:.1f} GB of {place.usable_bytes / 1e9:.1f} GB a GPU: {parts}"
        return Candidate(layout=layout, status="refused", rule=OUT_OF_MEMORY, reason=reason, memory=memory)
    speed = expected_speed(job, layout, place.card, efficiency, world_size=place.world_size)
    speed = with_sharding(speed, job, layout, place.card, world_size=place.world_size)
    reason = _what_it_costs(speed, memory, place)
    return Candidate(layout=layout, status="runs", rule="fits", reason=reason, memory=memory, speed=speed)


def _rule_against(config: RunConfig, job: Job, layout: Layout, place: Place) -> tuple[str, str] | None:
    tp = layout.tensor_model_parallel_size
    if tp > place.gpus_per_node:
        return "TP across nodes", (
            f"tensor parallelism of {tp} would leave a node of {place.gpus_per_node} GPUs: its collectives, four and"
            " more in every layer, would cross the network"
        )
    if layout.model_ranks > place.world_size:
        return "too few GPUs", f"one replica takes {layout.model_ranks} GPUs, there are {place.world_size}"
    if place.world_size % layout.model_ranks:
        return "GPUs not divisible", f"{place.world_size} GPUs are not a multiple of {layout.model_ranks}, one replica"
    faults = layout_faults(with_layout(config, layout), world_size=place.world_size, architecture=job.architecture)
    if faults:
        # The shape of the model first: it is what no other batch or world can mend.
        first = min(faults, key=lambda fault: "the model's" not in fault.message)
        name = {
            "parallel.tensor_model_parallel_size": "TP does not divide the model",
            "parallel.pipeline_model_parallel_size": "PP does not divide the layers",
            "parallel.virtual_pipeline_model_parallel_size": "VPP does not divide the stage",
            "training.seq_length": "sequence not divisible",
            "training.global_batch_size": "global batch not divisible",
        }.get(first.key, first.key)
        return name, f"{first.key}: {first.message}"
    return None


def with_layout(config: RunConfig, layout: Layout) -> RunConfig:
    return replace(
        config,
        parallel=replace(config.parallel, **layout.of_section("parallel")),
        training=replace(config.training, **layout.of_section("training")),
    )


def _what_it_costs(speed: Speed, memory: MemoryParts, place: Place) -> str:
    """Every factor below 1, with its kind: what a faster layout would have to save; and how little memory is free."""
    shown = ("tensor parallel", "pipeline", "stage balance", "recompute", "sharding", "scale", "measured")
    costs = [
        f"{name} {100 * (factor.value - 1):+.1f} % ({factor.kind})"
        for name in shown
        if (factor := speed.factors.get(name)) is not None and abs(factor.value - 1) >= 0.0005
    ]
    free = place.usable_bytes - memory.total
    if free < TIGHT_SHARE * place.usable_bytes:
        costs.append(f"tight: {free / 1e9:.1f} GB free")
    return ", ".join(costs) or "nothing lost to the layout"


def _rank(candidate: Candidate) -> tuple[float, int]:
    assert candidate.speed is not None and candidate.memory is not None
    return -round(candidate.speed.tokens_per_second_per_gpu, 3), candidate.memory.total
