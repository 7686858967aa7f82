"""The table between HF weights and global tensors, against loops that follow the definition."""

import pytest
import torch

from megatron_synE.checkpoint.hf import read_rectangle
from megatron_synE.checkpoint.hf_folder import HfFolder
from megatron_synE.checkpoint.hf_mapping import blocks, global_tensors, hf_shapes, hf_tensor_from_global
from megatron_synE.exit_codes import CheckpointError


def expected_global(
    state: dict[str, torch.Tensor], *, heads: int, groups: int, head_dim: int
) -> dict[str, torch.Tensor]:
    """Every global tensor, row by row, from what docs/checkpoint.md says in words."""
    out = {"embedding.word_embeddings.weight": state["model.embed_tokens.weight"]}
    out["decoder.final_layernorm.weight"] = state["model.norm.weight"]
    if "lm_head.weight" in state:
        out["output_layer.weight"] = state["lm_head.weight"]
    layer = 0
    while f"model.layers.{layer}.input_layernorm.weight" in state:
        hf, key = f"model.layers.{layer}", f"decoder.layers.{layer}"
        rows = []
        for group in range(groups):
            for head in range(heads):
                if head * groups // heads == group:  # this q head attends with this group's k and v
                    for row in range(head_dim):
                        rows.append(state[f"{hf}.self_attn.q_proj.weight"][head * head_dim + row])
            for name in ("k", "v"):
                for row in range(head_dim):
                    rows.append(state[f"{hf}.self_attn.{name}_proj.weight"][group * head_dim + row])
        out[f"{key}.self_attention.linear_qkv.weight"] = torch.stack(rows)
        gate, up = state[f"{hf}.mlp.gate_proj.weight"], state[f"{hf}.mlp.up_proj.weight"]
        out[f"{key}.mlp.linear_fc1.weight"] = torch.stack([*gate, *up])
        out[f"{key}.mlp.linear_fc2.weight"] = state[f"{hf}.mlp.down_proj.weight"]
        out[f"{key}.self_attention.linear_proj.weight"] = state[f"{hf}.self_attn.o_proj.weight"]
        out[f"{key}.self_attention.linear_qkv.layer_norm_weight"] = state[f"{hf}.input_layernorm.weight"]
        out[f"{key}.mlp.linear_fc1.layer_norm_weight"] = state[f"{hf}.post_attention_layernorm.weight"]
        layer += 1
    return out


def state_of(model):
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("head_dim", [16, 48])
@pytest.mark.parametrize("tied", [False, True])
def test_every_global_tensor_is_what_the_definition_says(make_hf, groups, head_dim, tied):
    path, model = make_hf(num_key_value_heads=groups, head_dim=head_dim, tie_word_embeddings=tied)
    expected = expected_global(state_of(model), heads=4, groups=groups, head_dim=head_dim)
    folder = HfFolder(path)
    tensors = global_tensors(folder.architecture)
    assert tensors.keys() == expected.keys()
    for key, shape in tensors.items():
        read = read_rectangle(folder, folder.architecture, key, (0,) * len(shape), shape, torch.float32)
        assert torch.equal(read, expected[key]), key


def test_a_rectangle_is_that_part_of_the_whole(make_hf):
    path, model = make_hf()
    expected = expected_global(state_of(model), heads=4, groups=2, head_dim=16)
    folder = HfFolder(path)
    generator = torch.Generator().manual_seed(1)
    for key, whole in expected.items():
        for _ in range(6):
            corners = [sorted(torch.randint(0, n + 1, (2,), generator=generator).tolist()) for n in whole.shape]
            offsets = tuple(begin for begin, _ in corners)
            sizes = tuple(end - begin for begin, end in corners)
            read = read_rectangle(folder, folder.architecture, key, offsets, sizes, torch.float32)
            assert torch.equal(read, whole[tuple(slice(*corner) for corner in corners)]), (key, corners)


def test_the_rows_of_every_hf_weight_appear_exactly_once_in_the_table(make_hf):
    path, model = make_hf(num_key_value_heads=1)
    architecture = HfFolder(path).architecture
    assert hf_shapes(architecture) == {name: tuple(weight.shape) for name, weight in state_of(model).items()}
    for name, shape in hf_shapes(architecture).items():
        rows = []
        for piece in hf_tensor_from_global(architecture, name):
            rows += range(piece.hf_row, piece.hf_row + piece.sizes[0])
            assert any(
                block.hf_name == name and block.row == piece.offsets[0] for block in blocks(architecture, piece.key)
            )
        assert rows == list(range(shape[0])), name


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [(torch.float32, torch.bfloat16), (torch.float16, torch.bfloat16), (torch.bfloat16, torch.float32)],
)
def test_a_cast_rounds_to_nearest_even(make_hf, stored, wanted):
    path, model = make_hf(dtype=stored)
    folder = HfFolder(path)
    read = read_rectangle(folder, folder.architecture, "embedding.word_embeddings.weight", (0, 0), (131, 64), wanted)
    value = model.state_dict()["model.embed_tokens.weight"].double()
    if wanted == torch.float32:
        assert torch.equal(read.double(), value)
        return
    mantissa, exponent = torch.frexp(value)
    by_hand = torch.ldexp(torch.round(mantissa * 256) / 256, exponent)  # 8 bits of mantissa; round() ties to even
    assert torch.equal(read.double(), by_hand)


def test_a_key_or_rectangle_that_is_not_there_is_refused(make_hf):
    path, _ = make_hf(tie_word_embeddings=True)
    folder = HfFolder(path)
    architecture = folder.architecture
    with pytest.raises(CheckpointError, match=r"output_layer\.weight"):
        read_rectangle(folder, architecture, "output_layer.weight", (0, 0), (1, 1), torch.float32)
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.2"):
        read_rectangle(folder, architecture, "decoder.layers.2.mlp.linear_fc2.weight", (0, 0), (1, 1), torch.float32)
    with pytest.raises(CheckpointError, match="no rectangle"):
        read_rectangle(folder, architecture, "embedding.word_embeddings.weight", (130, 0), (2, 64), torch.float32)
    with pytest.raises(CheckpointError, match="not a weight"):
        hf_tensor_from_global(architecture, "model.layers.0.self_attn.q_norm.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_where_it_is_read(make_hf, value):
    path, model = make_hf()
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[5, 7] = value
    model.save_pretrained(path)
    folder = HfFolder(path)
    key = "decoder.layers.1.self_attention.linear_qkv.weight"
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.self_attn\.k_proj\.weight holds 1 NaN or infinite"):
        read_rectangle(folder, folder.architecture, key, (0, 0), (128, 64), torch.float32)
    # The q rows of the first group are sound and can be read.
    read_rectangle(folder, folder.architecture, key, (0, 0), (32, 64), torch.float32)


def test_a_value_too_large_for_bf16_is_refused_in_the_cast(make_hf):
    path, model = make_hf()
    with torch.no_grad():
        model.model.norm.weight[3] = torch.finfo(torch.float32).max
    model.save_pretrained(path)
    folder = HfFolder(path)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds 1 NaN or infinite values \(bfloat16\)"):
        read_rectangle(folder, folder.architecture, "decoder.final_layernorm.weight", (0,), (64,), torch.bfloat16)
