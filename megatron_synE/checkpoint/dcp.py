"""Rectangles of named global tensors, written and read through torch DCP without gathering anything.

A `Chunk` is one rank's piece of a global tensor. Saving takes chunks whose data may be produced lazily, one at a
time; loading fills the tensors of chunks in place from whatever layout the checkpoint was written in.
"""

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from megatron_synE.exit_codes import CheckpointError


@dataclass(frozen=True)
class Chunk:
    """One rectangle of the global tensor `key`.

    data: the values, shape `sizes`; or a function that gives them when they are written (saving only).
    When several ranks offer the same (key, offsets), `dedup` decides that the one with the least to write does.
    """

    key: str
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    data: torch.Tensor | Callable[[], torch.Tensor]

    def tensor(self) -> torch.Tensor:
        """The values, produced now if they are lazy. Errors: CheckpointError if they do not have the stated shape."""
        tensor = self.data if isinstance(self.data, torch.Tensor) else self.data()
        if tuple(tensor.shape) != self.sizes or tensor.dtype != self.dtype:
            raise CheckpointError(
                f"{self.key}: expected {self.dtype} {self.sizes}, got {tensor.dtype} {tuple(tensor.shape)}"
            )
        return tensor

    @property
    def index(self) -> MetadataIndex:
        return MetadataIndex(self.key, torch.Size(self.offsets))


def whole(key: str, tensor: torch.Tensor) -> Chunk:
    """The chunk that is a whole tensor."""
    shape = tuple(tensor.shape)
    return Chunk(key, shape, (0,) * len(shape), shape, tensor.dtype, tensor)


class _ChunkSavePlanner(SavePlanner):
    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._chunks = {chunk.index: chunk for chunk in chunks}

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        return SavePlan([_write_item(chunk) for chunk in self._chunks.values()])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return create_default_global_save_plan(_deduplicated(all_plans))

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        index = write_item.index
        # The global plan adds a hint (`index`) to MetadataIndex; equality ignores it, the hash does not need it.
        return self._chunks[MetadataIndex(index.fqn, index.offset)].tensor().detach()


def _write_item(chunk: Chunk) -> WriteItem:
    return WriteItem(
        index=chunk.index,
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)),
            properties=TensorProperties(dtype=chunk.dtype),
            size=torch.Size(chunk.global_shape),
        ),
    )


def _deduplicated(all_plans: list[SavePlan]) -> list[SavePlan]:
    """Each rectangle once, given to the offering rank with the fewest bytes so far (deterministic)."""
    owners: dict[MetadataIndex, list[int]] = {}
    items: dict[tuple[int, MetadataIndex], WriteItem] = {}
    for rank, plan in enumerate(all_plans):
        for item in plan.items:
            owners.setdefault(item.index, []).append(rank)
            items[rank, item.index] = item
    load_bytes = [0] * len(all_plans)
    kept: list[list[WriteItem]] = [[] for _ in all_plans]
    for index, ranks in owners.items():
        rank = min(ranks, key=lambda r: (load_bytes[r], r))
        item = items[rank, index]
        load_bytes[rank] += item.tensor_storage_size() or 0
        kept[rank].append(item)
    return [SavePlan(items_of_rank) for items_of_rank in kept]


class _ChunkLoadPlanner(LoadPlanner):
    def __init__(self, chunks: Sequence[Chunk], *, path: Path) -> None:
        self._path = path
        self._by_key: dict[str, list[Chunk]] = {}
        for chunk in chunks:
            self._by_key.setdefault(chunk.key, []).append(chunk)
        self._targets = {chunk.index: chunk for chunk in chunks}

    def set_up_planner(self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        assert metadata is not None
        self._metadata = metadata

    def create_local_plan(self) -> LoadPlan:
        items: list[ReadItem] = []
        for key, chunks in self._by_key.items():
            stored = self._metadata.state_dict_metadata.get(key)
            if not isinstance(stored, TensorStorageMetadata):
                raise CheckpointError(f"{self._path}: tensor {key!r} is not in this checkpoint")
            if tuple(stored.size) != chunks[0].global_shape:
                raise CheckpointError(
                    f"{self._path}: {key} has shape {tuple(stored.size)}, the model needs {chunks[0].global_shape}"
                )
            wanted = [ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.sizes)) for c in chunks]
            items += create_read_items_for_chunk_list(key, stored, wanted)
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise AssertionError("only tensors are stored through DCP")

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        dest = read_item.dest_index
        target = self._targets[MetadataIndex(dest.fqn, dest.offset)].tensor().detach()
        for dim, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            target = target.narrow(dim, start, length)
        return target

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        pass


class _SafeReader(FileSystemReader):
    """FileSystemReader whose `.metadata` (a pickle) can name no class but torch DCP's own description of tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_metadata(Path(self.path))
        # Set by FileSystemReader.read_metadata in torch 2.11-2.13; a missing load id breaks nothing else.
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {
        "Size", "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool",
        "float8_e4m3fn", "float8_e5m2", "contiguous_format", "preserve_format", "strided",
    },
    "torch._utils": {"_get_dtype"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "Path", "PurePosixPath"},
}  # fmt: skip


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise CheckpointError(f".metadata names {module}.{name}, which no torch DCP checkpoint needs; not opened")
        return super().find_class(module, name)


def read_metadata(path: Path) -> Metadata:
    """The tensor table of a torch_dist folder. Errors: CheckpointError if missing, damaged or naming other classes."""
    file = path / ".metadata"
    try:
        with file.open("rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: missing; {path} is not a complete torch_dist checkpoint") from error
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, IndexError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: damaged ({error})") from error
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"{file}: not a torch DCP table")
    return metadata


def save_chunks(path: Path, chunks: Sequence[Chunk], *, group: dist.ProcessGroup | None = None) -> None:
    """Write all ranks' chunks into `path` (files fsynced).

    Collective: every rank of `group`; without an initialised process group, this process alone.
    Cost: lazy chunks are produced one at a time.
    """
    writer = FileSystemWriter(path, single_file_per_rank=True, sync_files=True, thread_count=1, overwrite=True)
    no_dist = not dist.is_initialized()
    save({}, storage_writer=writer, planner=_ChunkSavePlanner(chunks), process_group=group, no_dist=no_dist)


def load_chunks(
    path: Path, chunks: Sequence[Chunk], *, group: dist.ProcessGroup | None = None, no_dist: bool = False
) -> None:
    """Fill the tensors of `chunks` in place.

    Collective: every rank of `group` unless no_dist.
    Errors: CheckpointError naming the folder and tensor for what is missing, misshapen or damaged.
    """
    planner = _ChunkLoadPlanner(chunks, path=path)
    alone = no_dist or not dist.is_initialized()
    try:
        with torch.no_grad():
            load({}, storage_reader=_SafeReader(path), planner=planner, process_group=group, no_dist=alone)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise CheckpointError(f"{path}: {causes[0]}") from error
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
