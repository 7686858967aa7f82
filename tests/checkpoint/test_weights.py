"""Weights under our keys, however a checkpoint names, stacks and pads them: by loops over the whole tensors."""

import pytest
import torch

from megatron_synE.checkpoint.dcp import save_chunks, whole
from megatron_synE.checkpoint.hf_mapping import global_tensors
from megatron_synE.checkpoint.weights import CheckpointWeights
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.model.llama import LlamaArchitecture

ARCHITECTURE = LlamaArchitecture(
    num_layers=2, hidden_size=8, ffn_hidden_size=12, num_attention_heads=4, num_query_groups=2, kv_channels=4,
    vocab_size=10, max_position_embeddings=64,
)  # fmt: skip
LAYER_NAMES = (
    "self_attention.linear_qkv.layer_norm_weight", "self_attention.linear_qkv.weight",
    "self_attention.linear_proj.weight", "mlp.linear_fc1.layer_norm_weight", "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
)  # fmt: skip
LOCAL = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


def plain() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) for key, shape in global_tensors(ARCHITECTURE).items()}


def as_megatron(tensors: dict[str, torch.Tensor], *, local_norms: bool) -> dict[str, torch.Tensor]:
    """Layers stacked, the vocabulary padded by three rows, and a state that is no weight."""
    found = {key: tensor for key, tensor in tensors.items() if ".layers." not in key}
    for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
        found[key] = torch.cat([found[key], torch.full((3, 8), 7.0)])
    for name in LAYER_NAMES:
        stored = LOCAL.get(name, name) if local_norms else name
        found[f"decoder.layers.{stored}"] = torch.stack([tensors[f"decoder.layers.{n}.{name}"] for n in range(2)])
    return found | {"optimizer.state": torch.zeros(1)}


def saved(folder, tensors):
    save_chunks(folder, [whole(key, tensor) for key, tensor in tensors.items()])
    return folder


@pytest.mark.parametrize("local_norms", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_every_rectangle_is_that_of_the_plain_tensor(tmp_path, stacked, local_norms):
    tensors = plain()
    stored = as_megatron(tensors, local_norms=local_norms) if stacked else tensors
    if local_norms and not stacked:
        stored = {
            next((key.replace(ours, theirs) for ours, theirs in LOCAL.items() if key.endswith(ours)), key): tensor
            for key, tensor in tensors.items()
        }
        assert "decoder.layers.1.input_layernorm.weight" in stored
    weights = CheckpointWeights(saved(tmp_path, stored), ARCHITECTURE)
    for key, tensor in tensors.items():
        assert weights.dtype(key) == torch.float32
        zeros = (0,) * tensor.dim()
        assert torch.equal(weights.read(key, zeros, tuple(tensor.shape)), tensor), key
        offsets, sizes = (2, 1)[: tensor.dim()], (3, 2)[: tensor.dim()]
        part = tensor[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))]
        assert torch.equal(weights.read(key, offsets, sizes, torch.float64), part.double()), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.final_layernorm.weight": None}, r"weight decoder\.final_layernorm\.weight is missing"),
        ({"decoder.layers.2.mlp.linear_fc2.weight": (8, 12)}, r"decoder\.layers\.2\S+ is unknown .*\(1 unknown\)"),
        ({"decoder.final_layernorm.weight": (9,)}, r"has shape \[9\], the model needs \[8\]"),
        ({"decoder.layers.1.mlp.linear_fc2.weight": (9, 12)}, r"has shape \[9, 12\], the model needs \[8, 12\]"),
        ({"embedding.word_embeddings.weight": (9, 8)}, r"has shape \[9, 8\], the model needs \[10, 8\]"),
        ({"embedding.word_embeddings.weight": (12, 9)}, r"has shape \[12, 9\], the model needs \[10, 8\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, change, message):
    tensors = plain()
    for key, shape in change.items():
        if shape is None:
            del tensors[key]
        else:
            tensors[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=message):
        CheckpointWeights(saved(tmp_path, tensors), ARCHITECTURE)


def test_a_stack_of_another_depth_is_refused(tmp_path):
    stored = as_megatron(plain(), local_norms=False)
    stored["decoder.layers.mlp.linear_fc1.weight"] = torch.zeros(3, 24, 8)
    with pytest.raises(CheckpointError, match="stacks 3 layers, not 2"):
        CheckpointWeights(saved(tmp_path, stored), ARCHITECTURE)
