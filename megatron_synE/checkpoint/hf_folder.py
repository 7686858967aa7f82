"""An HF model folder opened for reading: every weight named, shaped and typed before any of it is read."""

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_synE.checkpoint.hf_mapping import EMBEDDING, HEAD, hf_shapes
from megatron_synE.checkpoint.safetensors_file import DTYPES, read_header, refuse_pointer
from megatron_synE.checkpoint.sampled_hash import sampled_sha256
from megatron_synE.checkpoint.stored_array import StoredArray, read_into
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.model.llama import LlamaArchitecture, architecture_from_hf, read_hf_config

SIDE_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "README.md", "LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt", "USE_POLICY.md",
)  # fmt: skip
"""What travels with the weights: tokenizer, generation defaults, licence; the card is where the licence is named."""
MORE_TEMPLATES = "additional_chat_templates"
"""Folder of the chat templates of a tokenizer that has several, but for the default's; transformers' name."""

_OLD_BUFFERS = re.compile(r".*rotary_emb\.inv_freq$")  # written by transformers < 4.32; computed, not weights


@dataclass(frozen=True, kw_only=True)
class HfTensor:
    """One weight as stored."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path


class HfFolder:
    """config.json and weights of a Llama, single or sharded, safetensors or (weights_only) .bin.

    Errors: on opening, CheckpointError or ConfigError naming file and tensor for a missing or truncated file, a dtype
    other than F32/F16/BF16, an unknown or missing weight, a wrong shape, and a tied model whose lm_head differs from
    its embedding. Cost: headers only (plus the tied comparison in the rare case that both are stored).
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder; give the folder that holds config.json and the weights")
        self.path = path
        self.config: dict[str, Any] = read_hf_config(path)
        self.architecture: LlamaArchitecture = architecture_from_hf(self.config, where=str(path / "config.json"))
        self._stored: dict[str, StoredArray] = {}
        self._loaded: dict[str, torch.Tensor] = {}
        self.tensors: Mapping[str, HfTensor] = self._open_weights()
        self._check_weights()

    def read_into(self, target: torch.Tensor, name: str, *, first_row: int = 0, first_column: int = 0) -> None:
        """Fill `target` from the rectangle of weight `name` that begins there, casting to target's dtype."""
        if name in self._stored:
            read_into(target, self._stored[name], (first_row, first_column)[: target.dim()])
            return
        block = self._loaded[name][first_row : first_row + target.shape[0]]
        if target.dim() == 2:
            block = block[:, first_column : first_column + target.shape[1]]
        target.copy_(block)

    def read_rows(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """Rows of weight `name` in its stored dtype; reads these rows only."""
        tensor = self.tensors[name]
        first, stop, _ = rows.indices(tensor.shape[0])
        target = torch.empty((stop - first, *tensor.shape[1:]), dtype=tensor.dtype)
        self.read_into(target, name, first_row=first)
        return target

    def sampled_hashes(self) -> dict[str, str]:
        """Name -> hash of each file that holds weights, to compare with the copy of another node; not of all its bytes.

        Errors: CheckpointError if one cannot be read.
        """
        return {file.name: sampled_sha256(file) for file in sorted({tensor.file for tensor in self.tensors.values()})}

    def _open_weights(self) -> dict[str, HfTensor]:
        for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
            single, index = self.path / f"{stem}{suffix}", self.path / f"{stem}{suffix}.index.json"
            if single.is_file():
                return self._open_file(single)
            if index.is_file():
                return self._open_shards(index)
        raise CheckpointError(
            f"{self.path}: holds neither model.safetensors nor model.safetensors.index.json (nor .bin)"
        )

    def _open_shards(self, index: Path) -> dict[str, HfTensor]:
        try:
            weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{index}: cannot be read as an index of shards ({error!r})") from error
        tensors: dict[str, HfTensor] = {}
        for shard in sorted(set(weight_map.values())):
            if Path(shard).name != shard:
                raise CheckpointError(f"{index}: names {shard!r}, which is not a file of this folder")
            if not (self.path / shard).is_file():
                first = min(name for name, file in weight_map.items() if file == shard)
                raise CheckpointError(f"{self.path / shard}: missing shard (it holds {first}, says {index.name})")
            held = self._open_file(self.path / shard)
            listed = {name for name, file in weight_map.items() if file == shard and not _OLD_BUFFERS.match(name)}
            if listed != held.keys():
                name = min(listed ^ held.keys())
                raise CheckpointError(f"{self.path / shard}: {name} is only in one of this file and {index.name}")
            tensors |= held
        return tensors

    def _open_file(self, file: Path) -> dict[str, HfTensor]:
        if file.suffix == ".safetensors":
            arrays = {n: entry.array() for n, entry in read_header(file).items() if not _OLD_BUFFERS.match(n)}
            self._stored |= arrays
            return {n: HfTensor(name=n, dtype=a.dtype, shape=a.shape, file=file) for n, a in arrays.items()}
        loaded = _load_bin(file)
        for name, tensor in loaded.items():
            if tensor.dtype not in DTYPES.values():
                raise CheckpointError(f"{file}: {name} has dtype {tensor.dtype}; weights must be fp32, fp16 or bf16")
        self._loaded |= loaded
        return {n: HfTensor(name=n, dtype=t.dtype, shape=tuple(t.shape), file=file) for n, t in loaded.items()}

    def _check_weights(self) -> None:
        expected = hf_shapes(self.architecture)
        missing = sorted(expected.keys() - self.tensors.keys())
        if missing:
            raise CheckpointError(f"{self.path}: weight {missing[0]} is missing ({len(missing)} missing in all)")
        has_tied_head = self.architecture.tied and HEAD in self.tensors
        if has_tied_head:
            expected[HEAD] = expected[EMBEDDING]
        for name, tensor in self.tensors.items():
            if name not in expected:
                raise CheckpointError(f"{tensor.file}: weight {name} is unknown to a Llama with this config.json")
            if tensor.shape != expected[name]:
                raise CheckpointError(
                    f"{tensor.file}: {name} has shape {list(tensor.shape)}, config.json says {list(expected[name])}"
                )
        if has_tied_head:
            self._check_tied_head()

    def _check_tied_head(self) -> None:
        num_rows = self.architecture.vocab_size
        for row in range(0, num_rows, 1024):
            rows = slice(row, min(row + 1024, num_rows))
            head, embedding = self.read_rows(HEAD, rows), self.read_rows(EMBEDDING, rows)
            if head.dtype != embedding.dtype or not torch.equal(head.view(torch.uint8), embedding.view(torch.uint8)):
                raise CheckpointError(
                    f"{self.tensors[HEAD].file}: {HEAD} differs from {EMBEDDING} but config.json says "
                    "tie_word_embeddings=true; set it to false if the model is untied"
                )


def side_files(folder: Path) -> dict[str, Path]:
    """What an HF folder, or a checkpoint's tokenizer/ folder, carries along with the weights, by its name below it."""
    found = {name: folder / name for name in SIDE_FILES if (folder / name).is_file()}
    templates = sorted((folder / MORE_TEMPLATES).glob("*.jinja"))
    return found | {f"{MORE_TEMPLATES}/{file.name}": file for file in templates}


def _load_bin(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .bin file, memory-mapped; nothing in it is executed."""
    if not zipfile.is_zipfile(file):
        refuse_pointer(file)
        raise CheckpointError(f"{file}: damaged, or older than torch 1.6; convert the folder to safetensors")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and others for damaged files
        raise CheckpointError(f"{file}: cannot be read with weights_only ({error})") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise CheckpointError(f"{file}: not a flat table of tensors")
    return {str(name): tensor for name, tensor in loaded.items() if not _OLD_BUFFERS.match(str(name))}
