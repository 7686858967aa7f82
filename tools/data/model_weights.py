"""The weights that score: one of our checkpoints or an HF folder, and the hash that names them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from data_mixers.errors import ConfigError
from megatron_synE.checkpoint import layout
from megatron_synE.model.llama import LlamaArchitecture, architecture_from_hf, read_hf_config

_WEIGHT_FILES = ("config.json", "*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True, kw_only=True)
class ModelWeights:
    """A folder of weights, found and hashed."""

    folder: Path
    tokenizer: Path
    """Folder that holds its tokenizer, if it carries one."""
    sha256: str
    architecture: LlamaArchitecture


def find_weights(*, checkpoint: Path | None, hf: Path | None) -> ModelWeights:
    """The checkpoint (an iter_* folder, or a run's newest) or the HF folder.

    Errors: CheckpointError or ConfigError naming what is missing. Cost: an HF folder is read once, to be hashed.
    """
    if checkpoint is not None:
        folder = layout.resolve_checkpoint(checkpoint, verify_hashes=False)
        sha256 = str(layout.read_manifest(folder)["lineage_hash"])
        tokenizer = folder / "tokenizer"
    else:
        assert hf is not None
        if not hf.is_dir():
            raise ConfigError(f"--hf {hf}: no such folder; give the folder that holds config.json and the weights")
        folder = tokenizer = hf
        digest = hashlib.sha256()
        for file in sorted({file for pattern in _WEIGHT_FILES for file in hf.glob(pattern)}):
            digest.update(f"{file.name} {layout.sha256_of(file)}\n".encode())
        sha256 = digest.hexdigest()
    architecture = architecture_from_hf(read_hf_config(folder), where=str(folder / "config.json"))
    return ModelWeights(folder=folder, tokenizer=tokenizer, sha256=sha256, architecture=architecture)
