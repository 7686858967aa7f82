"""The memory formulas against bytes counted in a real trainer, and against hand arithmetic at Llama-3-8B's shape."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.model.llama import LlamaArchitecture
from megatron_synE.model.presets import ARCHITECTURES
from tests import tiny
from tools.planner import memory
from tools.planner.layout import Job, Layout

SCRIPT = Path(__file__).with_name("measured_memory.py")
SEQ_LENGTH, BATCH = 256, 8
TOLERANCE = 0.05
"""What docs/planner.md promises."""
ARCHITECTURE = LlamaArchitecture(
    num_layers=4, hidden_size=128, ffn_hidden_size=352, num_attention_heads=8, num_query_groups=4, kv_channels=24,
    vocab_size=1000, max_position_embeddings=4096,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One way to run the small model."""

    nproc: int
    dtype: Any
    layout: Layout = field(default_factory=lambda: Layout(micro_batch_size=2))


def laid(**changes: Any) -> Layout:
    return Layout(micro_batch_size=2, **changes)


CASES = {
    "one process, fp32": Case(1, "fp32"),
    "one process, bf16": Case(1, "bf16"),
    "selective": Case(1, "bf16", laid(recompute="selective")),
    "full": Case(1, "bf16", laid(recompute="full")),
    "full, fp32": Case(1, "fp32", laid(recompute="full")),
    "DP2": Case(2, "bf16"),
    "DP2, fp32": Case(2, "fp32"),
    "DP2 ZeRO2": Case(2, "bf16", laid(zero_stage=2)),
    "DP2 ZeRO2, fp32": Case(2, "fp32", laid(zero_stage=2)),
    "DP2 ZeRO3": Case(2, "bf16", laid(zero_stage=3)),
    "DP2 ZeRO3 full, fp32": Case(2, "fp32", laid(zero_stage=3, recompute="full")),
    "TP2": Case(2, "bf16", laid(tensor_model_parallel_size=2)),
    "TP2 SP": Case(2, "fp32", laid(tensor_model_parallel_size=2, sequence_parallel=True)),
    "TP2 SP full": Case(2, "bf16", laid(tensor_model_parallel_size=2, sequence_parallel=True, recompute="full")),
    "PP2": Case(2, "bf16", laid(pipeline_model_parallel_size=2)),
    "PP2 full, fp32": Case(2, "fp32", laid(pipeline_model_parallel_size=2, recompute="full")),
    "VPP": Case(2, "bf16", laid(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("memory")
    tiny.manifest(root / "train", {("zh", "web", "law"): 30_000, ("en", "web", "news"): 60_000}, vocab_size=1000)
    hf = tiny.hf_folder(
        root / "hf", vocab_size=1000, hidden_size=128, intermediate_size=352, num_attention_heads=8,
        num_key_value_heads=4, head_dim=24,
    )  # fmt: skip
    training = {"seq_length": SEQ_LENGTH, "global_batch_size": BATCH, "micro_batch_size": 2}
    tree = tiny.run_tree(
        root, hf=hf, tokens=SEQ_LENGTH * BATCH * 6, training=training,
        lr_schedule={"warmup_tokens": 0, "decay_tokens": 0}, validation={"manifests": []},
    )  # fmt: skip
    return tiny.write_run(root, tree)


def job(dtype: Any) -> Job:
    return Job(
        architecture=ARCHITECTURE, seq_length=SEQ_LENGTH, global_batch_size=BATCH, total_tokens=1, dtype=dtype,
        layers="native_cpu",
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bytes_by_part_are_what_a_real_trainer_holds(name: str, config: Path, tmp_path: Path) -> None:
    case = CASES[name]
    overrides = [f"run.dir={tmp_path / 'run'}", f"training.precision={case.dtype}", *case.layout.overrides()]
    tiny.launched(case.nproc, SCRIPT, config, tmp_path, *overrides)
    for rank in range(case.nproc):
        counted = json.loads((tmp_path / f"{rank}.json").read_text())
        stage = rank if case.layout.pipeline_model_parallel_size > 1 else 0
        what = job(case.dtype)
        parts = memory.memory_of_stage(what, case.layout, stage, world_size=case.nproc)
        for part in ("weights", "gradients", "optimizer"):
            assert getattr(parts, part) == pytest.approx(counted[part], rel=TOLERANCE), (part, rank)
        _check_saved(what, case, stage, counted)
        # Where gloo reduces or gathers rows it holds copies of its own for moments that differ from run to run.
        if case.layout.tensor_model_parallel_size == 1:
            working = parts.activations + parts.logits + parts.buffers
            assert working == pytest.approx(counted["step_peak"], rel=TOLERANCE), rank


def _check_saved(what: Job, case: Case, stage: int, counted: dict[str, int]) -> None:
    """Activations as autograd kept them; the head's gradients wait beside them."""
    layout = case.layout
    in_flight = what.num_microbatches(layout, case.nproc)
    w = memory.widths(what, layout)
    expected = memory.activation_bytes(what, layout, stage, num_microbatches=in_flight)
    if layout.pipeline_model_parallel_size > 1:  # the stage's output row is mcore's to keep, not autograd's
        expected -= memory.chunks_in_flight(layout, stage, num_microbatches=in_flight) * w.s * w.b * w.h
    if "forward_saved" in counted:
        # Where layers are computed again autograd keeps no angles: their row does.
        angles = w.t * w.b * 2 * w.hn if layout.recompute == "full" else 0
        assert expected - angles == pytest.approx(counted["forward_saved"], rel=TOLERANCE)
    if layout.recompute == "none":  # else the step's peak holds a recomputed layer too
        assert expected == pytest.approx(counted["saved_peak"], rel=TOLERANCE)
    if layout.model_ranks == 1:
        if layout.zero_stage == 3:  # the head stays gathered from the loss on
            expected += w.v * w.h * w.b
        expected += w.b * w.h * (w.v + w.t)  # gradients of the output matrix and of its input
        assert expected == pytest.approx(counted["forward_allocated"], rel=TOLERANCE)


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_gradients_on_their_way_in_an_interleaved_pipeline_take_what_the_formula_says(
    config: Path, tmp_path: Path, zero_stage: int
) -> None:
    """PP 2 x DP 2, two chunks a rank, overlapped as on CUDA: at stage 1 in place, at stage 2 three buckets at most."""
    layout = laid(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2, zero_stage=zero_stage)
    overrides = [f"run.dir={tmp_path / 'run'}", *layout.overrides(), "parallel.overlap_grad_reduce=true"]
    tiny.launched(4, SCRIPT.with_name("measured_reductions.py"), config, tmp_path, *overrides)
    what = dataclasses.replace(job("fp32"), layers="native_cuda")
    for rank in range(4):
        counted = json.loads((tmp_path / f"{rank}.json").read_text())
        assert counted["reductions"] >= 2, rank  # one of each chunk, or more
        moments: tuple[memory.Moment, ...] = ("loss", "head", "layer", "embedding")
        expected = max(memory.sharding_bytes(what, layout, counted["stage"], m, shards=2) for m in moments)
        assert counted["bytes_held"] == pytest.approx(expected, rel=TOLERANCE), rank


def test_a_checkpoint_is_as_large_as_the_formula_says(config: Path, tmp_path: Path) -> None:
    tiny.train(config, f"run.dir={tmp_path / 'run'}", "training.stop_after_iterations=1", code=75)
    (folder,) = (tmp_path / "run" / "checkpoints").glob("iter_*")
    written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert memory.checkpoint_bytes(job("fp32")) == pytest.approx(written, rel=TOLERANCE)


def llama(**changes: Any) -> Job:
    facts: dict[str, Any] = {
        "architecture": ARCHITECTURES["llama3_8b"], "seq_length": 8192, "global_batch_size": 128, "total_tokens": 1,
    }  # fmt: skip
    return Job(**facts | changes)


def test_llama3_8b_at_rest_by_hand() -> None:
    # 8,030,261,248 weights: 2 + 4 bytes each, and 12 / 8 of optimizer on eight ranks.
    parts = memory.memory_of(llama(), Layout(), world_size=8)
    assert parts.weights == 16_060_522_496
    assert parts.gradients == 32_121_044_992
    assert parts.optimizer == 12_045_391_872
    assert memory.memory_of(llama(grad_reduce_in_fp32=False), Layout(), world_size=8).gradients == 16_060_522_496
    assert memory.checkpoint_bytes(llama()) == 112_423_657_472


def test_llama3_8b_layer_by_hand() -> None:
    # 8192 tokens, bf16. Norms: 2 * (2 * 4096 * 2 B + 4 B). Attention: rotated q 4096 and k 1024, the product 6144, the
    # output 4096, log-sum-exp 32 * 4 B. MLP: 2 * 14336 and 14336.
    per_token = 2 * (2 * 4096 * 2 + 4) + 2 * (4096 + 1024 + 6144 + 4096) + 128 + 2 * 3 * 14336
    assert per_token == 149_640
    assert memory.layer_bytes(llama(), Layout()) == 8192 * 149_640
    assert memory.layer_bytes(llama(), Layout(recompute="full")) == 8192 * 4096 * 2
    # Native CUDA attention: k and v repeated to 4096 each, the product is free.
    native = memory.layer_bytes(llama(layers="native_cuda"), Layout())
    assert native - 8192 * per_token == 8192 * 2 * (4 * 4096 - (4096 + 1024 + 6144 + 4096))


def test_llama3_8b_layer_under_context_parallelism_by_hand() -> None:
    # 4096 tokens a rank; k and v of all 8192 tokens, 1024 wide each, and no product beside them.
    per_token = 2 * (2 * 4096 * 2 + 4) + 2 * (4096 + 2 * 2 * 1024 + 4096) + 128 + 2 * 3 * 14336
    assert memory.layer_bytes(llama(), Layout(context_parallel_size=2)) == 4096 * per_token
    # Native CUDA attention repeats both to the width of the queries.
    repeated = memory.layer_bytes(llama(layers="native_cuda"), Layout(context_parallel_size=2))
    assert repeated == 4096 * (per_token + 2 * 2 * 2 * (4096 - 1024))


def test_llama3_8b_logits_by_hand() -> None:
    # 2^27 logits are 1046 tokens, so 8 chunks of 1024, 2 B; 2^25 in fp32 are 261 tokens; the matrix and the rows, 2 B.
    expected = 1024 * 128_256 * 2 + 261 * 128_256 * 4 + 4096 * 128_256 * 2 + 8192 * 4096 * 2
    assert memory.logits_bytes(llama(), Layout(), 0) == expected == 1_514_349_568
    # TP 4 pads 128256 to 128512 = 4 * 32128: 2 chunks of 4096 tokens, each in fp32 as a whole.
    layout = Layout(tensor_model_parallel_size=4, sequence_parallel=True)
    expected = 4096 * 32_128 * (2 + 4) + 4096 * 32_128 * 2 + 8192 * 4096 * 2
    assert memory.logits_bytes(llama(), layout, 0) == expected


def test_stages_and_chunks_in_flight() -> None:
    plain = Layout(pipeline_model_parallel_size=4)
    assert [memory.chunks_in_flight(plain, stage, num_microbatches=16) for stage in range(4)] == [4, 3, 2, 1]
    assert memory.chunks_in_flight(plain, 0, num_microbatches=2) == 2
    interleaved = Layout(pipeline_model_parallel_size=4, virtual_pipeline_model_parallel_size=2)
    # Warm-up of rank 0: 2 * 3 + 1 * 4 = 10 chunks, and the one under way.
    assert memory.chunks_in_flight(interleaved, 0, num_microbatches=16) == 11


def test_a_tied_matrix_is_held_by_first_and_last_stage() -> None:
    job = llama(architecture=ARCHITECTURES["llama3.2_1b"])
    a, pp2 = job.architecture, Layout(pipeline_model_parallel_size=2)
    both = memory.weights_on_rank(job, pp2, 0) + memory.weights_on_rank(job, pp2, 1)
    assert both == a.num_parameters + a.vocab_size * a.hidden_size
    assert memory.weights_on_rank(job, Layout(), 0) == a.num_parameters


def test_llama3_8b_going_backward_by_hand() -> None:
    # Gradients in 2 B: of the row, 8192 * 4096, of gate and up, 8192 * 28672, of their weight, 4096 * 28672.
    working = 67_108_864 + 469_762_048 + 234_881_024
    assert memory.backward_bytes(llama(), Layout()) == working
    assert memory.backward_bytes(llama(), Layout(recompute="full")) == working + 8192 * 149_640
    # Selective: what attention keeps beyond its inputs before rotation, k 1024 * 2 B and log-sum-exp 128 B.
    assert memory.backward_bytes(llama(), Layout(recompute="selective")) == working + 8192 * (1024 * 2 + 128)


def test_llama3_8b_activations_of_a_pipeline_by_hand() -> None:
    # In each of the passes in flight 8 layers, the angles of 2 * 128 and the row that mcore holds, all in 2 B.
    chunk = 8 * 8192 * 149_640 + 8192 * 2 * 256 + 8192 * 2 * 4096
    pp4 = Layout(pipeline_model_parallel_size=4)
    assert memory.activation_bytes(llama(), pp4, 0, num_microbatches=16) == 4 * chunk
    norm = 8192 * (2 * 4096 * 2 + 4)
    assert memory.activation_bytes(llama(), pp4, 3, num_microbatches=16) == chunk + norm
    vpp2 = Layout(pipeline_model_parallel_size=4, virtual_pipeline_model_parallel_size=2)
    assert memory.activation_bytes(llama(), vpp2, 3, num_microbatches=16) == 5 * (chunk - 4 * 8192 * 149_640) + norm


def test_rows_are_gathered_under_sequence_parallelism_alone() -> None:
    assert memory.gather_bytes(llama(), Layout(tensor_model_parallel_size=2, sequence_parallel=True)) == 67_108_864
    assert memory.gather_bytes(llama(), Layout(tensor_model_parallel_size=2)) == 0
    assert memory.gather_bytes(llama(), Layout(sequence_parallel=True)) == 0


LAYER, MATRIX = 218_112_000, 525_336_576  # 4096 * 128 * 2 * 40 + 3 * 4096 * 14336 + 2 * 4096; 128256 * 4096
BUCKETS = 4 * 3 * 40_000_000  # one being filled, two on the wire


@pytest.mark.parametrize(
    ("moment", "gradients", "gathered"),
    [
        ("loss", 0, LAYER + MATRIX),
        ("head", BUCKETS, LAYER + MATRIX),
        ("layer", BUCKETS, 2 * LAYER),
        ("embedding", BUCKETS, 0),
    ],
)
def test_what_parts_of_gradients_and_weights_hold_for_a_moment_by_hand(
    moment: memory.Moment, gradients: int, gathered: int
) -> None:
    stage_2, stage_3 = Layout(zero_stage=2), Layout(zero_stage=3)
    assert memory.sharding_bytes(llama(), Layout(), 0, moment, shards=8) == 0
    assert memory.sharding_bytes(llama(), stage_2, 0, moment, shards=8) == gradients
    assert memory.sharding_bytes(llama(), stage_3, 0, moment, shards=8) == gradients + 2 * gathered
    # On a CPU nothing is on the wire and nothing is gathered ahead.
    ahead = 0 if moment == "embedding" else LAYER
    on_cpu = gradients // 3 + 2 * (gathered - ahead)
    assert memory.sharding_bytes(llama(layers="native_cpu"), stage_3, 0, moment, shards=8) == on_cpu
    # The first of two stages has no head, unless it is tied to the embedding.
    pp2 = Layout(zero_stage=3, pipeline_model_parallel_size=2)
    headless = gathered - (MATRIX if moment in ("loss", "head") else 0)
    assert memory.sharding_bytes(llama(), pp2, 0, moment, shards=8) == gradients + 2 * headless


def test_what_is_on_the_wire_is_as_large_as_the_larger_of_a_layer_and_the_head() -> None:
    # Llama-3.2-1B: a layer of 2048 * 64 * 80 + 3 * 2048 * 8192 + 2 * 2048 fits a bucket of 100 ranks, the head doesn't.
    job, layer, bucket = llama(architecture=ARCHITECTURES["llama3.2_1b"]), 60_821_504, 100_000_000
    stage_2 = Layout(zero_stage=2)
    assert memory.sharding_bytes(job, stage_2, 0, "layer", shards=100) == 4 * (layer + 2 * bucket)
    assert memory.sharding_bytes(job, stage_2, 0, "embedding", shards=100) == 4 * 3 * bucket
    # Tied to the head, the embedding stays whole on the first stage, in every moment: 128256 * 2048.
    held = memory.sharding_bytes(job, Layout(zero_stage=3), 0, "embedding", shards=100)
    assert held == 4 * 3 * bucket + 2 * 262_668_288


def test_each_moment_of_a_step_can_be_the_fullest() -> None:
    activations = 32 * 8192 * 149_640 + 8192 * 2 * 256
    norm = 8192 * (2 * 4096 * 2 + 4)

    def parts(layout: Layout, stage: int = 0, **changes: Any) -> tuple[int, int, int]:
        found = memory.memory_of_stage(llama(**changes), layout, stage, world_size=8)
        return found.activations, found.logits, found.buffers

    assert parts(Layout()) == (activations + norm, 1_514_349_568, 0)
    full = 32 * 8192 * 4096 * 2 + 8192 * 2 * 256
    assert parts(Layout(recompute="full")) == (full, 0, 771_751_936 + 8192 * 149_640)
    assert parts(Layout(zero_stage=2)) == (activations + norm, 8192 * 4096 * 2, 2 * MATRIX + BUCKETS)
    # Short rows on the first of two stages: of two passes in flight one is left when the embedding goes backward.
    chunk = 16 * 128 * 149_640 + 128 * 2 * 256 + 128 * 2 * 4096
    pp2 = Layout(zero_stage=2, pipeline_model_parallel_size=2)
    assert parts(pp2, seq_length=128) == (chunk, 0, 128 * 4096 * 2 + 2 * MATRIX + BUCKETS)


def test_states_in_parts_at_rest_by_hand() -> None:
    # 8,030,261,248 weights of 2 B, 4 B of gradients, 12 B of optimizer.
    for stage, weights, gradients in ((2, 16_060_522_496, 4_015_130_624), (3, 2_007_565_312, 4_015_130_624)):
        parts = memory.memory_of(llama(), Layout(zero_stage=stage), world_size=8)  # type: ignore[arg-type]
        assert (parts.weights, parts.gradients, parts.optimizer) == (weights, gradients, 12_045_391_872)
    assert memory.optimizer_bytes(llama(dtype="fp32"), Layout(), 0, shards=8) == 8_030_261_248
    assert memory.checkpoint_bytes(llama(dtype="fp32")) == 12 * 8_030_261_248
