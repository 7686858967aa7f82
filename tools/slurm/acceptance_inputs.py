"""What an acceptance trains on: a small random Llama, tokens with something to learn, one run.yaml for all layouts."""

from pathlib import Path
from typing import Any

import numpy as np

from data_mixers.manifest import (
    SCHEMA_VERSION,
    DatasetManifest,
    ShardEntry,
    SourceEntry,
    TokenizerIdentity,
    write_manifest,
)
from megatron_synE.config.load import dump_yaml
from megatron_synE.data.indexed import IndexedWriter

ITERATIONS = 6
SEED = 7
VOCAB_SIZE, EOS = 512, 2
NUM_TOKENS = 200_000


def write_inputs(work: Path, *, world_size: int, device: str) -> Path:
    """Model, data and run.yaml below `work`; the path of run.yaml."""
    write_model(work / "hf")
    write_tokens(work / "data")
    seq_length, global_batch_size = (256, 4 * world_size) if device == "cuda" else (64, 4 * world_size)
    tree: dict[str, Any] = {
        "run": {"name": "acceptance", "dir": str(work / "unnamed"), "seed": SEED},
        "init": {"from": "hf", "path": str(work / "hf")},
        "model": {"attention": "native"},
        "training": {
            "seq_length": seq_length,
            "global_batch_size": global_batch_size,
            "micro_batch_size": 1,
            "precision": "fp32",
        },
        "optimizer": {"lr": 1e-3},
        "lr_schedule": {"style": "constant", "start_lr": 1e-3},
        "data": {
            "manifests": [str(work / "data")],
            "stages": [
                {"name": "parity", "tokens": ITERATIONS * global_batch_size * seq_length, "languages": {"en": 1.0}}
            ],
            "max_epochs": 1e6,
            "num_workers": 0,
        },
        "logging": {"tensorboard": False},
        "checkpoint": {"interval_tokens": 2 * global_batch_size * seq_length, "async_save": False},
        "device": device,
    }
    file = work / "run.yaml"
    file.write_text(dump_yaml(tree), encoding="utf-8")
    return file


def write_model(folder: Path) -> None:
    """Four layers that eight tensor-parallel ranks can share, as transformers saves it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_tokens(folder: Path) -> None:
    """Documents in which a token is often the one before plus a step: the loss falls, so a wrong gradient shows."""
    random = np.random.default_rng(SEED)
    with IndexedWriter(folder / "en_text_document", dtype="uint16") as writer:
        total = 0
        while total < NUM_TOKENS:
            length = int(random.integers(10, 200))
            steps = random.integers(0, VOCAB_SIZE) + int(random.integers(1, 4)) * np.arange(length)
            body = (steps + (random.random(length) < 0.1)) % (VOCAB_SIZE - 3) + 3
            writer.add_document(np.append(body, EOS).astype(np.int64))
            total += length + 1
    written = writer.written
    assert written is not None
    shard = ShardEntry(prefix="en_text_document", text_bytes=3 * written.num_tokens, **vars(written))
    source = SourceEntry(
        name="en/web/all", language="en", source="web", topic="all", bucket=None, role="train", shards=(shard,)
    )
    write_manifest(
        DatasetManifest(
            schema_version=SCHEMA_VERSION,
            folder=folder,
            tokenizer=TokenizerIdentity(digest="0" * 64, vocab_size=VOCAB_SIZE, eos_id=EOS, bos_id=1),
            dtype="uint16",
            sources=(source,),
        )
    )
