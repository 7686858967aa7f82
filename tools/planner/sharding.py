"""What ZeRO stages 2 and 3 cost in time: gradients, and weights, that travel in every micro-batch instead of once."""

from dataclasses import replace

from tools.planner.collectives import collectives_of_step
from tools.planner.figures import Card, Factor, loosest
from tools.planner.layout import Job, Layout
from tools.planner.simulate import exposed_data_parallel
from tools.planner.speed import THIS_LAYOUT, Speed, scaled


def with_sharding(speed: Speed, job: Job, layout: Layout, card: Card, *, world_size: int) -> Speed:
    """`speed`, that of stage 1, with the messages that the layout's stage adds and its passes do not hide.

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
