"""An HF folder that is not whole, or not a Llama, is refused with the name of file and tensor."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_mixers.errors import ConfigError
from megatron_synE.checkpoint.hf_folder import HfFolder
from megatron_synE.exit_codes import CheckpointError

FILE = "model.safetensors"


def rewrite(path, change):
    tensors = load_file(path / FILE)
    change(tensors)
    save_file(tensors, path / FILE, metadata={"format": "pt"})


def test_names_dtypes_and_shapes_are_known_from_the_headers(make_hf):
    path, model = make_hf(dtype=torch.bfloat16, max_shard_size="40KB")
    assert not (path / FILE).exists()
    folder = HfFolder(path)
    state = model.state_dict()
    assert {name: (t.dtype, t.shape) for name, t in folder.tensors.items()} == {
        name: (value.dtype, tuple(value.shape)) for name, value in state.items()
    }


def test_a_slice_is_read_in_its_stored_dtype(make_hf):
    path, model = make_hf(dtype=torch.float16)
    whole = model.state_dict()["model.layers.0.mlp.down_proj.weight"]
    folder, name = HfFolder(path), "model.layers.0.mlp.down_proj.weight"
    read = folder.read_rows(name, slice(3, 9))
    assert torch.equal(read, whole[3:9]) and read.dtype == torch.float16
    part = torch.empty(6, 45, dtype=torch.float16)
    folder.read_into(part, name, first_row=3, first_column=10)
    assert torch.equal(part, whole[3:9, 10:55])


@pytest.mark.parametrize("kept_share", [0.0001, 0.3, 0.9999])
def test_a_truncated_file_is_refused(make_hf, kept_share):
    path, _ = make_hf()
    content = (path / FILE).read_bytes()
    (path / FILE).write_bytes(content[: int(len(content) * kept_share)])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        HfFolder(path)


def test_a_file_longer_than_its_header_says_is_refused(make_hf):
    path, _ = make_hf()
    with (path / FILE).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(CheckpointError, match="longer"):
        HfFolder(path)


def test_a_header_whose_offsets_disagree_with_its_shapes_is_refused(make_hf):
    path, _ = make_hf()
    content = (path / FILE).read_bytes()
    (path / FILE).write_bytes(content.replace(b'"shape":[131,64]', b'"shape":[130,64]', 1))
    with pytest.raises(CheckpointError, match="bytes of data"):
        HfFolder(path)


def test_a_missing_shard_is_named_with_a_tensor_of_it(make_hf):
    path, _ = make_hf(max_shard_size="40KB")
    shard = sorted(path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}: missing shard .it holds "):
        HfFolder(path)


def test_an_index_that_names_a_file_outside_the_folder_is_refused(make_hf):
    path, _ = make_hf(max_shard_size="40KB")
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="not a file of this folder"):
        HfFolder(path)


def test_an_index_that_disagrees_with_a_shard_is_refused(make_hf):
    path, _ = make_hf(max_shard_size="40KB")
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        HfFolder(path)


def test_a_missing_weight_is_named(make_hf):
    path, _ = make_hf()
    rewrite(path, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        HfFolder(path)


def test_an_untied_model_without_its_head_is_refused(make_hf):
    path, _ = make_hf()
    rewrite(path, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        HfFolder(path)


def test_an_unknown_weight_is_named(make_hf):
    path, _ = make_hf()
    rewrite(path, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}))
    with pytest.raises(CheckpointError, match=r"q_proj\.bias is unknown"):
        HfFolder(path)


def test_rotary_buffers_of_old_exports_are_passed_over(make_hf):
    path, _ = make_hf()
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(path, lambda tensors: tensors.update({name: torch.zeros(8, dtype=torch.float64)}))
    assert name not in HfFolder(path).tensors


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn])
def test_another_dtype_is_refused(make_hf, dtype):
    path, _ = make_hf()

    def change(tensors):
        tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"].to(dtype)

    rewrite(path, change)
    with pytest.raises(CheckpointError, match=r"down_proj\.weight has dtype"):
        HfFolder(path)


def test_another_shape_than_the_config_says_is_refused(make_hf):
    path, _ = make_hf()
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))
    with pytest.raises(CheckpointError, match=r"down_proj\.weight has shape \[64, 96\], config\.json says \[64, 100\]"):
        HfFolder(path)


def test_a_tied_head_that_is_stored_must_equal_the_embedding(make_hf):
    path, _ = make_hf(tie_word_embeddings=True)
    rewrite(path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    HfFolder(path)

    def change(tensors):
        tensors["lm_head.weight"][130, 63] += 1e-6

    rewrite(path, change)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        HfFolder(path)


@pytest.mark.parametrize("sharded", [False, True])
def test_bin_files_are_read(make_hf, sharded):
    path, model = make_hf(dtype=torch.bfloat16)
    (path / FILE).unlink()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if sharded:
        names = list(state)
        shards = {"pytorch_model-00001-of-00002.bin": names[:5], "pytorch_model-00002-of-00002.bin": names[5:]}
        for shard, held in shards.items():
            torch.save({name: state[name] for name in held}, path / shard)
        weight_map = {name: shard for shard, held in shards.items() for name in held}
        (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(state, path / "pytorch_model.bin")
    folder = HfFolder(path)
    for name, value in state.items():
        assert torch.equal(folder.read_rows(name), value)


class RunsACommand:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        import os

        return (os.system, (f"touch {self.witness}",))


def test_a_bin_file_can_run_nothing(make_hf, tmp_path):
    path, _ = make_hf()
    (path / FILE).unlink()
    witness = tmp_path / "ran"
    torch.save({"model.norm.weight": RunsACommand(witness)}, path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: cannot be read with weights_only"):
        HfFolder(path)
    assert not witness.exists()


def test_a_truncated_bin_file_is_refused(make_hf):
    path, model = make_hf()
    (path / FILE).unlink()
    torch.save(dict(model.state_dict()), path / "pytorch_model.bin")
    content = (path / "pytorch_model.bin").read_bytes()
    (path / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        HfFolder(path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_what_git_left_in_place_of_the_weights_is_refused_with_its_cure(make_hf, name):
    path, _ = make_hf()
    (path / "model.safetensors").unlink()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 16060556376\n"
    (path / name).write_text(pointer)
    with pytest.raises(CheckpointError, match="Git LFS has not fetched; run `git lfs pull` there"):
        HfFolder(path)


def test_a_folder_without_config_or_weights_is_refused(make_hf, tmp_path):
    path, _ = make_hf()
    with pytest.raises(CheckpointError, match="no such folder"):
        HfFolder(tmp_path / "absent")
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(ConfigError, match=r"config\.json"):
        HfFolder(bare)
    shutil.copyfile(path / "config.json", bare / "config.json")
    with pytest.raises(CheckpointError, match="neither"):
        HfFolder(bare)
