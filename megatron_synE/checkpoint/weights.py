"""The weights of a checkpoint under the keys of docs/checkpoint.md, whoever wrote it: we, or Megatron-LM.

Megatron-LM (torch_dist) stacks layers along a first axis, pads the vocabulary, and with its local layer spec may name
norms after their own module; all three are undone here, rectangle by rectangle.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from megatron_synE.checkpoint.chunk_reader import ChunkReader
from megatron_synE.checkpoint.hf_mapping import LAYER_KEY, LOCAL_NORMS, global_tensors
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.model.llama import LlamaArchitecture

_WEIGHT = re.compile(r"(decoder|embedding|output_layer)\..*")
_PADDED = ("embedding.word_embeddings.weight", "output_layer.weight")


class CheckpointWeights:
    """Every weight of `architecture` in a torch DCP folder, opened for reading.

    Errors: on opening, CheckpointError naming folder and key for a missing weight, an unknown one, or a wrong shape.
    """

    def __init__(self, folder: Path, architecture: LlamaArchitecture) -> None:
        self.architecture = architecture
        self._reader = ChunkReader(folder)
        present = {key for key in self._reader.keys if _WEIGHT.fullmatch(key)}
        self._stored_keys: dict[str, str] = {}
        for key, shape in global_tensors(architecture).items():
            stored = next((name for name in _possible_keys(key) if name in present), None)
            if stored is None:
                raise CheckpointError(f"{folder}: weight {key} is missing")
            self._check_shape(folder, key, shape, stored)
            self._stored_keys[key] = stored
        if unknown := sorted(present - set(self._stored_keys.values())):
            raise CheckpointError(f"{folder}: weight {unknown[0]} is unknown to this model ({len(unknown)} unknown)")

    def dtype(self, key: str) -> torch.dtype:
        return self._reader.dtype(self._stored_keys[key])

    def read(
        self, key: str, offsets: Sequence[int], sizes: Sequence[int], dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The rectangle of global tensor `key` at `offsets`, in `dtype` or as stored."""
        stored = self._stored_keys[key]
        layer = _stacked_layer(key, stored)
        if layer is None:
            return self._reader.read(stored, offsets, sizes, dtype)
        return self._reader.read(stored, (layer, *offsets), (1, *sizes), dtype).squeeze(0)

    def _check_shape(self, folder: Path, key: str, needed: tuple[int, ...], stored: str) -> None:
        shape = self._reader.shape(stored)
        layer = _stacked_layer(key, stored)
        if layer is not None:
            if shape[0] != self.architecture.num_layers:
                raise CheckpointError(
                    f"{folder}: {stored} stacks {shape[0]} layers, not {self.architecture.num_layers}"
                )
            shape = shape[1:]
        is_padded = key in _PADDED and shape[0] > needed[0] and shape[1:] == needed[1:]
        if shape != needed and not is_padded:
            raise CheckpointError(f"{folder}: {stored} has shape {list(shape)}, the model needs {list(needed)}")


def _possible_keys(key: str) -> Iterator[str]:
    yield key
    match = LAYER_KEY.fullmatch(key)
    if match is None:
        return
    for name in (match[2], LOCAL_NORMS.get(match[2])):
        if name is not None:
            yield f"decoder.layers.{match[1]}.{name}"
            yield f"decoder.layers.{name}"


def _stacked_layer(key: str, stored: str) -> int | None:
    """The place of `key` on the first axis of `stored`; None if they are not stacked."""
    match = LAYER_KEY.fullmatch(key)
    return None if match is None or LAYER_KEY.fullmatch(stored) else int(match[1])
