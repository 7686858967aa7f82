"""Is an HF folder the same model as a checkpoint: every tensor bit for bit, every config field."""

import json
from pathlib import Path
from typing import Any

import torch

from megatron_synE.checkpoint.hf_folder import HfFolder
from megatron_synE.checkpoint.hf_mapping import Rectangle, hf_shapes, hf_tensor_from_global
from megatron_synE.checkpoint.stored_array import BLOCK_BYTES
from megatron_synE.checkpoint.weights import CheckpointWeights
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.model.llama import architecture_from_hf

_FREE_FIELDS = {"dtype", "torch_dtype", "transformers_version", "_name_or_path"}
"""Say how a folder was written, not what the model is."""
_SHOWN = 5


def verify_tensors(folder: HfFolder, weights: CheckpointWeights) -> int:
    """Compare every weight; gives the number of tensors. Names and shapes were compared when both were opened.

    Where the dtypes differ, the wider value rounded to the narrower dtype must equal the stored one.
    Errors: CheckpointError listing the first tensors that differ, and by how many values.
    """
    if folder.architecture != weights.architecture:
        raise CheckpointError(f"{folder.path}: its config.json describes another model than the checkpoint's")
    names = list(hf_shapes(folder.architecture))
    differing = []
    for name in names:
        pieces = hf_tensor_from_global(folder.architecture, name)
        count = sum(_num_differing(folder, weights, name, piece) for piece in pieces)
        if count:
            differing.append(f"{name} ({count} values)")
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise CheckpointError(f"{folder.path}: differs from the checkpoint in {', '.join(differing[:_SHOWN])}{more}")
    return len(names)


def verify_config(hf_config: dict[str, Any], checkpoint_config: dict[str, Any], *, where: str) -> None:
    """Errors: CheckpointError listing the fields that differ, with both values; the stored dtype may."""
    fields = sorted((hf_config.keys() | checkpoint_config.keys()) - _FREE_FIELDS)
    absent = object()
    differing = [
        f"{field}: {_shown(hf_config.get(field, absent))} against {_shown(checkpoint_config.get(field, absent))}"
        for field in fields
        if hf_config.get(field, absent) != checkpoint_config.get(field, absent)
    ]
    if differing:
        raise CheckpointError(f"{where}: config.json differs from the checkpoint's: {'; '.join(differing)}")


def verify_folder(hf: Path, checkpoint: Path, *, hf_config: dict[str, Any] | None = None) -> int:
    """Both checks for an HF folder and an iter_* folder; gives the number of tensors compared.

    hf_config: what the checkpoint's model is, when it holds no config.json (Megatron-LM).
    """
    folder = HfFolder(hf)
    if hf_config is None:
        hf_config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    verify_config(folder.config, hf_config, where=str(hf))
    architecture = architecture_from_hf(hf_config, where=str(checkpoint / "config.json"))
    return verify_tensors(folder, CheckpointWeights(checkpoint, architecture))


def _num_differing(folder: HfFolder, weights: CheckpointWeights, name: str, piece: Rectangle) -> int:
    columns = piece.sizes[1:]
    row_bytes = (columns[0] if columns else 1) * 4
    step = max(1, BLOCK_BYTES // row_bytes)
    count = 0
    for row in range(0, piece.sizes[0], step):
        num_rows = min(step, piece.sizes[0] - row)
        first = piece.hf_row + row
        ours = folder.read_rows(name, slice(first, first + num_rows))
        offsets = (piece.offsets[0] + row, *piece.offsets[1:])
        theirs = weights.read(piece.key, offsets, (num_rows, *columns))
        if ours.dtype != theirs.dtype:
            # Both 16-bit dtypes: only a cast to bf16 is ever made.
            narrow = torch.float16 if torch.float32 in (ours.dtype, theirs.dtype) else torch.bfloat16
            narrow = torch.bfloat16 if torch.bfloat16 in (ours.dtype, theirs.dtype) else narrow
            ours, theirs = ours.to(narrow), theirs.to(narrow)
        if not torch.equal(_words(ours), _words(theirs)):
            count += int((_bits(ours) != _bits(theirs)).sum())
    return count


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Values as integers: equal exactly when every bit is (0.0 and -0.0 differ, a NaN equals itself)."""
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The same bits in as few integers as possible: comparing them is several times faster than comparing bytes."""
    flat = tensor.view(-1)
    return flat.view(torch.int64) if flat.numel() * flat.element_size() % 8 == 0 else _bits(flat)


def _shown(value: object) -> str:
    return "absent" if type(value) is object else repr(value)
