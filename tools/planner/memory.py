"""Bytes on one GPU, part by part, as plain formulas.

Letters, all for one rank: t tokens of one micro-batch row = seq_length * micro_batch_size / CP; h hidden_size;
q = num_attention_heads * kv_channels / TP, the width of the queries; k the width of the keys, and of the values;
f = ffn_hidden_size / TP; v vocabulary rows / TP; a heads / TP; b bytes of a weight (bf16 2, fp32 4); N weights of the
rank; D ranks that share its optimizer state (DP * CP). A width marked s is divided by TP under sequence parallelism.

Source: which tensors autograd keeps in megatron-core 0.16.1 with this project's layers, read from a saved-tensors hook
(tests/planner/measured_memory.py counts the allocator's own events; the two agree within 5 %). Not counted: padding of
mcore's gradient buckets (under 128 elements a bucket), and what the CUDA context, NCCL and fragmentation take, which
the planner holds back as `reserve`.
"""

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal

from megatron_synE.model.head_sizes import chunk_tokens, piece_tokens
from megatron_synE.sharding.bucket_size import default_bucket_size
from tools.planner.layout import Job, Layout

FP32 = 4
MOMENTS = 2
NORMS_PER_LAYER = 2


@dataclass(frozen=True, kw_only=True)
class MemoryParts:
    """Unit: bytes on one GPU, at the moment of the step at which most is alive."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    """What is alive beside them at that moment: rows of a gather, gradients on their way, one recomputed layer."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def weights_on_rank(job: Job, layout: Layout, stage: int) -> int:
    """N: number of weights of pipeline stage `stage` (from 0) on one of its TP ranks.

    Matrices are cut over TP, norms are whole on every rank. The first stage has the embedding, the last the output
    matrix and the final norm; with tied embeddings each of the two has the one matrix.
    """
    a = job.architecture
    last = layout.pipeline_model_parallel_size - 1
    number = layers_on_rank(job, layout) * layer_elements(job, layout)
    matrix = _head_elements(job, layout)
    if stage == 0:
        number += matrix
    if stage == last:
        number += a.hidden_size + (0 if a.tied and last == 0 else matrix)
    return number


def layers_on_rank(job: Job, layout: Layout) -> int:
    """Layers of one pipeline rank over all its chunks."""
    return job.architecture.num_layers // layout.pipeline_model_parallel_size


def weight_bytes(job: Job, layout: Layout, stage: int, *, shards: int) -> int:
    """b * N; under ZeRO stage 3 b * N / D, what is gathered for use being `sharding_bytes`."""
    return job.dtype_bytes * weights_on_rank(job, layout, stage) // (shards if layout.zero_stage == 3 else 1)


def gradient_bytes(job: Job, layout: Layout, stage: int, *, shards: int) -> int:
    """4 * N, or b * N with grad_reduce_in_fp32 off: mcore's DDP keeps the whole buffer on every rank (ZeRO-1).

    It reduces in that buffer (start_grad_sync of param_and_grad_buffer.py: the sum arrives in this rank's range of it),
    so reductions on the wire add nothing, however many: under an interleaved pipeline at least one a chunk at once.
    Under stages 2 and 3 this rank's part, always in fp32: 4 * N / D.
    """
    number = weights_on_rank(job, layout, stage)
    if layout.zero_stage > 1:
        return FP32 * number // shards
    return reduced_bytes(job) * number


def reduced_bytes(job: Job) -> int:
    """Bytes of one element of the gradients that ranks sum."""
    return FP32 if job.grad_reduce_in_fp32 else job.dtype_bytes


def optimizer_bytes(job: Job, layout: Layout, stage: int, *, shards: int) -> int:
    """(4 * 2 moments + 4 for the fp32 master under bf16) * N / D; under fp32 the weight is its own master."""
    master = FP32 if job.dtype == "bf16" else 0
    return (FP32 * MOMENTS + master) * weights_on_rank(job, layout, stage) // shards


@dataclass(frozen=True)
class Widths:
    """The letters of this file's head."""

    t: int
    s: int
    """Under sequence parallelism t / TP, else t."""
    h: int
    q: int
    k: int
    f: int
    v: int
    a: int
    b: int
    hn: int


def widths(job: Job, layout: Layout) -> Widths:
    a, tp = job.architecture, layout.tensor_model_parallel_size
    t = job.seq_length * layout.micro_batch_size // layout.context_parallel_size
    return Widths(
        t=t,
        s=t // tp if layout.sequence_parallel else t,
        h=a.hidden_size,
        q=a.num_attention_heads * a.kv_channels // tp,
        k=a.num_query_groups * a.kv_channels // tp,
        f=a.ffn_hidden_size // tp,
        v=job.padded_vocab_size(layout) // tp,
        a=a.num_attention_heads // tp,
        b=job.dtype_bytes,
        hn=a.kv_channels,
    )


def norm_bytes(job: Job, layout: Layout) -> int:
    """One RMSNorm: its input, 1 / rms per token in fp32, its output: s * (b*h + 4 + b*h).

    Of fused kernels, and of ours on a CPU (`model.kernels: auto`); under `torch` a CPU keeps more.
    """
    w = widths(job, layout)
    return w.s * (2 * w.b * w.h + FP32)


def attention_bytes(job: Job, layout: Layout, *, recomputed: bool) -> int:
    """Core attention and what feeds it, up to and with the input of the output projection.

    The rows of q, k, v come out of one product, [t, q + 2k], and v stays a view of it. All kernels keep rotated q and
    k, v, their output and the log-sum-exp per head in fp32:
        transformer_engine  t * (b * (q + k + (q + 2k) + q) + 4a)
        native_cpu, fp32    the same + t * b * q: the output is written in rows by head and copied to rows by token
        native_cpu, bf16    neither that copy nor the log-sum-exp, which the backward pass computes again
        native_cuda         t * (b * (q + q + q + q) + 4a): k and v are repeated to the width of q
    Under context parallelism k and v are those of the whole row, and the product is free: its width q + 2k goes, and
    k + v stay at 2k * CP instead.
    recomputed (selective): the inputs before rotation and the output alone, t * b * (q + (q + 2k) + q).
    """
    w = widths(job, layout)
    product = w.q + 2 * w.k
    if recomputed:
        return w.t * w.b * (w.q + product + w.q)
    by_blocks = job.layers == "native_cpu" and job.dtype == "bf16"
    lse = 0 if by_blocks else FP32 * w.a
    if layout.context_parallel_size > 1:
        keys = (2 * w.q if job.layers == "native_cuda" else 2 * w.k) * layout.context_parallel_size
        return w.t * (w.b * (w.q + keys + w.q) + lse)
    if job.layers == "native_cuda" and w.q != w.k:
        return w.t * (w.b * 4 * w.q + lse)
    copy = w.q if job.layers == "native_cpu" and not by_blocks else 0
    return w.t * (w.b * (w.q + w.k + product + w.q + copy) + lse)


def mlp_bytes(job: Job, layout: Layout) -> int:
    """SwiGLU: gate and up in one tensor of 2f, and the input of the second product, f: t * b * 3f."""
    w = widths(job, layout)
    return w.t * w.b * 3 * w.f


def layer_bytes(job: Job, layout: Layout) -> int:
    """What one layer keeps of one micro-batch for the backward pass; full: its input alone, s * b * h."""
    if layout.recompute == "full":
        w = widths(job, layout)
        return w.s * w.b * w.h
    return whole_layer_bytes(job, layout, recomputes_attention=layout.recompute == "selective")


def whole_layer_bytes(job: Job, layout: Layout, *, recomputes_attention: bool) -> int:
    return (
        NORMS_PER_LAYER * norm_bytes(job, layout)
        + attention_bytes(job, layout, recomputed=recomputes_attention)
        + mlp_bytes(job, layout)
    )


def chunks_in_flight(layout: Layout, stage: int, *, num_microbatches: int) -> int:
    """Forward passes of model chunks whose backward pass is still to come on this stage, at the most.

    1F1B: min(PP - stage, micro-batches). Interleaved (mcore, schedules.py): 2 (PP - stage - 1) + (VPP - 1) PP + 1.
    """
    pp, vpp = layout.pipeline_model_parallel_size, layout.virtual_pipeline_model_parallel_size
    if vpp is None:
        return min(pp - stage, num_microbatches)
    return min(2 * (pp - stage - 1) + (vpp - 1) * pp + 1, num_microbatches * vpp)


def activation_bytes(job: Job, layout: Layout, stage: int, *, num_microbatches: int) -> int:
    """Kept for the backward pass over all micro-batches in flight.

    In each: the chunk's layers, cos and sin of the rotary angles, t * b * 2hn, and under PP its output row, s * b * h,
    which mcore holds until it is used; on the last stage the final norm of one micro-batch, whose output the head keeps
    whole, (t - s) * b * h more than the norm under sequence parallelism.
    """
    w = widths(job, layout)
    pp = layout.pipeline_model_parallel_size
    layers = layers_on_rank(job, layout) // (layout.virtual_pipeline_model_parallel_size or 1)
    chunk = layers * layer_bytes(job, layout) + w.t * w.b * 2 * w.hn
    if pp > 1:
        chunk += w.s * w.b * w.h
    total = chunks_in_flight(layout, stage, num_microbatches=num_microbatches) * chunk
    return total + (norm_bytes(job, layout) + (w.t - w.s) * w.b * w.h if stage == pp - 1 else 0)


def logits_bytes(job: Job, layout: Layout, stage: int) -> int:
    """On the last stage while the loss is computed: a chunk of logits, and both gradients.

    c * b * v for the chunk; p * 4 * v for one piece of it in fp32 (on a CPU under bf16 twice; under TP the piece is the
    chunk); b * h * v for the weight's gradient and t * b * h for the rows'.

    c and p: megatron_synE/model/head_sizes.py. Padded rows are not computed with.
    """
    if stage != layout.pipeline_model_parallel_size - 1:
        return 0
    w = widths(job, layout)
    kind: Literal["cpu", "cuda"] = "cpu" if job.layers == "native_cpu" else "cuda"
    alone = layout.tensor_model_parallel_size == 1
    rows = job.architecture.vocab_size if alone else min(w.v, job.architecture.vocab_size)
    chunk = chunk_tokens(w.t, rows=w.v, kind=kind)
    piece = piece_tokens(chunk, rows=rows, kind=kind) if alone else chunk
    copies = 2 if kind == "cpu" and job.dtype == "bf16" else 1
    return chunk * w.b * rows + piece * copies * FP32 * rows + w.b * w.h * w.v + w.t * w.b * w.h


def backward_bytes(job: Job, layout: Layout) -> int:
    """Alive while a layer goes backward beyond what the forward pass kept.

    The row's gradient, s * b * h; the gradient of gate and up, t * b * 2f; the largest weight's gradient, b * h * 2f,
    before it is added to the buffer; under full recomputation also that layer's own tensors but its input.
    """
    w = widths(job, layout)
    working = w.s * w.b * w.h + w.t * w.b * 2 * w.f + w.b * w.h * 2 * w.f
    if layout.recompute == "full":
        working += whole_layer_bytes(job, layout, recomputes_attention=False)
    elif layout.recompute == "selective":
        working += attention_bytes(job, layout, recomputed=False) - attention_bytes(job, layout, recomputed=True)
    return working


def gather_bytes(job: Job, layout: Layout) -> int:
    """Sequence parallelism gathers rows into one buffer that mcore keeps for good: t * b * h.

    Parameters are gathered in place, into the weights' own buffer: nothing more.
    """
    w = widths(job, layout)
    return w.t * w.b * w.h if layout.sequence_parallel and layout.tensor_model_parallel_size > 1 else 0


Moment = Literal["loss", "head", "layer", "embedding"]


def sharding_bytes(job: Job, layout: Layout, stage: int, moment: Moment, *, shards: int) -> int:
    """What ZeRO stages 2 and 3 hold for a moment: gradients on their way to other ranks, and gathered weights.

    Gradients: a bucket being filled, at most min(what is used at once, bucket size); on CUDA two more on the wire, of
    all chunks of an interleaved pipeline together.
    Weights (stage 3): what is used, on CUDA also what is used next. A tied embedding is the head, and stays whole.
    """
    if layout.zero_stage == 1:
        return 0
    a, is_cuda = job.architecture, job.layers != "native_cpu"
    layer = layer_elements(job, layout)
    matrix = _head_elements(job, layout)
    size = default_bucket_size(shards)
    filled = {"loss": 0, "head": min(matrix, size), "layer": min(layer, size), "embedding": min(matrix, size)}[moment]
    on_the_wire = 2 * min(max(layer, matrix), size) if is_cuda and moment != "loss" else 0
    held = reduced_bytes(job) * (filled + on_the_wire)
    if layout.zero_stage == 3:
        head_is_whole = moment in ("loss", "head") and stage == layout.pipeline_model_parallel_size - 1
        head_is_whole |= a.tied and stage == 0
        layers = (1 if moment == "layer" else 0) + (1 if is_cuda and moment != "embedding" else 0)
        held += job.dtype_bytes * (layers * layer + (matrix if head_is_whole else 0))
    return held


def layer_elements(job: Job, layout: Layout) -> int:
    """Weights of one layer on one TP rank."""
    a = job.architecture
    attention = a.hidden_size * a.kv_channels * 2 * (a.num_attention_heads + a.num_query_groups)
    matrices = (attention + 3 * a.hidden_size * a.ffn_hidden_size) // layout.tensor_model_parallel_size
    return matrices + NORMS_PER_LAYER * a.hidden_size


def _head_elements(job: Job, layout: Layout) -> int:
    return job.padded_vocab_size(layout) // layout.tensor_model_parallel_size * job.architecture.hidden_size


def memory_of_stage(job: Job, layout: Layout, stage: int, *, world_size: int) -> MemoryParts:
    """All parts of one GPU of pipeline stage `stage`.

    Most is alive either when the loss is computed (logits) or when the last layer goes backward (working tensors; the
    logits and the final norm are gone). The larger counts. Under ZeRO stages 2 and 3 also when the head goes backward
    (both of its gradients) and, with the micro-batch's activations gone, the embedding.
    """
    num_microbatches = job.num_microbatches(layout, world_size)
    shards = job.data_parallel_size(layout, world_size) * layout.context_parallel_size
    activations = activation_bytes(job, layout, stage, num_microbatches=num_microbatches)
    logits = logits_bytes(job, layout, stage)
    is_last = stage == layout.pipeline_model_parallel_size - 1
    norm = norm_bytes(job, layout) if is_last else 0
    held = partial(sharding_bytes, job, layout, stage, shards=shards)
    moments = [
        (activations, logits, held("loss")),
        (activations - norm, 0, backward_bytes(job, layout) + held("layer")),
    ]
    if layout.zero_stage > 1:
        w, matrix = widths(job, layout), _head_elements(job, layout) * job.dtype_bytes
        if is_last:
            moments.append((activations, w.t * w.b * w.h, matrix + held("head")))
        if stage == 0:
            chunk = activations // chunks_in_flight(layout, stage, num_microbatches=num_microbatches)
            moments.append((activations - chunk, 0, w.s * w.b * w.h + matrix + held("embedding")))
    activations, logits, working = max(moments, key=sum)
    return MemoryParts(
        weights=weight_bytes(job, layout, stage, shards=shards),
        gradients=gradient_bytes(job, layout, stage, shards=shards),
        optimizer=optimizer_bytes(job, layout, stage, shards=shards),
        activations=activations,
        logits=logits,
        buffers=working + gather_bytes(job, layout),
    )


def memory_of(job: Job, layout: Layout, *, world_size: int) -> MemoryParts:
    """The parts of the GPU that needs most; of the stages the first and the last can be it.

    Where no rank shares with it, the trainer runs as ZeRO stage 1, and so it is counted.
    """
    if job.data_parallel_size(layout, world_size) * layout.context_parallel_size == 1:
        layout = replace(layout, zero_stage=1)
    stages = {0, layout.pipeline_model_parallel_size - 1}
    parts = [memory_of_stage(job, layout, stage, world_size=world_size) for stage in sorted(stages)]
    return max(parts, key=lambda part: part.total)


def checkpoint_bytes(job: Job) -> int:
    """Size of one checkpoint over all ranks: weights, fp32 masters under bf16, two moments, each written once.

    14 bytes a parameter under bf16, 12 under fp32 (docs/checkpoint.md); rows of padding are not written.
    """
    master = FP32 if job.dtype == "bf16" else 0
    return (job.dtype_bytes + master + FP32 * MOMENTS) * job.architecture.num_parameters
