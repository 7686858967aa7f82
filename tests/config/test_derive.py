"""Derived values, worked by hand."""

import json
from pathlib import Path

import pytest

from data_mixers.errors import ConfigError
from megatron_synE.config.derive import RunPlan, derive, resolve_architecture, resolve_dtype
from megatron_synE.config.load import load_config
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.model.llama import hf_config_of
from megatron_synE.model.presets import ARCHITECTURES

RUN = """
run: {name: a, dir: runs/a}
training: {seq_length: 100, global_batch_size: 12, micro_batch_size: 2}
init: {from: random}
model: {preset: tiny}
parallel: {tensor_model_parallel_size: 2}
data:
  manifests: [m]
  stages:
    - {name: one, tokens: 2500, languages: {zh: 1.0}}
    - {name: two, tokens: 1200, languages: {zh: 1.0}}
validation: {manifests: [v], interval_tokens: 2000}
checkpoint: {interval_tokens: 100}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(RUN, encoding="utf-8")
    return tmp_path / "run.yaml"


def plan_of(path: Path, *overrides: str, world_size: int = 4) -> RunPlan:
    config = load_config(path, overrides).resolved
    return derive(config, resolve_architecture(config)[0], world_size, device="cpu")


def test_batch_and_stages(path: Path) -> None:
    plan = plan_of(path)
    assert plan.data_parallel_size == 2  # 4 ranks / TP 2
    assert plan.num_microbatches == 3  # 12 sequences / (2 * 2)
    assert plan.tokens_per_iteration == 1200
    # 2500 tokens are 3 batches of 1200, 1200 tokens are exactly 1
    assert [(s.start_sample, s.end_sample, s.tokens) for s in plan.stages] == [(0, 36, 3600), (36, 48, 1200)]
    assert (plan.train_iters, plan.total_samples, plan.total_tokens) == (4, 48, 4800)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_data_parallel_rank_has_nobody_to_share_with(path: Path, stage: int) -> None:
    assert plan_of(path, f"parallel.zero_stage={stage}").zero_stage == stage  # 4 ranks / TP 2
    assert plan_of(path, f"parallel.zero_stage={stage}", world_size=2).zero_stage == 1


def test_intervals_are_the_nearest_iterations_and_at_least_one(path: Path) -> None:
    plan = plan_of(path)
    assert plan.validation_interval_iterations == 2  # 2000 / 1200 = 1.67
    assert plan.checkpoint_interval_iterations == 1  # 100 / 1200 = 0.08


@pytest.mark.parametrize("global_batch_size", [12, 512, 768, 1024])
@pytest.mark.parametrize("reweight", [2, 4, 8, 40])
def test_every_reweight_falls_on_a_validation(path: Path, global_batch_size: int, reweight: int) -> None:
    """In whole iterations of 4 M tokens, 2 B and 8 B tokens are 477 and 1,907, which is no multiple of 477."""
    plan = plan_of(
        path, f"training.global_batch_size={global_batch_size}", "training.seq_length=8192",
        "validation.interval_tokens=2e9", f"mixture={{controller: syne, reweight_interval_tokens: {reweight}e9}}",
    )  # fmt: skip
    assert plan.validation_interval_iterations is not None and plan.reweight_interval_iterations is not None
    assert plan.reweight_interval_iterations == reweight // 2 * plan.validation_interval_iterations
    # Half an iteration off for each validation between two reweights, no more.
    exact = reweight * 1e9 / plan.tokens_per_iteration
    assert abs(plan.reweight_interval_iterations - exact) <= reweight / 4


def test_without_a_controller_nothing_is_reweighted(path: Path) -> None:
    assert plan_of(path, "mixture={reweight_interval_tokens: 4000}").reweight_interval_iterations is None


def test_vocabulary_is_padded_for_tensor_parallelism(path: Path) -> None:
    assert plan_of(path).padded_vocab_size == 1024  # 1000 -> a multiple of 128 * 2
    assert plan_of(path, "model.make_vocab_size_divisible_by=300").padded_vocab_size == 1200


@pytest.mark.parametrize(
    ("style", "decay", "start"), [("wsd", 700, 4100), ("cosine", 4600, 200), ("constant", 0, 4800)]
)
def test_decay_ends_at_the_last_token(path: Path, style: str, decay: int, start: int) -> None:
    extra = ["lr_schedule.decay_tokens=700"] if style == "wsd" else []
    plan = plan_of(path, f"lr_schedule.style={style}", "lr_schedule.warmup_tokens=200", *extra)
    assert (plan.decay_tokens, plan.decay_start_tokens) == (decay, start)


@pytest.mark.parametrize(("world_size", "match"), [(3, "world size 3"), (14, "global_batch_size=12")])
def test_what_cannot_be_divided_is_refused(path: Path, world_size: int, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        plan_of(path, world_size=world_size)


def test_precision_auto_follows_the_device() -> None:
    assert resolve_dtype("auto", "cuda") == "bf16"
    assert resolve_dtype("fp32", "cuda") == "fp32"


# Parameter counts as published: 8.03 B, 70.6 B, 1.24 B, 3.21 B (model cards), 1.1 B, 134.5 M.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("llama3.2_1b", 1_235_814_400),
        ("llama3.2_3b", 3_212_749_824),
        ("tinyllama_1.1b", 1_100_048_384),
        ("smollm2_135m", 134_515_008),
    ],
)
def test_preset_architectures_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert ARCHITECTURES[name].num_parameters == parameters


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_preset_survives_its_hf_config(path: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(hf_config_of(ARCHITECTURES[name])), encoding="utf-8")
    config = load_config(path, ["model.preset=null", f"model.hf_config={file}"]).resolved
    assert resolve_architecture(config)[0] == ARCHITECTURES[name]


def test_the_architecture_comes_from_the_hf_folder(path: Path, tmp_path: Path) -> None:
    hf_config = hf_config_of(ARCHITECTURES["smollm2_135m"]) | {"custom": 1}
    (tmp_path / "config.json").write_text(json.dumps(hf_config), encoding="utf-8")
    config = load_config(path, ["model.preset=null", "init.from=hf", f"init.path={tmp_path}"]).resolved
    assert resolve_architecture(config) == (ARCHITECTURES["smollm2_135m"], hf_config)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["model.preset=null"], "no architecture"),
        (["model.preset=llama9"], "model.preset='llama9' is unknown; use one of llama3_8b"),
        (["model.hf_config=x"], "model.preset and model.hf_config both"),
        (["init.from=hf", "init.path=x"], "remove model.preset"),
        (["init.from=hf", "model.preset=null"], "init.path is missing"),
        (["init.from=hf", "model.preset=null", "init.path=nowhere"], "init.path=nowhere does not exist"),
    ],
)
def test_exactly_one_place_says_the_architecture(path: Path, overrides: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        resolve_architecture(load_config(path, overrides).resolved)


def test_a_folder_without_a_checkpoint_is_refused(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["model.preset=null", "init.from=checkpoint", f"init.path={tmp_path}"]).resolved
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        resolve_architecture(config)
