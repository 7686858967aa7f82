"""HF -> checkpoint -> HF is the identity; what is wrong is refused before anything is published."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from data_mixers.atomic import temporary_path
from megatron_synE.checkpoint import hf_export, layout
from megatron_synE.checkpoint.chunk_reader import ChunkReader
from megatron_synE.checkpoint.hf_export import MARKER, write_hf_folder
from megatron_synE.checkpoint.hf_verify import verify_folder
from megatron_synE.exit_codes import CheckpointError
from tools.checkpoint import importer
from tools.checkpoint.importer import import_hf


def weights_of(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_round_trip_is_bit_exact(make_hf, tmp_path, groups, tied, dtype):
    hf, _ = make_hf(num_key_value_heads=groups, tie_word_embeddings=tied, dtype=dtype, head_dim=48)
    report = import_hf(hf, tmp_path / "ckpt")
    write_hf_folder(report.checkpoint, tmp_path / "back")
    assert_same_weights(weights_of(hf), weights_of(tmp_path / "back"))


def test_sharded_in_and_sharded_out(make_hf, tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "CHUNK_BYTES", 1000)  # many chunks a tensor, down to single rows
    hf, _ = make_hf(max_shard_size="40KB")
    report = import_hf(hf, tmp_path / "ckpt")
    monkeypatch.setattr(hf_export, "SHARD_BYTES", 40_000)
    write_hf_folder(report.checkpoint, tmp_path / "back")
    shards = sorted((tmp_path / "back").glob("model-*-of-*.safetensors"))
    assert len(shards) > 3
    assert all(shard.stat().st_size < 42_000 for shard in shards)
    assert_same_weights(weights_of(hf), weights_of(tmp_path / "back"))
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in weights_of(hf).values())


@pytest.mark.parametrize("shard_bytes", [10**9, 40_000])
def test_an_export_opens_in_transformers_and_gives_the_same_logits(make_hf, tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(hf_export, "SHARD_BYTES", shard_bytes)
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    hf, model = make_hf(rope_parameters=rope)
    write_hf_folder(import_hf(hf, tmp_path / "ckpt").checkpoint, tmp_path / "back")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    tokens = torch.arange(200)[None] % 131
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert loaded.config.to_diff_dict() == {**model.config.to_diff_dict(), "dtype": "float32"}


def test_casts_on_the_way_in_and_out(make_hf, tmp_path):
    hf, model = make_hf()
    checkpoint = import_hf(hf, tmp_path / "ckpt", dtype="bf16").checkpoint
    assert layout.read_state(checkpoint).weights_dtype == "bfloat16"
    write_hf_folder(checkpoint, tmp_path / "back", dtype="fp32")
    expected = {name: value.bfloat16().float() for name, value in model.state_dict().items()}
    assert_same_weights(expected, weights_of(tmp_path / "back"))
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("fields", [("dtype",), ("torch_dtype",), ("dtype", "torch_dtype"), ()])
def test_an_export_opens_in_the_dtype_that_it_was_written_in(make_hf, tmp_path, fields):
    hf, _ = make_hf()
    config = json.loads((hf / "config.json").read_text())
    del config["dtype"]
    (hf / "config.json").write_text(json.dumps(config | dict.fromkeys(fields, "bfloat16")))
    write_hf_folder(import_hf(hf, tmp_path / "ckpt").checkpoint, tmp_path / "back")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto").dtype == torch.float32
    assert_same_weights(weights_of(hf), AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict())


def test_mixed_dtypes_need_a_choice(make_hf, tmp_path):
    hf, _ = make_hf()
    tensors = load_file(hf / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    save_file(tensors, hf / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is torch\.bfloat16; choose one with --dtype"):
        import_hf(hf, tmp_path / "ckpt")
    write_hf_folder(import_hf(hf, tmp_path / "ckpt", dtype="fp32").checkpoint, tmp_path / "back")
    assert_same_weights({n: t.float() for n, t in tensors.items()}, weights_of(tmp_path / "back"))


def test_importing_and_exporting_again_replaces_what_was_there(make_hf, tmp_path):
    first, _ = make_hf(seed=1)
    second, _ = make_hf(seed=2)
    for hf in (first, second):
        # Of calls that were killed: no process has such a number.
        left = temporary_path(Path("x")).name.removeprefix(".x.").replace(f".{os.getpid()}.", ".99999999.")
        for folder in (f"ckpt/.iter_0000000.{left}", f".back.{left}", f".back.{left}-replaced"):
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / "model.safetensors").touch()
        write_hf_folder(import_hf(hf, tmp_path / "ckpt").checkpoint, tmp_path / "back")
    assert_same_weights(weights_of(second), weights_of(tmp_path / "back"))
    assert sorted(p.name for p in (tmp_path / "ckpt").iterdir()) == ["iter_0000000", layout.TRACKER]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("there", ["an earlier export", "an empty folder", "nothing"])
def test_an_export_follows_a_link_to_where_it_leads(make_hf, tmp_path, there):
    hf, _ = make_hf()
    checkpoint = import_hf(hf, tmp_path / "ckpt").checkpoint
    disk, link = tmp_path / "disk", tmp_path / "model"
    disk.mkdir()
    if there == "an earlier export":
        write_hf_folder(checkpoint, disk / "exported")
    elif there == "an empty folder":
        (disk / "exported").mkdir()
    link.symlink_to(disk / "exported")
    write_hf_folder(checkpoint, link)
    assert link.is_symlink()
    assert_same_weights(weights_of(hf), weights_of(disk / "exported"))
    assert "# model\n" in (link / "README.md").read_text()
    assert [path.name for path in disk.iterdir()] == ["exported"]
    assert not list(tmp_path.glob(".*"))


def test_the_working_folder_can_be_exported_into(make_hf, tmp_path, monkeypatch):
    hf, _ = make_hf()
    checkpoint = import_hf(hf, tmp_path / "ckpt").checkpoint
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_hf_folder(checkpoint, Path())
    assert_same_weights(weights_of(hf), weights_of(tmp_path / "here"))


def test_what_a_killed_export_put_aside_stays_until_another_one_is_there(make_hf, tmp_path):
    """Killed between the two renames, and then the next one fails: it is the only model of that name. The number of
    the killed process may be that of a later one."""
    hf, _ = make_hf()
    checkpoint = import_hf(hf, tmp_path / "ckpt").checkpoint
    ended = temporary_path(tmp_path / "back").name.replace(f".{os.getpid()}.", ".99999999.")
    aside = [tmp_path / f"{name}-replaced" for name in (ended, temporary_path(tmp_path / "back").name)]
    for folder in aside:
        folder.mkdir()
        (folder / "model.safetensors").touch()
    assert_fails = pytest.raises(CheckpointError, match="bad weights")
    with assert_fails, layout.temporary_folder(tmp_path / "back"):
        raise CheckpointError("bad weights")
    assert all(folder.is_dir() for folder in aside)
    for _ in range(2):
        write_hf_folder(checkpoint, tmp_path / "back")
    assert not list(tmp_path.glob(".*"))


def test_neither_direction_overwrites_what_it_did_not_write(make_hf, tmp_path):
    hf, _ = make_hf()
    checkpoint = import_hf(hf, tmp_path / "ckpt").checkpoint
    with pytest.raises(CheckpointError, match="not an earlier export"):
        write_hf_folder(checkpoint, hf)
    shutil.copytree(checkpoint, tmp_path / "run" / "iter_0000005")
    with pytest.raises(CheckpointError, match="iter_0000005"):
        import_hf(hf, tmp_path / "run")


def test_a_weight_that_is_not_finite_leaves_nothing_behind(make_hf, tmp_path):
    hf, model = make_hf()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[95, 0] = float("nan")
    model.save_pretrained(hf)
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.weight holds 1 NaN"):
        import_hf(hf, tmp_path / "ckpt")
    assert list((tmp_path / "ckpt").iterdir()) == []


def test_one_flipped_bit_on_either_side_is_found_and_named(make_hf, tmp_path):
    hf, model = make_hf(dtype=torch.bfloat16)
    checkpoint = import_hf(hf, tmp_path / "ckpt").checkpoint
    assert verify_folder(hf, checkpoint) == len(model.state_dict())
    tensors = load_file(hf / "model.safetensors")
    bits = tensors["model.layers.1.self_attn.v_proj.weight"].view(torch.int16)
    bits[17, 3] ^= 1
    save_file(tensors, hf / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"differs .* in model\.layers\.1\.self_attn\.v_proj\.weight \(1 values\)"
    ):
        verify_folder(hf, checkpoint)


def test_the_sign_of_zero_is_a_difference(make_hf, tmp_path):
    hf, model = make_hf()
    with torch.no_grad():
        model.model.norm.weight[0] = 0.0
    model.save_pretrained(hf)
    checkpoint = import_hf(hf, tmp_path / "ckpt").checkpoint
    with torch.no_grad():
        model.model.norm.weight[0] = -0.0
    model.save_pretrained(hf)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight \(1 values\)"):
        verify_folder(hf, checkpoint)


def test_a_config_field_that_differs_is_named_with_both_values(make_hf, tmp_path):
    hf, _ = make_hf()
    checkpoint = import_hf(hf, tmp_path / "ckpt").checkpoint
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4, "dtype": "bfloat16"}))
    with pytest.raises(CheckpointError, match=r"rms_norm_eps: 0\.0001 against 1e-06$"):
        verify_folder(hf, checkpoint)


def test_side_files_travel_both_ways(make_hf, tmp_path):
    hf, _ = make_hf()
    (hf / "tokenizer.json").write_text('{"model": "大"}', encoding="utf-8")
    (hf / "tokenizer_config.json").write_text("{}")
    (hf / "additional_chat_templates").mkdir()  # of a tokenizer with several
    (hf / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (hf / "LICENSE").write_text("META LLAMA 3 COMMUNITY LICENSE AGREEMENT\n")
    (hf / "README.md").write_text("---\nlicense: llama3\n---\n# Base\n")
    back = tmp_path / "SynE-8B"
    write_hf_folder(import_hf(hf, tmp_path / "ckpt").checkpoint, back)
    template = "additional_chat_templates/tool_use.jinja"
    for name in ("tokenizer.json", "tokenizer_config.json", template, "LICENSE", "generation_config.json"):
        assert (back / name).read_bytes() == (hf / name).read_bytes()
    card = (back / "README.md").read_text(encoding="utf-8")
    assert "# Llama-3-SynE-8B" in card
    assert "Built with Meta Llama 3" in card
    assert "license: llama3" in card
    lineage = layout.read_manifest(tmp_path / "ckpt" / "iter_0000000")["lineage_hash"]
    assert lineage in card
    assert json.loads((back / MARKER).read_text())["lineage_hash"] == lineage


def test_a_tokenizer_brought_beside_a_checkpoint_is_exported_without_what_the_download_left(make_hf, tmp_path):
    """As `hf download --local-dir iter_0000000/tokenizer` does for a checkpoint that had none."""
    hf, _ = make_hf()
    checkpoint = import_hf(hf, tmp_path / "ckpt").checkpoint
    cache = checkpoint / "tokenizer/.cache/huggingface/download"
    cache.mkdir(parents=True)
    (cache / "tokenizer.model.metadata").write_text("0")
    (checkpoint / "tokenizer/tokenizer.model").write_text("128 0")
    write_hf_folder(checkpoint, tmp_path / "back")
    assert (tmp_path / "back/tokenizer.model").read_text() == "128 0"
    assert not (tmp_path / "back/.cache").exists()


def test_export_takes_the_newest_complete_checkpoint_of_a_run(make_hf, tmp_path):
    first, _ = make_hf(seed=1)
    second, _ = make_hf(seed=2)
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    import_hf(first, tmp_path / "a").checkpoint.rename(checkpoints / "iter_0000010")
    import_hf(second, tmp_path / "b").checkpoint.rename(checkpoints / "iter_0000020")
    data = next((checkpoints / "iter_0000020").glob("*.distcp"))
    os.truncate(data, data.stat().st_size - 1)
    write_hf_folder(tmp_path / "run", tmp_path / "back")
    assert_same_weights(weights_of(first), weights_of(tmp_path / "back"))
    with pytest.raises(CheckpointError, match=data.name):
        write_hf_folder(checkpoints / "iter_0000020", tmp_path / "other")


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_checkpoint_with_a_missing_or_unknown_weight_is_refused(make_hf, tmp_path, change):
    hf, _ = make_hf()
    checkpoint = import_hf(hf, tmp_path / "ckpt").checkpoint
    config = json.loads((checkpoint / "config.json").read_text())
    config["num_hidden_layers"] += 1 if change == "missing" else -1
    (checkpoint / "config.json").write_text(json.dumps(config))
    layout.write_manifest(checkpoint, {})
    name = "decoder.layers.2." if change == "missing" else "decoder.layers.1."
    with pytest.raises(CheckpointError, match=f"weight {name}.* is {change}"):
        write_hf_folder(checkpoint, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_checkpoint_is_stored_under_the_documented_names_and_shapes(make_hf, tmp_path):
    hf, _ = make_hf()
    reader = ChunkReader(import_hf(hf, tmp_path / "ckpt").checkpoint)
    assert {key: reader.shape(key) for key in reader.keys if ".0." in key or "layers" not in key} == {
        "embedding.word_embeddings.weight": (131, 64),
        "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight": (64,),
        "decoder.layers.0.self_attention.linear_qkv.weight": (2 * (2 + 2) * 16, 64),
        "decoder.layers.0.self_attention.linear_proj.weight": (64, 64),
        "decoder.layers.0.mlp.linear_fc1.layer_norm_weight": (64,),
        "decoder.layers.0.mlp.linear_fc1.weight": (192, 64),
        "decoder.layers.0.mlp.linear_fc2.weight": (64, 96),
        "decoder.final_layernorm.weight": (64,),
        "output_layer.weight": (131, 64),
    }
