"""`syne plan` with a card: published and impossible layouts, refusals with reasons, units, and what stays as it was."""

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from data_mixers.errors import ConfigError
from tests import tiny
from tools.cli import main
from tools.planner.command import parse_nodes, places
from tools.planner.options import PlanOptions
from tools.planner.search import grid

EXAMPLE = str(tiny.ROOT / "examples/llama3_8b/run_recommended.yaml")
PRESET = ["init.from=random", "init.path=null"]


def plan(*arguments: str, model: str = "llama3_8b", code: int = 0, config: str = EXAMPLE) -> str:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as error:
        found = main(["plan", "--config", config, "--no-data", *arguments, *PRESET, f"model.preset={model}"])
    assert found == code, error.getvalue()
    return out.getvalue() if code == 0 else error.getvalue()


def answer(*arguments: str, **options: Any) -> Any:
    return json.loads(plan(*arguments, "--card", "h100", "--format", "json", "--all", **options))


def named(candidates: list[dict[str, Any]], layout: str) -> dict[str, Any]:
    (found,) = [c for c in candidates if c["layout"] == layout]
    return found


def test_the_published_layout_on_eight_h100_fits_and_runs_here() -> None:
    # TP1 CP2 MBS1. With gradients in bf16, and by a hair with our fp32 ones.
    published = "TP1, PP1, CP2, MBS1, recompute none"
    found = named(answer("training.grad_reduce_in_fp32=false")["best"], published)
    assert "parallel.context_parallel_size=2" in found["overrides"]
    # 16.06 + 16.06 + 12.05 GB at rest; 4096 tokens of 32 layers of 143,496 B; the head by chunks.
    at_rest = 16_060_522_496 * 2 + 12_045_391_872
    assert found["memory_bytes_per_gpu"]["total"] == pytest.approx(
        at_rest + 4096 * 32 * 143_496 + 128_256 * (1024 * 2 + 261 * 4 + 4096 * 2) + 4096 * 4096 * 2, rel=2e-3
    )
    assert found["speed"]["tokens_per_second_per_gpu"] == pytest.approx(10_153, rel=1e-4)
    assert found["reason"] == "nothing lost to the layout"
    with_fp32 = named(answer()["best"], published)
    assert with_fp32["memory_bytes_per_gpu"]["total"] - found["memory_bytes_per_gpu"]["total"] == 2 * 8_030_261_248
    tight = re.fullmatch(r"tight: (\d\.\d) GB free", with_fp32["reason"])
    assert tight is not None and 0 <= float(tight[1]) < 0.05 * 85.5


def test_known_impossible_layouts_are_refused_with_their_reason() -> None:
    refused = {c["layout"]: c["reason"] for c in answer()["refused_all"]}
    assert "would leave a node of 8 GPUs" in refused["TP16 SP, PP1, MBS1, recompute none"]
    assert "needs 101.1 GB" in refused["TP1, PP1, MBS1, recompute none"]
    assert "8 GPUs are not a multiple of 3" in refused["TP1, PP3, MBS1, recompute none"]
    on_three = {c["layout"]: c["reason"] for c in answer("--nodes", "3")["refused_all"]}
    assert "3 does not divide the model's num_layers=32" in on_three["TP1, PP3, MBS1, recompute none"]
    assert "global_batch_size: 512 is not a multiple" in on_three["TP2, PP1, MBS1, recompute none"]
    heads = {c["layout"]: c["reason"] for c in answer(model="smollm2_135m")["refused_all"]}
    assert "2 does not divide the model's num_attention_heads=9" in heads["TP2, PP1, MBS1, recompute none"]


def test_70b_has_no_place_on_one_node_and_has_one_on_four() -> None:
    tree = answer(model="llama3_70b")
    assert tree["best"] == []
    # TP 8: 70.55e9 / 8 weights of 2 + 4 bytes, and 12 of optimizer on one replica: 158.8 GB before any activation.
    reason = named(tree["refused_all"], "TP8 SP, PP1, MBS1, recompute full")["reason"]
    needed = float(reason.removeprefix("needs ").split(" GB")[0])
    assert needed > 18 * 70_553_706_496 / 8 / 1e9
    assert answer("--nodes", "4", model="llama3_70b")["best"]


def test_what_is_out_of_memory_is_tried_with_gradients_and_then_weights_in_parts() -> None:
    tree = answer()
    plain = "TP1, PP1, MBS1, recompute none"
    assert named(tree["refused_all"], plain)["rule"] == "out of memory"
    found = named(tree["best"], f"{plain}, ZeRO2")
    # 8,030,261,248 weights of 2 bytes, an eighth of 4 and 12 bytes each; 8192 tokens of 32 layers of 149,640 B, rotary
    # angles and the final norm; then the loss, both gradients of the head and a chunk of logits, or less.
    memory = found["memory_bytes_per_gpu"]
    assert memory["weights"] + memory["gradients"] + memory["optimizer"] == 4 * 8_030_261_248
    assert memory["activations"] + memory["logits"] <= 32 * 8192 * 149_640 + 8192 * (2 * 2 * 128 + 4 * 4096 + 4) + 1.6e9
    assert "parallel.zero_stage=2" in found["overrides"]
    # Stage 2 fits, so stage 3 is not offered; and what fits whole is not offered in parts.
    best = {c["layout"] for c in tree["best"]}
    layouts = best | {c["layout"] for c in tree["refused_all"]}
    assert f"{plain}, ZeRO3" not in layouts
    assert not best & {name.removesuffix(", ZeRO2") for name in layouts if "ZeRO2" in name}


def test_a_configured_stage_is_the_one_that_is_judged() -> None:
    configured = answer("parallel.zero_stage=3")["as_configured"]
    assert configured["layout"].endswith("ZeRO3")
    whole = answer()["as_configured"]
    assert configured["memory_bytes_per_gpu"]["weights"] < whole["memory_bytes_per_gpu"]["weights"]


def test_text_shows_parts_units_kinds_and_refusals() -> None:
    text = plan("--card", "h100", "--nodes", "2")
    for words in (
        "2 x 8 H100 SXM5 80 GB = 16 GPUs", "51.47 GFLOP a token", "memory in GB a GPU: computed",
        "activations", "tok/s/GPU", "interpolated", "## refused", "out of memory",
        "checkpoint: 112.4 GB (computed), 112 s to write at 1 GB/s (assumed",
    ):  # fmt: skip
        assert words in text, words


def test_where_none_runs_the_cure_is_one_that_helps() -> None:
    """512 sequences are no multiple of 24 GPUs, however much memory they have; 70B does not fit on one node."""
    divided = "none runs, and not for want of memory: the refusals below say what to change"
    assert divided in plan("--card", "h200", "--nodes", "3")
    assert divided not in plan("--card", "h200", "--nodes", "3", "training.global_batch_size=504")
    assert "none fits: more nodes, or a card with more memory" in plan("--card", "h100", model="llama3_70b")
    rows = {line.split()[0]: line for line in plan("--card", "h200", "--nodes", "2,3").splitlines()[2:]}
    assert rows["3"].endswith("  none runs") and "TP1, PP1" in rows["2"]
    assert plan("--card", "h100", "--nodes", "1,2", model="llama3_70b").count("  none fits\n") == 2


def test_what_surrounds_training_is_counted_on_more_gpus_than_a_step_has_sequences() -> None:
    """512 sequences; scoring takes the same GPU-hours on 512 GPUs and on 1,024 but for the table's scale."""
    hours = []
    for nodes in ("64", "128"):
        score = next(work for work in answer("--nodes", nodes, "--pipeline")["pipeline"] if work["name"] == "score PPL")
        hours.append(score["gpu_hours"])
    per_doubling = 0.01448 / 4
    assert hours[1] / hours[0] == pytest.approx((1 - 6 * per_doubling) / (1 - 7 * per_doubling), rel=1e-6)


def test_what_the_formulas_do_not_know_of_a_run_is_said() -> None:
    said = "note: training.fp8=hybrid: memory and rates are counted as of bf16 alone; --measure tells those of FP8"
    assert said in plan("--card", "h100", "training.fp8=hybrid")
    assert "fp8" not in plan("--card", "h100")


def test_the_grid_holds_every_layout_once_and_none_that_says_nothing() -> None:
    layouts = list(grid(8))
    assert len(set(layouts)) == len(layouts)
    assert all(each.tensor_model_parallel_size > 1 or not each.sequence_parallel for each in layouts)
    assert all(
        each.pipeline_model_parallel_size > 1 or each.virtual_pipeline_model_parallel_size is None for each in layouts
    )
    assert max(each.model_ranks for each in layouts) == 16  # one replica on more than there are: refused, not hidden


def test_a_range_of_nodes_is_one_table() -> None:
    lines = plan("--nodes", "1..64").splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["1", "2", "4", "8", "16", "32", "64"]


def test_the_best_layout_runs_as_the_command_says(tmp_path: Path) -> None:
    best = answer()["best"][0]
    done = tiny.syne(
        "plan", "--config", EXAMPLE, "--no-data", *PRESET, "model.preset=llama3_8b", *best["overrides"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_around_training_by_hand(tmp_path: Path) -> None:
    rates = tmp_path / "rates.yaml"
    rates.write_text("{label_mb_per_core_second: 2, cpu_cores_per_node: 100, generate_tokens_per_second_per_gpu: 5000}")
    works = {w["name"]: w for w in answer("--pipeline", "--rates", str(rates))["pipeline"]}
    # 100 B tokens of 4 bytes at 2 MB a core-second: 200,000 core-seconds, on 100 cores.
    label = works["label topics"]
    assert label["tokens"] == pytest.approx(100e9, rel=1e-3)
    assert label["core_hours"] == pytest.approx(label["tokens"] * 4 / 2e6 / 3600)
    assert label["hours"] == pytest.approx(label["core_hours"] / 100)
    assert works["preprocess"]["disk_bytes"] == label["tokens"] * 4  # ids of 32 bits: the vocabulary is 128,256
    synthesis = works["synthesize"]
    assert synthesis["gpu_hours"] == pytest.approx(1.5e9 / 0.7 / 5000 / 3600)
    # A fifth is scored, forward alone: a third of 51.467 GFLOP at the plan's 52.8 % of 989.4 TFLOP/s, 0.93 of it.
    score = works["score PPL"]
    assert score["gpu_hours"] == pytest.approx(0.2 * label["tokens"] / (3 * 10_153 * 0.93) / 3600, rel=1e-3)
    assert works["checkpoints"]["disk_bytes"] == 3 * 112_423_657_472  # two kept, one being written
    all_kept = ("checkpoint.keep_last=null", "checkpoint.interval_tokens=10000000000")
    works = {w["name"]: w for w in answer("--pipeline", *all_kept)["pipeline"]}
    assert works["checkpoints"]["disk_bytes"] == (label["tokens"] // 10**10 + 1) * 112_423_657_472


def test_without_a_rate_the_plan_says_it_is_not_known() -> None:
    text = plan("--card", "h100", "--pipeline")
    assert any(line.startswith("label topics") and "not known" in line for line in text.splitlines())


def test_without_a_card_the_output_is_the_old_one() -> None:
    text = plan("--nodes", "16")
    assert "# --- derived" in text and "planner" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "64..1"], "the range runs backwards; write 1..64"),
        (["--nodes", "0..4"], "0 is out of range"),
        (["--nodes", "1..9999"], "9999 is out of range"),
        (["--nodes", "many"], "is not a number of nodes"),
        (["--nodes", "1..2..3"], "is not a number of nodes"),
        (["--card", "h1000"], "did you mean h100?"),
        (["--card", "H200"], "did you mean h200?"),
        (["--card", "tpu"], "cards known here: h100, h200, a100"),
        (["--card", "h100", "--efficiency", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
        (["--nodes", "1..4", "--measure", "/tmp/never"], "--measure needs one number of nodes"),
        (["--measure", "never\n$(touch HERE)"], "name another folder"),
        (["--card", "h100", "--reserve-gib", "inf"], "hold back less"),
        (["--card", "h100", "--reserve-gib", "80"], "hold back less"),
    ],
)
def test_a_wrong_option_is_one_message_and_exit_code_2(arguments: list[str], message: str) -> None:
    error = plan(*arguments, code=2)
    assert message in error and "Traceback" not in error


def test_a_wrong_rate_is_refused(tmp_path: Path) -> None:
    rates = tmp_path / "rates.yaml"
    for text, message in (("lable: 1", "no rate is called 'lable'"), ("evaluations: -1", "is not a rate")):
        rates.write_text(text)
        assert message in plan("--card", "h100", "--pipeline", "--rates", str(rates), code=2)


@pytest.mark.parametrize(
    ("text", "nodes"),
    [("16", (16,)), ("4,1,2", (1, 2, 4)), ("3..5", (3, 4, 5)), ("3..40", (3, 4, 8, 16, 32, 40))],
)
def test_numbers_of_nodes(text: str, nodes: tuple[int, ...]) -> None:
    assert parse_nodes(text) == nodes


def test_numbers_of_nodes_name_the_fault() -> None:
    with pytest.raises(ConfigError, match="at most 4096"):
        parse_nodes("-3")


def test_epochs_of_each_source_stand_in_the_plan(tmp_path: Path) -> None:
    config = tiny.prepared(tmp_path)
    done = tiny.syne("plan", "--config", config, "--card", "h100", "--nproc", "2", "--format", "json")
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert sum(tree["epochs"].values()) > 0 and len(tree["epochs"]) == 3


def test_messages_leave_a_node_at_the_gpus_that_it_has() -> None:
    for given, expected in (({"gpus_per_node": 4}, 4), ({"nproc": 2}, 2), ({}, 8)):
        (place,) = places(PlanOptions(card="h100", **given))
        assert (place.gpus_per_node, place.card.gpus_per_node) == (expected, expected)
