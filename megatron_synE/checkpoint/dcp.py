"""Rectangles of named global tensors, written and read through torch DCP without gathering anything.

A `Chunk` is one rank's piece of a global tensor. Saving takes chunks whose data may be produced lazily, one at a
time; loading fills the tensors of chunks in place from whatever layout the checkpoint was written in.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from megatron_synE.checkpoint.chunk_reader import ChunkReader
from megatron_synE.checkpoint.streamed_file import StreamedFile
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.runtime.control import agreed


@dataclass(frozen=True)
class Chunk:
    """One rectangle of the global tensor `key`.

    data: the values, shape `sizes`; or a function that gives them when they are written (saving only).
    No two ranks offer the same rectangle.
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
    def size_bytes(self) -> int:
        return math.prod(self.sizes) * self.dtype.itemsize

    @property
    def index(self) -> MetadataIndex:
        return MetadataIndex(self.key, torch.Size(self.offsets))


def whole(key: str, tensor: torch.Tensor) -> Chunk:
    shape = tuple(tensor.shape)
    return Chunk(key, shape, (0,) * len(shape), shape, tensor.dtype, tensor)


def save_chunks(path: Path, chunks: Sequence[Chunk], *, group: dist.ProcessGroup | None = None) -> dict[str, str]:
    """Write all ranks' chunks into `path` (files fsynced); gives name -> sha256 of the files this rank wrote.

    Collective: every rank of `group`; without an initialised process group, this process alone.
    Errors: CheckpointError naming the folder, on every rank, if any rank cannot write (a full disk).
    Cost: lazy chunks are produced one at a time.
    """
    writer = _StreamingWriter(path)
    # The zip CRC-32 of every tensor would be the slowest step; the sha256 of the whole file stands for it.
    has_crc = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        with _without_single_process_warning():
            save(
                {},
                storage_writer=writer,
                planner=_ChunkSavePlanner(chunks),
                process_group=group,
                no_dist=not dist.is_initialized(),
            )
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise CheckpointError(f"{path}: cannot be written ({causes[0]})") from error
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error
    finally:
        torch.serialization.set_crc32_options(has_crc)
    return writer.sha256


def load_chunks(path: Path, chunks: Sequence[Chunk]) -> None:
    """Fill the tensors of `chunks` in place, from whatever rectangles the checkpoint was written in.

    Collective: every rank, if there is more than this process; only to agree that all succeeded, each reads for itself.
    Errors: CheckpointError naming the folder and tensor for what is missing, misshapen or damaged, on every rank.
    Cost: reads the rows that are asked for and no others.
    """

    def read() -> None:
        reader = ChunkReader(path)
        for chunk in chunks:
            if reader.shape(chunk.key) != chunk.global_shape:
                raise CheckpointError(
                    f"{path}: {chunk.key} has shape {reader.shape(chunk.key)}, the model needs {chunk.global_shape}"
                )
            reader.read_into(chunk.tensor().detach(), chunk.key, chunk.offsets)

    if dist.is_initialized():
        agreed(None, read)
    else:
        read()


class _StreamingWriter(FileSystemWriter):
    """FileSystemWriter with one streamed file per rank, and without torch's table of all tensors it has written.

    torch 2.13's own writer keeps every tensor alive until the last is on disk: the memory of a whole model.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, single_file_per_rank=True, sync_files=True, overwrite=True)
        self.sha256: dict[str, str] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name = f"{plan.storage_data.prefix}0.distcp"
        results: list[WriteResult] = []
        with StreamedFile(Path(self.path) / name, with_hash=True) as stream:
            for item in plan.items:
                start = stream.tell()
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, torch.Tensor)
                torch.save(_compact(tensor), stream)  # type: ignore[arg-type]  # any object with write() will do
                place = _StorageInfo(name, start, stream.tell() - start)
                results.append(WriteResult(index=item.index, size_in_bytes=place.length, storage_data=place))
        self.sha256[name] = stream.sha256
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """In host memory, row-major, and with no more storage than values: torch.save writes a view's whole storage."""
    tensor = tensor.detach().cpu().contiguous()
    is_view = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    return tensor.clone() if is_view else tensor


@contextlib.contextmanager
def _without_single_process_warning() -> Iterator[None]:
    if dist.is_initialized():  # nothing to silence, and a thread must not touch the process's filters
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


class _ChunkSavePlanner(SavePlanner):
    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._chunks = {chunk.index: chunk for chunk in chunks}

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        return SavePlan([_write_item(chunk) for chunk in self._chunks.values()])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
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
