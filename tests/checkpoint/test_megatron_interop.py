"""megatron-core's own dist_checkpointing opens our folders, and we read the weights that it writes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_synE.alone import build_reference
from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint.chunk_reader import ChunkReader
from megatron_synE.checkpoint.hf_export import write_hf_folder
from megatron_synE.checkpoint.weights import CheckpointWeights
from megatron_synE.model.llama import architecture_from_hf, read_hf_config
from tools.checkpoint.importer import import_hf


def architecture_of(folder):
    return architecture_from_hf(read_hf_config(folder), where=str(folder))


def sharded_state(model, *, stacked):
    """What Megatron-LM hands to dist_checkpointing for a model's weights."""
    return model.sharded_state_dict(metadata={"non_homogeneous_layers": not stacked})


def save_as_megatron(model, folder: Path, *, stacked):
    from megatron.core import dist_checkpointing

    folder.mkdir(parents=True)
    dist_checkpointing.save(sharded_state(model, stacked=stacked), str(folder))


def weights_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_weights_written_by_megatron_core_are_exported_bit_for_bit(make_hf, tmp_path, tied, stacked):
    hf, _ = make_hf(tie_word_embeddings=tied)
    model = build_reference(architecture_of(hf), hf, seq_length=8)
    save_as_megatron(model, tmp_path / "megatron", stacked=stacked)
    reader = ChunkReader(tmp_path / "megatron")
    assert ("decoder.layers.mlp.linear_fc2.weight" in reader.keys) == stacked
    # 131 rows are padded to 256: the surplus must not reach the export.
    assert reader.shape("embedding.word_embeddings.weight") == (256, 64)
    write_hf_folder(tmp_path / "megatron", tmp_path / "back", hf_config=hf)
    back, expected = weights_of(tmp_path / "back"), weights_of(hf)
    assert back.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(back[name], tensor), name


def test_a_rectangle_of_a_stacked_tensor_is_that_part_of_the_layer(make_hf, tmp_path):
    hf, source = make_hf()
    model = build_reference(architecture_of(hf), hf, seq_length=8)
    save_as_megatron(model, tmp_path / "megatron", stacked=True)
    weights = CheckpointWeights(tmp_path / "megatron", architecture_of(hf))
    read = weights.read("decoder.layers.1.mlp.linear_fc2.weight", (3, 10), (20, 7), torch.float64)
    assert torch.equal(read, source.state_dict()["model.layers.1.mlp.down_proj.weight"][3:23, 10:17].double())


@pytest.mark.parametrize("tied", [False, True])
def test_megatron_core_loads_what_we_write(make_hf, tmp_path, tied):
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.utils import apply_prefix_mapping
    from megatron.core.dist_checkpointing.validation import StrictHandling

    hf, _ = make_hf(tie_word_embeddings=tied, vocab_size=256)
    other, _ = make_hf(tie_word_embeddings=tied, vocab_size=256, seed=1)
    checkpoint = import_hf(hf, tmp_path / "ckpt").checkpoint
    model = build_reference(architecture_of(other), other, seq_length=8)
    before = model.decoder.layers[1].mlp.linear_fc2.weight.detach().clone()
    wanted = sharded_state(model, stacked=False)
    # What megatron-core's layer specs call sharded_state_dict_keys_map: norms that are modules of their own bear the
    # names of Transformer Engine's fused layers on disk.
    for layer in range(2):
        prefix = f"decoder.layers.{layer}."
        names = {
            f"{prefix}input_layernorm.": f"{prefix}self_attention.linear_qkv.layer_norm_",
            f"{prefix}pre_mlp_layernorm.": f"{prefix}mlp.linear_fc1.layer_norm_",
        }
        apply_prefix_mapping(wanted, names)
    # We keep no _extra_state (state of FP8 scaling); this is Megatron-LM's --dist-ckpt-strictness log_unexpected.
    loaded = dist_checkpointing.load(wanted, str(checkpoint), strict=StrictHandling.LOG_UNEXPECTED)
    assert loaded["iteration"] == layout.read_state(checkpoint).iteration
    expected = build_reference(architecture_of(hf), hf, seq_length=8).state_dict()
    num_compared = 0
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(loaded[name], value), name
            num_compared += 1
    assert num_compared == 2 * 6 + (2 if tied else 3)
    assert not torch.equal(before, loaded["decoder.layers.1.mlp.linear_fc2.weight"])
