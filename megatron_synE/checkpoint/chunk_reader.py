"""Any rectangle of the tensors in a torch DCP folder, reading only the rows it needs and the tensor table once."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_synE.checkpoint.dcp_metadata import read_metadata
from megatron_synE.checkpoint.stored_array import StoredArray, read_into
from megatron_synE.exit_codes import CheckpointError


class ChunkReader:
    """Random access to one folder. Errors: CheckpointError naming folder, file or tensor if missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        metadata = read_metadata(path)
        self._tensors = {
            key: stored
            for key, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }
        if not isinstance(metadata.storage_data, dict):
            raise CheckpointError(f"{path / '.metadata'}: damaged (no table of files)")
        self._places: dict[MetadataIndex, _StorageInfo] = metadata.storage_data
        self._arrays: dict[MetadataIndex, StoredArray | torch.Tensor] = {}

    @property
    def keys(self) -> list[str]:
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._stored(key).size)

    def dtype(self, key: str) -> torch.dtype:
        return self._stored(key).properties.dtype

    def read(
        self, key: str, offsets: Sequence[int], sizes: Sequence[int], dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The rectangle of tensor `key` at `offsets`, in `dtype` or as stored."""
        target = torch.empty(tuple(sizes), dtype=dtype or self.dtype(key))
        self.read_into(target, key, offsets)
        return target

    def read_into(self, target: torch.Tensor, key: str, offsets: Sequence[int]) -> None:
        """Fill `target` from the rectangle of tensor `key` at `offsets`, casting to target's dtype."""
        stored = self._stored(key)
        if len(offsets) != len(stored.size) or any(
            o < 0 or o + s > n for o, s, n in zip(offsets, target.shape, stored.size, strict=True)
        ):
            raise CheckpointError(f"{self.path}: {key} {list(stored.size)} has no {list(target.shape)} at {offsets}")
        filled = 0
        for chunk in stored.chunks:
            begins = [max(wanted, have) for wanted, have in zip(offsets, chunk.offsets, strict=True)]
            ends = [
                min(wanted + size, have + length)
                for wanted, size, have, length in zip(offsets, target.shape, chunk.offsets, chunk.sizes, strict=True)
            ]
            if any(begin >= end for begin, end in zip(begins, ends, strict=True)):
                continue
            piece = target
            for dim, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                piece = piece.narrow(dim, begin - offsets[dim], end - begin)
            inside = [begin - have for begin, have in zip(begins, chunk.offsets, strict=True)]
            self._read_chunk(piece, MetadataIndex(key, chunk.offsets), tuple(chunk.sizes), inside)
            filled += piece.numel()
        if filled != target.numel():
            raise CheckpointError(
                f"{self.path}: {key} is stored incompletely ({filled} of {target.numel()} values at {list(offsets)})"
            )

    def _stored(self, key: str) -> TensorStorageMetadata:
        if key not in self._tensors:
            raise CheckpointError(f"{self.path}: tensor {key!r} is not in this checkpoint")
        return self._tensors[key]

    def _read_chunk(
        self, target: torch.Tensor, index: MetadataIndex, sizes: tuple[int, ...], offsets: Sequence[int]
    ) -> None:
        if index not in self._arrays:
            self._arrays[index] = self._locate(index, sizes)
        array = self._arrays[index]
        if isinstance(array, StoredArray):
            read_into(target, array, offsets)
            return
        for dim, (start, length) in enumerate(zip(offsets, target.shape, strict=True)):
            array = array.narrow(dim, start, length)
        target.copy_(array)

    def _locate(self, index: MetadataIndex, sizes: tuple[int, ...]) -> StoredArray | torch.Tensor:
        """Where the values of one chunk lie in its file; the values themselves if they are not row-major there."""
        place = self._places.get(index)
        if place is None or getattr(place, "transform_descriptors", None):
            raise CheckpointError(f"{self.path}: {index.fqn} has a chunk that is compressed or without a place")
        file = self.path / Path(place.relative_path).name
        try:
            with file.open("rb") as stream:
                # On "meta" torch.load reads the small header only and says where the values lie.
                piece = cast(IO[bytes], _create_file_view(stream, place.offset, place.length))
                described = torch.load(piece, map_location="meta", weights_only=True)
                if not isinstance(described, torch.Tensor) or tuple(described.shape) != sizes:
                    raise CheckpointError(f"{file}: does not hold {list(sizes)} of {index.fqn} where .metadata says")
                start = getattr(described.untyped_storage(), "_checkpoint_offset", None)
                if start is None or not described.is_contiguous():
                    piece.seek(0)
                    whole: torch.Tensor = torch.load(piece, map_location="cpu", weights_only=True)
                    return whole
        except FileNotFoundError as error:
            raise CheckpointError(f"{file}: missing; it holds {index.fqn}") from error
        except CheckpointError:
            raise
        except Exception as error:  # torch.load has no common base for what damaged bytes make it raise
            raise CheckpointError(f"{file}: damaged at {index.fqn} ({error})") from error
        start += place.offset + described.storage_offset() * described.element_size()
        return StoredArray(name=index.fqn, file=file, dtype=described.dtype, shape=sizes, offset=start)
