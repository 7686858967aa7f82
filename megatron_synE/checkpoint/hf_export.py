"""A checkpoint as an HF folder that opens in from_pretrained: streamed, checked, then renamed into place."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint.hf import check_finite
from megatron_synE.checkpoint.hf_folder import MORE_TEMPLATES
from megatron_synE.checkpoint.hf_mapping import hf_shapes, hf_tensor_from_global
from megatron_synE.checkpoint.hf_verify import verify_folder
from megatron_synE.checkpoint.model_card import CARD, model_card
from megatron_synE.checkpoint.safetensors_file import SafetensorsWriter
from megatron_synE.checkpoint.stored_array import BLOCK_BYTES
from megatron_synE.checkpoint.weights import CheckpointWeights
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.model.llama import architecture_from_hf, read_hf_config

DtypeChoice = Literal["keep", "bf16", "fp32"]
DTYPE_OF_CHOICE: dict[DtypeChoice, torch.dtype | None] = {
    "keep": None, "bf16": torch.bfloat16, "fp32": torch.float32,
}  # fmt: skip
Progress = Callable[[int, int], None]
"""(bytes done, bytes in all), called about every 16 MiB."""
MARKER = "syne_export.json"
"""In every folder written here: what it was made from. A folder with it may be replaced by a new export."""
SHARD_BYTES = 5_000_000_000
"""transformers' own default for the largest file."""


class Counter:
    """Says how many of `total` bytes are done."""

    def __init__(self, progress: Progress | None, *, total: int) -> None:
        self.total, self._done, self._progress = total, 0, progress

    def add(self, tensor: torch.Tensor) -> None:
        self._done += tensor.numel() * tensor.element_size()
        if self._progress is not None:
            self._progress(self._done, self.total)


def write_hf_folder(
    checkpoint: Path,
    out: Path,
    *,
    dtype: DtypeChoice = "keep",
    verify: bool = True,
    hf_config: Path | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the weights of an iter_* folder (or the newest in a run) to `out`; gives the bytes of weights written.

    hf_config: an HF config.json, for a checkpoint that holds none (Megatron-LM). name: the model's, for its card.
    Errors: CheckpointError if `out` holds something else, a value is not finite, or (verify) what was written differs.
    """
    name = name or out.absolute().name
    out = out.resolve()  # "." has no name to put a temporary one beside, a link may lead to another disk
    folder = checkpoint if hf_config is not None else layout.resolve_checkpoint(checkpoint)
    config = read_hf_config(hf_config or folder)
    architecture = architecture_from_hf(config, where=str(hf_config or folder / "config.json"))
    weights = CheckpointWeights(folder, architecture)
    _check_replaceable(out)
    with layout.temporary_folder(out) as temporary:
        size_bytes = _write_weights(temporary, weights, DTYPE_OF_CHOICE[dtype], progress)
        stored = DTYPE_OF_CHOICE[dtype] or weights.dtype("embedding.word_embeddings.weight")
        _write_side_files(temporary, folder, config, str(stored).removeprefix("torch."), name)
        if verify:
            verify_folder(temporary, folder, hf_config=config)
        layout.put_in_place(temporary, out)
    return size_bytes


def _write_weights(
    folder: Path, weights: CheckpointWeights, dtype: torch.dtype | None, progress: Progress | None
) -> int:
    architecture = weights.architecture
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, shape in hf_shapes(architecture).items():
        key = hf_tensor_from_global(architecture, name)[0].key
        tensors[name] = (dtype or weights.dtype(key), shape)
    shards = _shards({n: math.prod(shape) * d.itemsize for n, (d, shape) in tensors.items()})
    total = sum(math.prod(shape) * d.itemsize for d, shape in tensors.values())
    counter = Counter(progress, total=total)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        with SafetensorsWriter(folder / file, {name: tensors[name] for name in names}) as writer:
            for name in names:
                for rows in _rows(weights, name, tensors[name][0]):
                    writer.append(rows)
                    counter.add(rows)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        layout.write_json(folder / "model.safetensors.index.json", index)
    return total


def _rows(weights: CheckpointWeights, name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The rows of one HF weight in order, a block at a time."""
    for piece in hf_tensor_from_global(weights.architecture, name):
        columns = piece.sizes[1:]
        step = max(1, BLOCK_BYTES // (math.prod(columns) * dtype.itemsize))
        for row in range(0, piece.sizes[0], step):
            sizes = (min(step, piece.sizes[0] - row), *columns)
            rows = weights.read(piece.key, (piece.offsets[0] + row, *piece.offsets[1:]), sizes, dtype)
            check_finite(rows, where=f"{name} (from {piece.key})")
            yield rows


def _shards(sizes: dict[str, int]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_side_files(folder: Path, checkpoint: Path, config: dict[str, Any], dtype: str, name: str) -> None:
    # transformers 5 writes the first and, where there are both, opens by it; 4 wrote the second.
    fields = [field for field in ("dtype", "torch_dtype") if field in config] or ["torch_dtype"]
    layout.write_json(folder / "config.json", {**config, **dict.fromkeys(fields, dtype)})
    carried = checkpoint / "tokenizer"
    for file in sorted((*carried.glob("*"), *carried.glob(f"{MORE_TEMPLATES}/*"))):
        written = folder / file.relative_to(carried)
        if file.is_file() and written.name != CARD:
            written.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, written)
    is_ours = (checkpoint / layout.MANIFEST).is_file()
    manifest = layout.read_manifest(checkpoint) if is_ours else {}
    state = layout.read_state(checkpoint) if is_ours else None
    card = model_card(name=name, config=config, state=state, manifest=manifest, carried=carried)
    (folder / CARD).write_text(card, encoding="utf-8")
    made_from = {"checkpoint": checkpoint.name, "lineage_hash": manifest.get("lineage_hash"), "dtype": dtype}
    layout.write_json(folder / MARKER, {"schema_version": layout.SCHEMA_VERSION, **made_from})


def _check_replaceable(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).is_file())):
        raise CheckpointError(f"{out}: exists and is not an earlier export; choose another folder or remove it")
