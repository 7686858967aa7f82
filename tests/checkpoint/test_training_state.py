"""The tensors of a trainer in one process, out and in again, in either precision; over more, tests/distributed."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from megatron_synE.alone import CPU
from megatron_synE.build import Model, build_model, build_optimizer
from megatron_synE.checkpoint.chunk_reader import ChunkReader
from megatron_synE.checkpoint.dcp import save_chunks
from megatron_synE.checkpoint.layout import CommonState
from megatron_synE.checkpoint.load import load_training_state, load_weights
from megatron_synE.checkpoint.training_state import (
    adam_step,
    check_masters,
    chunks_to_save,
    optimizer_shards,
    set_adam_step,
)
from megatron_synE.config.derive import derive, resolve_architecture
from megatron_synE.config.load import load_config
from megatron_synE.exit_codes import CheckpointError
from tests import tiny
from tools.checkpoint.importer import import_hf

pytestmark = pytest.mark.usefixtures("one_process")
Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MOMENTS = ("exp_avg", "exp_avg_sq")
CONFIG = tiny.hf_config(vocab_size=250, num_hidden_layers=2)  # 250 rows are padded to 256
NORM = "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tiny.hf_model(CONFIG, seed=5).save_pretrained(tmp_path / "hf")
    tiny.write_run(tmp_path, tiny.run_tree(tmp_path, hf=tmp_path / "hf"))
    return tmp_path


def model_of(root: Path, precision: Precision, *, seed: int) -> tuple[Model, Any]:
    """A model of random weights, and what its optimizer is built with."""
    config = load_config(root / "run.yaml", [f"training.precision={precision}"]).resolved
    plan = derive(config, resolve_architecture(config)[0], 1, device="cpu")
    torch.manual_seed(seed)
    return build_model(config, plan, CPU), (config, plan)


@pytest.mark.parametrize(("precision", "has_bf16"), [("bf16", False), ("bf16", True), ("fp32", False)])
def test_a_cpu_that_emulates_bf16_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, precision: Precision, has_bf16: bool
) -> None:
    """It is the default of training.precision, and a laptop of few years has no such products."""
    monkeypatch.setattr("megatron_synE.runtime.device.cpu_has_bf16", lambda: has_bf16)
    model_of(root, precision, seed=0)
    said = [record.getMessage() for record in caplog.records if "bf16 in hardware" in record.getMessage()]
    assert len(said) == (precision == "bf16" and not has_bf16)
    assert all("training.precision=auto" in each for each in said)


@dataclass
class Trainer:
    model: Model
    optimizer: Any


def trainer(root: Path, precision: Precision, *, seed: int) -> Trainer:
    """Masters, moments and weights as after some steps: none of them alike, weights the rounded masters."""
    model, (config, plan) = model_of(root, precision, seed=seed)
    optimizer = build_optimizer(config, plan, model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for shard in optimizer_shards(model, optimizer):
            for tensor in (shard.master, *shard.moments.values()):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            shard.weight.copy_(shard.master)
    set_adam_step(optimizer, 10 * seed)
    return Trainer(model, optimizer)


def weights_of(model: Model) -> dict[str, torch.Tensor]:
    (chunk,) = model.chunks
    return {name: parameter.detach().clone() for name, parameter in chunk.named_parameters()}


def state_of(found: Trainer) -> dict[str, torch.Tensor]:
    """Masters and moments by megatron-core's own tables: parameter -> its place among the optimizer's groups."""
    inner = found.optimizer.optimizer
    (chunk,) = found.model.chunks
    state = {}
    for name, parameter in chunk.named_parameters():
        group, order = found.optimizer.model_param_group_index_map[parameter]
        master = inner.param_groups[group]["params"][order]
        state[f"master {name}"] = master.detach().clone()
        state |= {f"{moment} {name}": inner.state[master][moment].clone() for moment in MOMENTS}
    return state


def kept(name: str, values: torch.Tensor) -> torch.Tensor:
    """Flat, without rows of padding."""
    flat = values.reshape(-1)
    return flat[: 250 * 64] if name.endswith(("word_embeddings.weight", "output_layer.weight")) else flat


def common(found: Trainer, **changes: Any) -> CommonState:
    dtype = str(found.model.config.params_dtype).removeprefix("torch.")
    facts: dict[str, Any] = {
        "iteration": 3, "consumed_samples": 12, "consumed_tokens": 384, "adam_step": adam_step(found.optimizer),
        "has_optimizer": True, "weights_dtype": dtype, "tied": False, "vocab_size": 250,
    }  # fmt: skip
    return CommonState(**facts | changes)


@pytest.mark.parametrize("runs", ["fp32", "bf16"])
@pytest.mark.parametrize("stored", ["fp32", "bf16"])
def test_a_run_goes_on_from_what_another_has_written_in_either_precision(
    root: Path, stored: Precision, runs: Precision
) -> None:
    first, second = trainer(root, stored, seed=1), trainer(root, runs, seed=2)
    save_chunks(root / "ckpt", chunks_to_save(first.model, first.optimizer))
    before = state_of(first)
    load_training_state(second.model, second.optimizer, root / "ckpt", common(first))
    # Masters are carried exactly, also into the weights of a run in fp32; a run in bf16 has them rounded.
    after = state_of(second)
    assert after.keys() == before.keys()
    assert all(torch.equal(kept(name, after[name]), kept(name, before[name])) for name in before)
    for name, weight in weights_of(second.model).items():
        assert weight.dtype == DTYPES[runs]
        assert torch.equal(kept(name, weight), kept(name, before[f"master {name}"]).to(DTYPES[runs])), name
    assert [group["step"] for group in second.optimizer.optimizer.param_groups] == [10] * len(
        second.optimizer.optimizer.param_groups
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_written_has_the_documented_names_types_and_no_padding(root: Path, precision: Precision) -> None:
    found = trainer(root, precision, seed=1)
    save_chunks(root / "ckpt", chunks_to_save(found.model, found.optimizer))
    reader = ChunkReader(root / "ckpt")
    weights = {key for key in reader.keys if not key.startswith("optimizer.")}
    assert len(weights) == 2 * 6 + 3 and NORM in weights
    states = (*MOMENTS, *(["master"] if precision == "bf16" else []))
    assert set(reader.keys) == weights | {f"optimizer.{name}.{key}" for name in states for key in weights}
    for key in weights:
        shape = reader.shape(key)
        assert reader.dtype(key) == DTYPES[precision]
        for name in states:
            stored = f"optimizer.{name}.{key}"
            assert (reader.shape(stored), reader.dtype(stored)) == (shape, torch.float32)
    assert reader.shape("embedding.word_embeddings.weight") == reader.shape("output_layer.weight") == (250, 64)
    rows = weights_of(found.model)["output_layer.weight"]
    assert rows.shape == (256, 64)
    assert torch.equal(reader.read("output_layer.weight", (0, 0), (250, 64)), rows[:250])


def test_weights_alone_are_no_state_to_go_on_from(root: Path) -> None:
    found = trainer(root, "fp32", seed=1)
    with pytest.raises(CheckpointError, match=r"ckpt: holds weights only; use init\.mode=init"):
        load_training_state(found.model, found.optimizer, root / "ckpt", common(found, has_optimizer=False))


def test_moments_are_zero_before_the_first_step(root: Path) -> None:
    model, (config, plan) = model_of(root, "bf16", seed=1)
    optimizer = build_optimizer(config, plan, model)
    shards = list(optimizer_shards(model, optimizer))
    assert sum(shard.master.numel() for shard in shards) == sum(w.numel() for w in weights_of(model).values())
    for shard in shards:
        assert set(shard.moments) == set(MOMENTS)
        assert not any(values.any() for values in shard.moments.values())
        assert {values.dtype for values in (shard.master, *shard.moments.values())} == {torch.float32}
    assert adam_step(optimizer) == 0


def test_a_master_that_is_not_the_weight_is_named(root: Path) -> None:
    found = trainer(root, "bf16", seed=1)
    check_masters(found.model, found.optimizer)
    (shard,) = (each for each in optimizer_shards(found.model, found.optimizer) if each.local.key == NORM)
    with torch.no_grad():
        shard.master[3] += 1.0
    with pytest.raises(CheckpointError, match=f"^{NORM}: the optimizer's fp32 master is not the weight"):
        check_masters(found.model, found.optimizer)
    with torch.no_grad():
        shard.master[3] = shard.weight[3].float() * (1 + 2**-12)  # rounds to the weight
    check_masters(found.model, found.optimizer)


def test_the_step_is_that_of_the_groups_that_count() -> None:
    groups: list[dict[str, Any]] = [{"step": 3}, {}, {"step": torch.tensor(5)}]
    optimizer = SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups))
    assert adam_step(optimizer) == 5
    set_adam_step(optimizer, 8)
    assert groups == [{"step": 8}] * 3
    groups.clear()
    assert adam_step(optimizer) == 0


def expected_of(root: Path) -> dict[str, torch.Tensor]:
    """Weights under megatron-core's names from those of transformers, by hand: two query groups of two heads."""
    state = tiny.hf_model(CONFIG, seed=5).state_dict()
    found = {
        "embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": state["model.norm.weight"],
        "output_layer.weight": state["lm_head.weight"],
    }
    for layer in range(2):
        theirs, ours = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        q, k, v = (state[f"{theirs}self_attn.{name}_proj.weight"] for name in "qkv")  # [64, 64], [32, 64], [32, 64]
        found |= {
            f"{ours}input_layernorm.weight": state[f"{theirs}input_layernorm.weight"],
            f"{ours}self_attention.linear_qkv.weight": torch.cat([q[:32], k[:16], v[:16], q[32:], k[16:], v[16:]]),
            f"{ours}self_attention.linear_proj.weight": state[f"{theirs}self_attn.o_proj.weight"],
            f"{ours}pre_mlp_layernorm.weight": state[f"{theirs}post_attention_layernorm.weight"],
            f"{ours}mlp.linear_fc1.weight": torch.cat(
                [state[f"{theirs}mlp.gate_proj.weight"], state[f"{theirs}mlp.up_proj.weight"]]
            ),
            f"{ours}mlp.linear_fc2.weight": state[f"{theirs}mlp.down_proj.weight"],
        }
    return found


@pytest.mark.parametrize("source", ["hf", "checkpoint"])
def test_weights_are_read_into_their_places_and_rows_of_padding_stay_zero(root: Path, source: str) -> None:
    model, (_, plan) = model_of(root, "fp32", seed=1)
    if source == "hf":
        load_weights(model, plan.architecture, root / "hf", is_hf=True)
    else:
        checkpoint = import_hf(root / "hf", root / "imported").checkpoint
        load_weights(model, plan.architecture, checkpoint, is_hf=False)
    expected, found = expected_of(root), weights_of(model)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        rows = len(expected[name])
        assert torch.equal(weight[:rows], expected[name]), name
        assert not weight[rows:].any()
