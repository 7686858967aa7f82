"""Small real things for tests: a random HF Llama, token files with documents, a run configuration, running it."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from data_mixers.manifest import (
    SCHEMA_VERSION,
    DatasetManifest,
    ShardEntry,
    SourceEntry,
    TokenizerIdentity,
    source_name,
    write_manifest,
)
from megatron_synE.data.indexed import IndexedWriter
from tests import warm

EOS = 2


def hf_config(**changes: Any) -> LlamaConfig:
    """Four layers, GQA of 2, vocabulary 256, untied, in fp32."""
    fields: dict[str, Any] = {
        "vocab_size": 256, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": EOS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }  # fmt: skip
    return LlamaConfig(**(fields | changes))


def hf_model(config: LlamaConfig, *, seed: int = 0) -> LlamaForCausalLM:
    """Random weights, norms moved away from one so that their gradients and names matter."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def hf_folder(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A model folder as transformers saves it."""
    hf_model(hf_config(**changes), seed=seed).to(dtype).save_pretrained(folder)
    return folder


def byte_tokenizer(folder: Path) -> None:
    """Beside a model of 256 tokens: three control tokens, and one for each byte that occurs in UTF-8."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bytes_of_text = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {chr(0xFD), chr(0xFE), chr(0xFF)})
    vocabulary = ["<pad>", "<s>", "</s>", *bytes_of_text]
    assert vocabulary[EOS] == "</s>" and len(vocabulary) == 256
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **control).save_pretrained(folder)


def documents(
    *, num_tokens: int, vocab_size: int, seed: int, longest: int = 60, ids: range | None = None
) -> list[np.ndarray]:
    """Learnable documents ending in EOS: each token is often the one before plus a per-document step.

    ids: of the tokens; None: all but the control tokens.
    """
    ids = ids or range(3, vocab_size)
    random = np.random.default_rng(seed)
    made, total = [], 0
    while total < num_tokens:
        length = int(random.integers(3, longest))
        step, start = int(random.integers(1, 4)), int(random.integers(0, vocab_size))
        body = (start + step * np.arange(length) + (random.random(length) < 0.1)) % len(ids) + ids.start
        made.append(np.append(body, EOS).astype(np.int64))
        total += length + 1
    return made


def manifest(
    folder: Path,
    sources: Mapping[tuple[str, str, str], int],
    *,
    vocab_size: int = 256,
    role: str = "train",
    seed: int = 0,
    ids: range | None = None,
) -> DatasetManifest:
    """Token files for {(language, source, topic): tokens}, with their manifest."""
    entries = []
    for index, ((language, source, topic), num_tokens) in enumerate(sources.items()):
        name = source_name(language=language, source=source, topic=topic, suffix=None if role == "train" else "holdout")
        prefix = name.replace("/", "-").replace("@", "-") + "_text_document"
        with IndexedWriter(folder / prefix, dtype="uint16") as writer:
            for document in documents(num_tokens=num_tokens, vocab_size=vocab_size, seed=1000 * seed + index, ids=ids):
                writer.add_document(document)
        written = writer.written
        assert written is not None
        shard = ShardEntry(prefix=prefix, text_bytes=3 * written.num_tokens, **vars(written))
        entries.append(
            SourceEntry(
                name=name, language=language, source=source, topic=topic, bucket=None, role=role, shards=(shard,)
            )
        )
    identity = TokenizerIdentity(digest="0" * 64, vocab_size=vocab_size, eos_id=EOS, bos_id=1)
    made = DatasetManifest(
        schema_version=SCHEMA_VERSION, folder=folder, tokenizer=identity, dtype="uint16", sources=tuple(entries)
    )
    write_manifest(made)
    return made


TWO_LANGUAGES = {("zh", "web", "law"): 6000, ("zh", "book", "novel"): 3000, ("en", "web", "computing"): 9000}


def run_tree(root: Path, *, hf: Path | None, tokens: int = 5 * 8 * 32, **sections: Any) -> dict[str, Any]:
    """A run of five iterations of 8 sequences of 32 tokens; `sections` are merged over it."""
    tree: dict[str, Any] = {
        "run": {"name": "tiny", "dir": str(root / "run"), "seed": 7},
        "init": {"from": "hf", "path": str(hf)} if hf else {"from": "random"},
        "training": {"seq_length": 32, "global_batch_size": 8, "micro_batch_size": 2, "precision": "fp32"},
        "optimizer": {"lr": 1e-3},
        "lr_schedule": {"style": "wsd", "start_lr": 1e-4, "warmup_tokens": 512, "decay_tokens": 512},
        "data": {
            "manifests": [str(root / "train")],
            "stages": [{"name": "adapt", "tokens": tokens, "languages": {"zh": 0.2, "en": 0.8}}],
            "num_workers": 0,
        },
        "validation": {"manifests": [str(root / "held")]},
        "logging": {"tensorboard": False},
        "checkpoint": {"async_save": False},
        "device": "cpu",
    }
    for section, values in sections.items():
        tree[section] = tree[section] | values if isinstance(values, dict) and section in tree else values
    return tree


def write_run(root: Path, tree: Mapping[str, Any], name: str = "run.yaml") -> Path:
    """The YAML file of a run."""
    file = root / name
    file.write_text(yaml.safe_dump(dict(tree)))
    return file


def prepared(root: Path, **sections: Any) -> Path:
    """A whole small run: model, training data, held-out data, configuration. Returns the YAML file."""
    hf = hf_folder(root / "hf")
    manifest(root / "train", TWO_LANGUAGES)
    manifest(root / "held", {("zh", "web", "law"): 400, ("en", "web", "computing"): 400}, role="validation", seed=9)
    return write_run(root, run_tree(root, hf=hf, **sections))


def give_tokenizer(root: Path) -> None:
    """The byte tokenizer for the model of `prepared`, and for its data too: a run refuses data of another one."""
    from megatron_synE.data.tokenizers import digest_of

    byte_tokenizer(root / "hf")
    digest = digest_of(root / "hf")
    assert digest is not None
    for folder in ("train", "held"):
        file = root / folder / "manifest.json"
        file.write_text(file.read_text().replace("0" * 64, digest))


ROOT = Path(__file__).parents[1]


def syne(*arguments: object, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `syne ...` in a process of its own, its imports made before."""
    return python("-m", "tools", *arguments, timeout=timeout, **environment)


def python(*arguments: object, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python <arguments>` in a process of its own, with one thread, its imports made before."""
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return warm.run([*map(str, arguments)], env=env, cwd=ROOT, timeout=timeout)


def started(*arguments: object) -> warm.Running:
    """`syne ...` as of `syne`, begun: to be signalled, or killed with its ranks by os.killpg."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return warm.Running(["-m", "tools", *map(str, arguments)], env=env, cwd=ROOT)


def launched(nproc: int, script: Path, *arguments: object, code: int = 0, **environment: str) -> None:
    """The script as ranks 0 .. nproc-1, with its exit code asserted."""
    done = python("-c", LAUNCH, nproc, script, *arguments, **environment)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"


LAUNCH = "import sys; from megatron_synE.runtime.launch import launch; sys.exit(launch(sys.argv[2:], int(sys.argv[1])))"


def train(config: Path, *overrides: str, nproc: int = 1, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`syne train`, with its exit code asserted."""
    done = syne("train", "--config", config, "--nproc", nproc, *overrides)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
    return done


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of one kind of a run's metrics.jsonl."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]
