"""One layout judged at a time, for Llama-3-8B on H100s: names of the rules, reasons in full, what a layout costs."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_synE.config.load import load_config
from megatron_synE.config.schema import RunConfig
from tests import tiny
from tools.planner import search as module
from tools.planner.command import job_of
from tools.planner.figures import card_of, read_efficiency
from tools.planner.layout import Layout
from tools.planner.search import Candidate, Place, judge, layout_of, search

EFFICIENCY = read_efficiency()


def configured(*overrides: str, model: str = "llama3_8b") -> RunConfig:
    """512 sequences of 8192 tokens a step."""
    preset = ("init.from=random", "init.path=null", f"model.preset={model}")
    return load_config(tiny.ROOT / "examples/llama3_8b/run_recommended.yaml", [*preset, *overrides]).resolved


LLAMA = configured()
NODE = Place(card=card_of("h100"), nodes=1, gpus_per_node=8, reserve_bytes=0)
THREE = replace(NODE, nodes=3)


def judged(layout: Layout, *, place: Place = NODE, config: RunConfig = LLAMA) -> Candidate:
    return judge(config, job_of(config), layout, place, EFFICIENCY)


def laid(tp: int = 1, pp: int = 1, cp: int = 1, **changes: Any) -> Layout:
    return Layout(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, context_parallel_size=cp,
        sequence_parallel=tp > 1, **changes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "place", "rule", "reason"),
    [
        (laid(16), NODE, "TP across nodes",
         "tensor parallelism of 16 would leave a node of 8 GPUs: its collectives, four and more in every layer, would"
         " cross the network"),
        (laid(8, 2), NODE, "too few GPUs", "one replica takes 16 GPUs, there are 8"),
        (laid(1, 3), NODE, "GPUs not divisible", "8 GPUs are not a multiple of 3, one replica"),
        (laid(1, 3), THREE, "PP does not divide the layers",
         "parallel.pipeline_model_parallel_size: 3 does not divide the model's num_layers=32"),
        (laid(1, 2, virtual_pipeline_model_parallel_size=3), NODE, "VPP does not divide the stage",
         "parallel.virtual_pipeline_model_parallel_size: "),
        (laid(2), THREE, "global batch not divisible", "training.global_batch_size: 512 is not a multiple of "),
    ],
)  # fmt: skip
def test_a_rule_that_a_layout_breaks_is_named(layout: Layout, place: Place, rule: str, reason: str) -> None:
    found = judged(layout, place=place)
    assert (found.status, found.rule, found.memory, found.speed) == ("refused", rule, None, None)
    assert found.reason.startswith(reason)


def test_rows_that_cannot_be_cut_in_two_chunks_a_rank_are_named() -> None:
    found = judged(laid(cp=2), config=configured("training.seq_length=8190"))
    assert found.rule == "sequence not divisible"
    assert found.reason.startswith("training.seq_length: 8190 is not a multiple of 2 * context_parallel_size = 4")


def test_what_the_models_shape_forbids_is_said_before_what_another_batch_would_mend() -> None:
    # On 24 GPUs 512 sequences are no multiple of 12 replicas either.
    found = judged(laid(2), place=THREE, config=configured(model="smollm2_135m"))
    assert found.rule == "TP does not divide the model"
    assert "2 does not divide the model's num_attention_heads=9" in found.reason


def test_out_of_memory_is_told_part_by_part() -> None:
    # By hand in test_memory.py: weights, 6 and 1.5 bytes more for each, 32 layers and the final norm, the head.
    found = judged(laid())
    assert (found.status, found.rule) == ("refused", "out of memory")
    assert found.reason == (
        "needs 101.1 GB of 85.5 GB a GPU: weights 16.1, gradients 32.1, optimizer 12.0, activations 39.4, logits 1.5,"
        " buffers 0.0"
    )
    assert judged(laid(), place=replace(NODE, reserve_bytes=10**9)).reason.startswith("needs 101.1 GB of 84.5 GB a GPU")
    assert found.memory is not None
    exactly = replace(NODE.card, memory_bytes=found.memory.total)
    assert judged(laid(), place=replace(NODE, card=exactly)).status == "runs"
    one_short = replace(exactly, memory_bytes=found.memory.total - 1)
    assert judged(laid(), place=replace(NODE, card=one_short)).status == "refused"


@pytest.mark.parametrize(
    ("layout", "costs"),
    [
        # A third of 51.47 - 3.15 GFLOP once more: 51.47 / 67.58.
        (laid(recompute="full"), "recompute -23.8 % (computed)"),
        # 128 micro-batches and one to fill: 128 / 129. 25.735 GFLOP a stage, 27.311 on the last.
        (laid(pp=2), "pipeline -0.8 % (computed), stage balance -5.8 % (computed)"),
        (laid(2), "tensor parallel -9.3 % (interpolated)"),
        (laid(8), "tensor parallel -28.0 % (published)"),  # one replica on all GPUs
    ],
)
def test_what_a_layout_costs_is_told_factor_by_factor(layout: Layout, costs: str) -> None:
    found = judged(layout)
    assert (found.status, found.rule, found.reason) == ("runs", "fits", costs)


def test_a_layout_that_costs_nothing_and_one_with_little_memory_left() -> None:
    found = judged(laid(cp=2))
    assert found.memory is not None
    used = found.memory.total
    for share_free, reason in ((0.049, "tight: {:.1f} GB free"), (0.051, "nothing lost to the layout")):
        memory = round(used / (1 - share_free))
        place = replace(NODE, card=replace(NODE.card, memory_bytes=memory))
        assert judged(laid(cp=2), place=place).reason == reason.format((memory - used) / 1e9)
    reserved = replace(NODE, card=replace(NODE.card, memory_bytes=2 * used), reserve_bytes=used)
    assert judged(laid(cp=2), place=reserved).reason == "tight: 0.0 GB free"


def test_what_runs_comes_first_by_its_speed_and_what_does_not_in_the_order_it_was_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "grid", lambda gpus: iter([laid(16), laid(), laid(8), laid(pp=2)] if gpus == 8 else []))
    found = search(LLAMA, job_of(LLAMA), NODE, EFFICIENCY)
    # Stage 2 costs a thousandth, the pipeline 6.5 %, TP 8 28 %. Stage 3 is not tried: stage 2 fits.
    assert [str(candidate.layout) for candidate in found] == [
        "TP1, PP1, MBS1, recompute none, ZeRO2",
        "TP1, PP2, MBS1, recompute none",
        "TP8 SP, PP1, MBS1, recompute none",
        "TP16 SP, PP1, MBS1, recompute none",
        "TP1, PP1, MBS1, recompute none",
    ]


def test_where_nobody_shares_nothing_is_tried_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "grid", lambda gpus: iter([laid()]))
    alone = replace(NODE, gpus_per_node=1)
    assert [c.layout.zero_stage for c in search(LLAMA, job_of(LLAMA), alone, EFFICIENCY)] == [1]
    two = replace(NODE, gpus_per_node=2)
    assert [c.layout.zero_stage for c in search(LLAMA, job_of(LLAMA), two, EFFICIENCY)] == [1, 2, 3]
    monkeypatch.setattr(module, "grid", lambda gpus: iter([laid(cp=2)]))  # one replica, whose two ranks share
    assert [c.layout.zero_stage for c in search(LLAMA, job_of(LLAMA), two, EFFICIENCY)] == [1, 2, 3]


def test_a_stage_without_anybody_to_share_with_needs_what_the_trainer_makes_of_it() -> None:
    config = configured("training.grad_reduce_in_fp32=false")
    alone = [judged(laid(8, zero_stage=stage), config=config) for stage in (1, 2, 3)]
    assert alone[0].memory == alone[1].memory == alone[2].memory
    assert [str(candidate.layout)[-5:] for candidate in alone[1:]] == ["ZeRO2", "ZeRO3"]
    assert alone[0].memory is not None
    # 2 bytes for each of an eighth of the weights, with 768 rows of padding in both vocabulary matrices; each of the
    # eight ranks has all of the 65 norms.
    assert alone[0].memory.gradients == 2 * (8_030_261_248 + 2 * 768 * 4096 + 7 * 65 * 4096) // 8


def test_of_equally_fast_layouts_the_one_with_more_memory_free_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    # CP 1 and 2 are equally fast by the table; half a row a GPU takes less.
    monkeypatch.setattr(module, "grid", lambda gpus: iter([laid(cp=1), laid(cp=2)]))
    large = replace(NODE, card=replace(NODE.card, memory_bytes=200 * 10**9))
    found = search(LLAMA, job_of(LLAMA), large, EFFICIENCY)
    assert [candidate.layout.context_parallel_size for candidate in found] == [2, 1]


def test_the_layout_of_a_run_is_the_one_that_is_written_there() -> None:
    written = Layout(
        tensor_model_parallel_size=4, pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=4,
        context_parallel_size=2, sequence_parallel=True, micro_batch_size=2, recompute="selective", zero_stage=2,
    )  # fmt: skip
    assert layout_of(configured(*written.overrides())) == written
