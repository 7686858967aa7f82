"""What ranks send each other in one optimizer step: which collective, over which group, how much, and what hides it."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from tools.planner.layout import Job, Layout
from tools.planner.memory import layers_on_rank, reduced_bytes, weights_on_rank, widths

Kind = Literal["reduce-scatter", "all-gather", "all-reduce", "send"]
Hidden = Literal[
    "nothing", "backward of the last micro-batch", "forward of the first micro-batch",
    "backward of each micro-batch", "forward of each micro-batch", "attention", "other chunks",
]  # fmt: skip


@dataclass(frozen=True)
class Collective:
    """One kind of message; sizes for one GPU of the fullest pipeline stage."""

    name: str
    kind: Kind
    group: Literal["TP", "CP", "PP", "DP"]
    _: KW_ONLY
    ranks: int
    count: int
    """Per optimizer step."""
    payload_bytes: int
    """Of one: the whole tensor before a reduce-scatter or an all-reduce, and after an all-gather; what a send sends."""
    hidden_behind: Hidden = "nothing"

    @property
    def sent_bytes(self) -> int:
        """What one GPU sends in all of them, by a ring: (n - 1) / n of the payload, all-reduce twice that."""
        if self.kind == "send":
            return self.count * self.payload_bytes
        rounds = 2 if self.kind == "all-reduce" else 1
        return self.count * rounds * self.payload_bytes * (self.ranks - 1) // self.ranks


def collectives_of_step(job: Job, layout: Layout, *, world_size: int, ring: bool = False) -> list[Collective]:
    """All messages but those of a few bytes (loss, gradient norm, maxima of the cross-entropy).

    TP, each layer and micro-batch: with sequence parallelism an all-gather before and a reduce-scatter after attention
    and MLP, the two mirrored going backward, and one more gather of each input for the weights' gradients; without it
    one all-reduce each. The output matrix gathers its input once forward, twice backward. Full recomputation repeats
    the forward ones.
    DP, once a step: gradients (fp32 by default) are reduce-scattered, weights gathered. Groups: DP * CP ranks. Under
    ZeRO stages 2 and 3 gradients in every micro-batch, under 3 weights too, for the forward and for the backward pass.
    PP: each border of chunks passes a row forward and its gradient backward.
    CP: keys and values are gathered forward (again where attention is recomputed), their gradients reduce-scattered.
    ring: as Transformer Engine does it, and the published reference did: they go round the ring behind the attention,
    and going backward once more with their gradients.
    """
    w = widths(job, layout)
    m, dp = job.num_microbatches(layout, world_size), job.data_parallel_size(layout, world_size)
    tp, pp, cp = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size, layout.context_parallel_size
    layers, row = layers_on_rank(job, layout), w.t * w.b * w.h
    found: list[Collective] = []
    forward = 2 if layout.recompute == "full" else 1
    if tp > 1 and layout.sequence_parallel:
        gathers = layers * (2 * forward + 2 + 2) + 3
        scatters = layers * (2 * forward + 2) + 1
        found += [
            Collective("rows gathered", "all-gather", "TP", ranks=tp, count=m * gathers, payload_bytes=row),
            Collective("rows scattered", "reduce-scatter", "TP", ranks=tp, count=m * scatters, payload_bytes=row),
        ]
    elif tp > 1:
        count = m * (layers * (2 * forward + 2) + 1)
        found.append(Collective("rows summed", "all-reduce", "TP", ranks=tp, count=count, payload_bytes=row))
    keys = w.t * w.b * 2 * w.k
    if cp > 1 and not ring:
        each, gathers, kv = m * layers, 1 if layout.recompute == "none" else 2, keys * cp
        found += [
            Collective("keys and values", "all-gather", "CP", ranks=cp, count=each * gathers, payload_bytes=kv),
            Collective("gradients of keys and values", "reduce-scatter", "CP", ranks=cp, count=each, payload_bytes=kv),
        ]
    elif cp > 1:
        count = m * layers * (cp - 1) * (forward + 2)
        found.append(
            Collective(
                "keys and values", "send", "CP", ranks=cp, count=count, payload_bytes=keys, hidden_behind="attention"
            )
        )
    if pp > 1:
        chunks = layout.virtual_pipeline_model_parallel_size
        count, border = m * 2 * (chunks or 1), w.s * w.b * w.h
        hidden: Hidden = "other chunks" if chunks else "nothing"
        found.append(
            Collective(
                "rows between stages", "send", "PP", ranks=2, count=count, payload_bytes=border, hidden_behind=hidden
            )
        )
    if dp * cp > 1:
        found += _data_parallel(job, layout, ranks=dp * cp, num_microbatches=m)
    return found


def _data_parallel(job: Job, layout: Layout, *, ranks: int, num_microbatches: int) -> list[Collective]:
    weights = max(weights_on_rank(job, layout, stage) for stage in (0, layout.pipeline_model_parallel_size - 1))
    gradients, values = reduced_bytes(job) * weights, job.dtype_bytes * weights

    def message(name: str, kind: Kind, count: int, payload: int, behind: Hidden) -> Collective:
        return Collective(name, kind, "DP", ranks=ranks, count=count, payload_bytes=payload, hidden_behind=behind)

    m = num_microbatches
    if layout.zero_stage == 1:
        found = [message("gradients", "reduce-scatter", 1, gradients, "backward of the last micro-batch")]
    else:
        found = [message("gradients", "reduce-scatter", m, gradients, "backward of each micro-batch")]
    if layout.zero_stage < 3:
        return [*found, message("weights", "all-gather", 1, values, "forward of the first micro-batch")]
    return [
        *found,
        message("weights forward", "all-gather", m, values, "forward of each micro-batch"),
        message("weights backward", "all-gather", m, values, "backward of each micro-batch"),
    ]
