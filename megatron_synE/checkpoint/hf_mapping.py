"""One table between HF Llama weights and the global tensors of a checkpoint; both directions are read from it.

A global tensor (docs/checkpoint.md) is a stack of row blocks, each block consecutive rows of one HF weight:
    linear_qkv   per query group: its q heads' rows of q_proj, its head's rows of k_proj, of v_proj
    linear_fc1   all rows of gate_proj, then all rows of up_proj
    the others   all rows of one weight; a norm is a column of rows of length one
Columns are never moved. No torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from megatron_synE.exit_codes import CheckpointError
from megatron_synE.model.llama import LlamaArchitecture

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Block:
    """Rows [row, row + num_rows) of a global tensor are rows [hf_row, hf_row + num_rows) of the HF weight `hf_name`."""

    row: int
    num_rows: int
    hf_name: str
    hf_row: int


@dataclass(frozen=True)
class Rectangle:
    """Whole rows of global tensor `key` that make rows [hf_row, hf_row + sizes[0]) of an HF weight."""

    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    hf_row: int


LAYER_KEY = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
LOCAL_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""Global tensors bear the names of TE's fused layers; megatron-core's local layer spec names norms after themselves."""
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")


@cache
def global_tensors(architecture: LlamaArchitecture) -> Mapping[str, tuple[int, ...]]:
    """Key -> shape at TP = PP = 1 without vocabulary padding, of every weight of the model, in the model's order."""
    a = architecture
    tensors: dict[str, tuple[int, ...]] = {"embedding.word_embeddings.weight": (a.vocab_size, a.hidden_size)}
    for layer in range(a.num_layers):
        tensors |= {f"decoder.layers.{layer}.{key}": shape for key, shape in _layer_shapes(a).items()}
    tensors["decoder.final_layernorm.weight"] = (a.hidden_size,)
    return tensors if a.tied else tensors | {"output_layer.weight": (a.vocab_size, a.hidden_size)}


def global_shape(architecture: LlamaArchitecture, key: str) -> tuple[int, ...]:
    """Shape of one global tensor. Errors: CheckpointError for a key that this model does not have."""
    a = architecture
    if (shape := global_tensors(a).get(key)) is None:
        raise CheckpointError(f"{key!r} is not a weight of this model ({a.num_layers} layers, tied={a.tied})")
    return shape


def blocks(architecture: LlamaArchitecture, key: str) -> tuple[Block, ...]:
    """The row blocks that make up global tensor `key`, by ascending row: the table."""
    a, shape = architecture, global_shape(architecture, key)
    match = LAYER_KEY.fullmatch(key)
    if match is None:
        return (Block(0, shape[0], _OUTER_NAMES[key], 0),)
    layer, name = f"model.layers.{match[1]}.", match[2]
    if name == "self_attention.linear_qkv.weight":
        return _qkv_blocks(a, layer)
    if name == "mlp.linear_fc1.weight":
        ffn = a.ffn_hidden_size
        return (Block(0, ffn, f"{layer}mlp.gate_proj.weight", 0), Block(ffn, ffn, f"{layer}mlp.up_proj.weight", 0))
    return (Block(0, shape[0], layer + _LAYER_NAMES[name], 0),)


def hf_shapes(architecture: LlamaArchitecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every HF weight, in the model's order; no lm_head when tied."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, shape in global_tensors(architecture).items():
        for block in blocks(architecture, key):
            rows = shapes.get(block.hf_name, (0,))[0] + block.num_rows
            shapes[block.hf_name] = (rows, *shape[1:])
    return shapes


def hf_tensor_from_global(architecture: LlamaArchitecture, hf_name: str) -> tuple[Rectangle, ...]:
    """The pieces of global tensors that make up one HF weight, by ascending hf_row (for export)."""
    key = _key_holding(hf_name)
    columns = global_shape(architecture, key)[1:]
    return tuple(
        Rectangle(key, (block.row, *(0 for _ in columns)), (block.num_rows, *columns), block.hf_row)
        for block in blocks(architecture, key)
        if block.hf_name == hf_name
    )


_OUTER_NAMES = {
    "embedding.word_embeddings.weight": EMBEDDING,
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": HEAD,
}
_LAYER_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
_KEY_OF_NAME = {hf: key for key, hf in (_OUTER_NAMES | _LAYER_NAMES).items()}
_KEY_OF_NAME |= {f"self_attn.{p}_proj.weight": "self_attention.linear_qkv.weight" for p in "qkv"}
_KEY_OF_NAME |= {f"mlp.{p}_proj.weight": "mlp.linear_fc1.weight" for p in ("gate", "up")}


def _layer_shapes(a: LlamaArchitecture) -> dict[str, tuple[int, ...]]:
    qkv_rows = (a.num_attention_heads + 2 * a.num_query_groups) * a.kv_channels
    return {
        "self_attention.linear_qkv.layer_norm_weight": (a.hidden_size,),
        "self_attention.linear_qkv.weight": (qkv_rows, a.hidden_size),
        "self_attention.linear_proj.weight": (a.hidden_size, a.num_attention_heads * a.kv_channels),
        "mlp.linear_fc1.layer_norm_weight": (a.hidden_size,),
        "mlp.linear_fc1.weight": (2 * a.ffn_hidden_size, a.hidden_size),
        "mlp.linear_fc2.weight": (a.hidden_size, a.ffn_hidden_size),
    }


def _qkv_blocks(a: LlamaArchitecture, layer: str) -> tuple[Block, ...]:
    head_rows = a.kv_channels
    q_rows = a.num_attention_heads // a.num_query_groups * head_rows
    table: list[Block] = []
    row = 0
    for group in range(a.num_query_groups):
        for name, num_rows in (("q", q_rows), ("k", head_rows), ("v", head_rows)):
            table.append(Block(row, num_rows, f"{layer}self_attn.{name}_proj.weight", group * num_rows))
            row += num_rows
    return tuple(table)


def _key_holding(hf_name: str) -> str:
    match = _LAYER_NAME.fullmatch(hf_name)
    key = _KEY_OF_NAME.get(match[2] if match else hf_name)
    if key is None or (match is None) != (hf_name in _OUTER_NAMES.values()):
        raise CheckpointError(f"{hf_name!r} is not a weight of a Llama")
    return f"decoder.layers.{match[1]}.{key}" if match else key
