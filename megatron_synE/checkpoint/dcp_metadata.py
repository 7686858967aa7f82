"""The tensor table (`.metadata`) of a torch DCP folder, read without running anything that is in it."""

import pickle
from enum import EnumMeta
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata

from megatron_synE.exit_codes import CheckpointError

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    # megatron-core keeps the plan of the last save in the table.
    "torch.distributed.checkpoint.planner": {
        "BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType",
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


def _member(of: object, name: object) -> Any:
    """Stands for getattr, by which Python 3.11.2, Debian 12's, pickles an enum's member (3.11.7: by its value)."""
    if isinstance(of, EnumMeta) and isinstance(name, str) and name in of.__members__:
        return of[name]
    raise CheckpointError(".metadata asks for an attribute that is no member of an enum; not opened")


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
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
