"""The efficiency table: interpolation, extrapolation, a user's measurements, and its refusals."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data_mixers.errors import ConfigError
from megatron_synE.model.presets import ARCHITECTURES
from tools.planner.figures import card_of, read_efficiency
from tools.planner.layout import Job, Layout
from tools.planner.simulate import sharding_factor, with_sharding
from tools.planner.speed import (
    balance_factor,
    context_parallel_factor,
    expected_speed,
    parse_layout,
    pipeline_factor,
    recompute_factor,
)

JOB = Job(architecture=ARCHITECTURES["llama3_8b"], seq_length=8192, global_batch_size=512, total_tokens=1)
H100 = card_of("h100")


ONE = "factor: 1, kind: measured, source: x"
RUN = "card: h100, num_parameters: 1, seq_length: 8192, global_batch_size: 512, gpus: 8, layout: x"


def rate(layout: Layout, gpus: int = 8, table: Path | None = None) -> tuple[float, str]:
    speed = expected_speed(JOB, layout, H100, read_efficiency(table), world_size=gpus)
    return speed.tokens_per_second_per_gpu, speed.kind


def test_the_published_points_come_back() -> None:
    assert rate(Layout())[0] == pytest.approx(10_153)
    assert rate(Layout(), 128)[0] == pytest.approx(10_006, rel=1e-4)
    tp8 = Layout(tensor_model_parallel_size=8, sequence_parallel=True)
    assert rate(tp8)[0] == pytest.approx(0.72 * 10_153)


def test_between_and_beyond_the_points_the_plan_says_so() -> None:
    # Half way in log2 between 8 and 128 is 32: half the loss.
    value, kind = rate(Layout(), 32)
    assert value == pytest.approx(10_153 * (1 - 0.01448 / 2)) and kind == "interpolated"
    # 512 is two doublings past the four between the points.
    value, kind = rate(Layout(), 512)
    assert value == pytest.approx(10_153 * (1 - 0.01448 * 1.5)) and kind == "extrapolated"
    assert rate(Layout(tensor_model_parallel_size=2))[1] == "interpolated"
    assert rate(Layout(), 4) == (pytest.approx(10_153), "assumed")


def test_a_size_of_tensor_parallelism_beyond_the_table_goes_on_along_its_line() -> None:
    # 28 % for three doublings, so 4/3 of it for four.
    factor = read_efficiency().tensor_parallel_at(16)
    assert factor.value == pytest.approx(1 - 0.28 * 4 / 3) and factor.kind == "extrapolated"
    assert factor.source == "linear in log2(TP) from 1 to 8"
    inside = read_efficiency().tensor_parallel_at(6)
    assert inside.value == pytest.approx(1 - 0.28 * math.log2(6) / 3) and inside.kind == "interpolated"
    assert read_efficiency().tensor_parallel_at(2**12).value == 0.01  # the line is below zero there


def test_the_share_of_peak_is_the_published_mfu() -> None:
    speed = expected_speed(JOB, Layout(), H100, read_efficiency(), world_size=8)
    assert speed.mfu == pytest.approx(0.528, abs=5e-4)  # 52.8 % in the causal convention


def test_what_a_pipeline_costs_by_hand() -> None:
    assert pipeline_factor(Layout(pipeline_model_parallel_size=4), num_microbatches=16).value == 16 / 19
    interleaved = Layout(pipeline_model_parallel_size=4, virtual_pipeline_model_parallel_size=2)
    assert pipeline_factor(interleaved, num_microbatches=16).value == pytest.approx(16 / 17.5)
    # GFLOP a token: all 51.467, of it the output matrix 6 * 4096 * 128256 = 3.152; PP 2: 25.73 against 24.16 + 3.15.
    assert balance_factor(JOB, Layout(pipeline_model_parallel_size=2)).value == pytest.approx(25.734 / 27.309, abs=1e-3)


def test_what_recomputation_costs_by_hand() -> None:
    # The layers forward once more: (51.467 - 3.152) / 3 = 16.105 GFLOP a token.
    assert recompute_factor(JOB, Layout(recompute="full")).value == pytest.approx(51.467 / 67.572, abs=1e-3)
    assert recompute_factor(JOB, Layout()).value == 1.0
    # Selective: the core attention forward once more, a third of 12 * 32 * 4096 * 4096 = 6.442 GFLOP.
    assert recompute_factor(JOB, Layout(recompute="selective")).value == pytest.approx(51.467 / 53.614, abs=1e-3)


def test_what_context_parallelism_beyond_two_costs() -> None:
    found = [context_parallel_factor(Layout(context_parallel_size=size)) for size in (1, 2, 4, 8)]
    assert [factor.value for factor in found] == pytest.approx([1.0, 1.0, 0.99, 0.98])
    assert [factor.kind for factor in found] == ["computed", "computed", "assumed", "assumed"]


def test_what_the_table_does_not_know_is_said_to_be_assumed() -> None:
    other = replace(JOB, architecture=ARCHITECTURES["llama3.2_1b"], seq_length=4096)
    speed = expected_speed(other, Layout(), replace(H100, key="b300"), read_efficiency(), world_size=8)
    assert {name for name, factor in speed.factors.items() if factor.kind == "assumed"} == {
        "card", "model", "sequence length",
    }  # fmt: skip
    assert speed.kind == "assumed"
    known = expected_speed(JOB, Layout(), H100, read_efficiency(), world_size=8)
    assert (known.kind, "sequence length" in known.factors) == ("computed", False)


def test_a_layout_is_read_back_from_its_name() -> None:
    for layout in (
        Layout(), Layout(tensor_model_parallel_size=4, sequence_parallel=True, micro_batch_size=2, recompute="full"),
        Layout(pipeline_model_parallel_size=8, virtual_pipeline_model_parallel_size=2, recompute="selective"),
        Layout(context_parallel_size=2), Layout(zero_stage=3),
    ):  # fmt: skip
        assert parse_layout(str(layout)) == layout
    assert parse_layout("TP1, PP1, MBS1") is None


def measured_table(folder: Path, **changes: object) -> Path:
    entry = {
        "card": "h100", "num_parameters": JOB.architecture.num_parameters, "seq_length": 8192,
        "global_batch_size": 512, "gpus": 8, "layout": str(Layout(pipeline_model_parallel_size=2)),
        "tokens_per_second_per_gpu": 5000.0,
    }  # fmt: skip
    file = folder / "efficiency.yaml"
    file.write_text(yaml.safe_dump({"measured": [entry | changes]}))
    return file


def test_a_measured_layout_is_taken_as_measured_and_the_others_are_scaled(tmp_path: Path) -> None:
    table = measured_table(tmp_path)
    pp2 = Layout(pipeline_model_parallel_size=2)
    value, kind = rate(pp2, table=table)
    assert value == pytest.approx(5000.0) and kind == "measured"
    ratio = 5000.0 / rate(pp2)[0]
    other = Layout(tensor_model_parallel_size=2, sequence_parallel=True)
    assert rate(other, table=table)[0] == pytest.approx(ratio * rate(other)[0])
    assert rate(pp2, 16, table=table)[0] == pytest.approx(ratio * rate(pp2, 16)[0])  # another number of GPUs


def test_a_rate_measured_with_another_global_batch_is_not_taken_as_measured(tmp_path: Path) -> None:
    """PP 2 on 8 GPUs: 512 sequences are 128 micro-batches a replica and 16 are 4, with bubbles of 1/129 and 1/5."""
    pp2 = Layout(pipeline_model_parallel_size=2)
    table = read_efficiency(measured_table(tmp_path))
    assert expected_speed(JOB, pp2, H100, table, world_size=8).kind == "measured"
    small = expected_speed(replace(JOB, global_batch_size=16), pp2, H100, table, world_size=8)
    assert small.kind != "measured"
    assert small.tokens_per_second_per_gpu == pytest.approx(5000.0 * (4 / 5) / (128 / 129))


def test_a_rate_that_does_not_say_its_global_batch_counts_for_the_plans_own(tmp_path: Path) -> None:
    file = measured_table(tmp_path)
    file.write_text(file.read_text().replace("  global_batch_size: 512\n", ""))
    pp2, table = Layout(pipeline_model_parallel_size=2), read_efficiency(file)
    for job in (JOB, replace(JOB, global_batch_size=16)):
        found = expected_speed(job, pp2, H100, table, world_size=8)
        assert (found.kind, found.tokens_per_second_per_gpu) == ("measured", pytest.approx(5000.0))
        unmeasured = expected_speed(job, pp2, H100, read_efficiency(), world_size=8).tokens_per_second_per_gpu
        other = expected_speed(job, Layout(), H100, table, world_size=8)
        assert other.factors["measured"].value == pytest.approx(5000.0 / unmeasured)


def test_messages_of_parts_cost_what_their_passes_do_not_hide(tmp_path: Path) -> None:
    """At 1,000 tokens/s a pass takes 8.192 s; 64 of them a step; links of 0.8 GB/s hide little."""
    slow = replace(H100, nvlink_bytes_per_second=1e9)
    parts = Layout(zero_stage=3)
    gradients, weights = (n * 8_030_261_248 * 7 / 8 / 0.8e9 + 21e-6 for n in (4, 2))
    once = gradients - 8.192 * 2 / 3 + weights - 8.192 / 3
    in_parts = 64 * (gradients + weights - 8.192 * 2 / 3 + weights - 8.192 / 3)
    factor = sharding_factor(JOB, parts, slow, 1000.0, world_size=8)
    assert factor.value == pytest.approx(64 * 8.192 / (64 * 8.192 + in_parts - once), rel=1e-9)
    assert factor.kind == "computed"
    table = read_efficiency()
    whole = expected_speed(JOB, Layout(), H100, table, world_size=8)
    assert with_sharding(whole, JOB, Layout(), H100, world_size=8) is whole
    found = with_sharding(whole, JOB, parts, slow, world_size=8)
    factor = found.factors["sharding"]
    assert 0 < factor.value < 0.5
    assert found.tokens_per_second_per_gpu == whole.tokens_per_second_per_gpu * factor.value
    assert (found.mfu, found.kind) == (whole.mfu * factor.value, "computed")


def test_a_layout_that_was_measured_in_parts_is_not_charged_for_its_messages_again(tmp_path: Path) -> None:
    parts = Layout(zero_stage=3)
    table = read_efficiency(measured_table(tmp_path, layout=str(parts)))
    measured = expected_speed(JOB, parts, H100, table, world_size=8)
    assert measured.kind == "measured"
    assert with_sharding(measured, JOB, parts, H100, world_size=8) is measured
    # Of another layout it is the median of what was measured, and its messages are still to come.
    other = Layout(zero_stage=3, micro_batch_size=2)
    scaled = expected_speed(JOB, other, H100, table, world_size=8)
    assert with_sharding(scaled, JOB, other, H100, world_size=8).mfu < scaled.mfu


def test_a_layout_measured_in_parts_at_the_plans_own_rate_changes_no_other(tmp_path: Path) -> None:
    slow, parts = replace(H100, nvlink_bytes_per_second=1e9), Layout(zero_stage=3)
    table = read_efficiency()
    plain = expected_speed(JOB, parts, slow, table, world_size=8)
    planned = with_sharding(plain, JOB, parts, slow, world_size=8).tokens_per_second_per_gpu
    assert planned < 0.5 * plain.tokens_per_second_per_gpu
    known = read_efficiency(measured_table(tmp_path, layout=str(parts), tokens_per_second_per_gpu=planned))
    for other in (Layout(micro_batch_size=2), Layout(zero_stage=3, micro_batch_size=2)):
        before, after = (expected_speed(JOB, other, slow, each, world_size=8) for each in (table, known))
        assert after.tokens_per_second_per_gpu == pytest.approx(before.tokens_per_second_per_gpu)


def test_measured_layouts_that_say_nothing_are_passed_over(tmp_path: Path) -> None:
    for change in ({"layout": "as it was"}, {"gpus": 1}, {"layout": "TP1, PP1, MBS128, recompute none"}):
        assert rate(Layout(), table=measured_table(tmp_path, **change))[0] == pytest.approx(10_153)
    for layout in ("TP0, PP1, MBS1", "TP1, PP0, MBS1", "TP1, PP2 VPP0, MBS1", "TP1, PP1, CP0, MBS1", "TP1, PP1, MBS0"):
        table = measured_table(tmp_path, layout=f"{layout}, recompute none")
        assert rate(Layout(), table=table)[0] == pytest.approx(10_153)


def test_another_card_or_model_changes_nothing(tmp_path: Path) -> None:
    for change in ({"card": "a100"}, {"num_parameters": 1}, {"seq_length": 4096}):
        assert rate(Layout(), table=measured_table(tmp_path, **change))[0] == pytest.approx(10_153)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("measurd: []", "did you mean measured"),
        ("measured: [{card: h100}]", "not an efficiency table"),
        ("scale: [{gpus: 8}]", "not an efficiency table"),
        ("card: {h100: {factor: 1, kind: guessed, source: x}}", "guessed"),
        ("card: {h100: {factor: 0, kind: measured, source: x}}", "0 is no number above 0"),
        ("card: {h100: {factor: .nan, kind: measured, source: x}}", "nan is no number above 0"),
        ("tensor_parallel: {0: {factor: 1, kind: measured, source: x}}", "0 is no number above 0"),
        (f"scale: [{{gpus: 0, {ONE}}}, {{gpus: 8, {ONE}}}]", "0 is no number above 0"),
        (f"scale: [{{gpus: '8', {ONE}}}, {{gpus: 9, {ONE}}}]", "'8' is no number above 0"),
        ("reference: {tokens_per_second_per_gpu: fast}", "'fast' is no number above 0"),
        ("reference: {kind: guessed}", "kind 'guessed' is none of measured, published"),
        (f"measured: [{{{RUN.replace('x', '5')}, tokens_per_second_per_gpu: 1}}]", "layout 5 is no text"),
        ("reference: {card: b200}", r"reference\.card 'b200' is none of h100, h200, a100"),
        (f"measured: [{{{RUN}, tokens_per_second_per_gpu: '9,000'}}]", "'9,000' is no number above 0"),
        (f"measured: [{{{RUN}, tokens_per_second_per_gpu: 0}}]", "0 is no number above 0"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "table.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_efficiency(file)
