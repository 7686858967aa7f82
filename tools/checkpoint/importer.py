"""HF folder to a weights-only checkpoint, a block of rows at a time: `syne import`."""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint.dcp import Chunk, save_chunks
from megatron_synE.checkpoint.hf import read_rectangle
from megatron_synE.checkpoint.hf_export import DTYPE_OF_CHOICE, Counter, DtypeChoice, Progress
from megatron_synE.checkpoint.hf_folder import HfFolder, side_files
from megatron_synE.checkpoint.hf_mapping import global_tensors
from megatron_synE.checkpoint.hf_verify import verify_folder
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.runtime.run_dir import versions
from tools.checkpoint.meter import Cost, Meter

CHUNK_BYTES = 16 << 20
"""Tensors are stored in runs of rows of about this size. Ours: glibc reuses such blocks without page faults."""


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    checkpoint: Path
    num_tensors: int
    dtype: str
    verified: bool
    cost: Cost

    def summary(self) -> str:
        verified = "verified bit for bit" if self.verified else "not verified"
        return f"{self.checkpoint}: {self.num_tensors} tensors in {self.dtype}, {verified}; {self.cost.summary()}"


def import_hf(
    hf: Path, out: Path, *, dtype: DtypeChoice = "keep", verify: bool = True, progress: Progress | None = None
) -> ImportReport:
    """Write the model in folder `hf` as `out`/iter_0000000.

    Errors: CheckpointError naming file and tensor for anything wrong in `hf`, if `out` holds a run's checkpoints, or
    (verify) if what was written differs. Cost: memory for a few blocks of 16 MiB, whatever the model's size.
    """
    meter = Meter()
    folder = HfFolder(hf)
    stored_dtype = DTYPE_OF_CHOICE[dtype] or _common_dtype(folder)
    final = out / layout.iteration_name(0)
    _check_replaceable(out, final)
    tensors = global_tensors(folder.architecture)
    size_bytes = sum(map(math.prod, tensors.values())) * stored_dtype.itemsize
    with layout.temporary_folder(final) as temporary:
        counter, block_elements = Counter(progress, total=size_bytes), CHUNK_BYTES // stored_dtype.itemsize
        produce = partial(_produce, folder, stored_dtype, counter)
        chunks = [
            chunk
            for key, shape in tensors.items()
            for chunk in row_chunks(key, shape, stored_dtype, partial(produce, key), block_elements)
        ]
        _write_rest(temporary, folder, stored_dtype, known_sha256=save_chunks(temporary, chunks))
        if verify:
            verify_folder(hf, temporary)
        layout.publish(temporary, final)
    return ImportReport(
        checkpoint=final,
        num_tensors=len(tensors),
        dtype=str(stored_dtype).removeprefix("torch."),
        verified=verify,
        cost=meter.cost(size_bytes=size_bytes),
    )


def row_chunks(
    key: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    produce: Callable[[tuple[int, ...], tuple[int, ...]], torch.Tensor],
    block_elements: int,
) -> Iterator[Chunk]:
    """The tensor in runs of rows. produce: the values at (offsets, sizes), asked for when they are written."""
    columns = shape[1:]
    step = max(1, block_elements // math.prod(columns))
    for row in range(0, shape[0], step):
        offsets, sizes = (row, *(0 for _ in columns)), (min(step, shape[0] - row), *columns)
        yield Chunk(key, shape, offsets, sizes, dtype, partial(produce, offsets, sizes))


def _produce(
    folder: HfFolder, dtype: torch.dtype, counter: Counter, key: str, offsets: tuple[int, ...], sizes: tuple[int, ...]
) -> torch.Tensor:
    rectangle = read_rectangle(folder, folder.architecture, key, offsets, sizes, dtype)
    counter.add(rectangle)
    return rectangle


def _write_rest(temporary: Path, folder: HfFolder, dtype: torch.dtype, *, known_sha256: dict[str, str]) -> None:
    architecture = folder.architecture
    shutil.copyfile(folder.path / "config.json", temporary / "config.json")
    for name, file in side_files(folder.path).items():
        carried = temporary / "tokenizer" / name
        carried.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, carried)
    state = layout.CommonState(
        iteration=0,
        consumed_samples=0,
        consumed_tokens=0,
        adam_step=0,
        has_optimizer=False,
        weights_dtype=str(dtype).removeprefix("torch."),
        tied=architecture.tied,
        vocab_size=architecture.vocab_size,
    )
    layout.write_state(temporary, state)
    layout.write_megatron_files(temporary, state)
    facts = {"kind": "import", "source": folder.path.name, "versions": versions()}
    layout.write_manifest(temporary, facts, known_sha256=known_sha256)


def _common_dtype(folder: HfFolder) -> torch.dtype:
    first, *others = folder.tensors.values()
    for tensor in others:
        if tensor.dtype != first.dtype:
            raise CheckpointError(
                f"{folder.path}: {first.name} is {first.dtype}, {tensor.name} is {tensor.dtype}; "
                "choose one with --dtype bf16 or fp32"
            )
    return first.dtype


def _check_replaceable(out: Path, final: Path) -> None:
    others = sorted(folder.name for folder in out.glob("iter_*") if folder != final) if out.is_dir() else []
    if others:
        raise CheckpointError(f"{out}: holds {others[0]}, the checkpoints of a run; import into another folder")
