"""Mean of several checkpoints' weights, a block of rows at a time: `syne average`.

In model space, so that runs of any layout can be averaged. Where every checkpoint holds fp32 masters (a bf16 run),
their mean is taken, and rounded once.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data_mixers.errors import ConfigError
from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint.chunk_reader import ChunkReader
from megatron_synE.checkpoint.dcp import Chunk, save_chunks
from megatron_synE.checkpoint.hf_export import Counter, Progress
from megatron_synE.checkpoint.hf_mapping import global_tensors
from megatron_synE.checkpoint.weights import CheckpointWeights
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.model.llama import LlamaArchitecture, architecture_from_hf, read_hf_config
from megatron_synE.runtime.run_dir import versions
from tools.checkpoint.importer import CHUNK_BYTES, row_chunks
from tools.checkpoint.meter import Cost, Meter

MASTER = "optimizer.master."


@dataclass(frozen=True, kw_only=True)
class AverageReport:
    checkpoint: Path
    averaged: tuple[Path, ...]
    of_masters: bool
    cost: Cost

    def summary(self) -> str:
        what = "fp32 masters" if self.of_masters else "weights"
        names = ", ".join(folder.name for folder in self.averaged)
        return f"{self.checkpoint}: mean of the {what} of {names}; {self.cost.summary()}"


def find_checkpoints(places: Sequence[Path], last: int | None) -> list[Path]:
    """The checkpoints a user means: the newest `last` complete ones of one run, or the folders given.

    Errors: ConfigError for fewer than two, or for `last` beside several folders; CheckpointError if one is not whole
    or there is none.
    """
    if last is None:
        found = [layout.resolve_checkpoint(place) for place in places]
    elif len(places) != 1:
        raise ConfigError("--last K goes with one run; name several checkpoints without it")
    else:
        folders = (places[0], places[0] / layout.CHECKPOINTS)
        whole = next((c for folder in folders if (c := layout.complete_checkpoints(folder))), [])
        if not whole:
            one = layout.resolve_checkpoint(places[0], verify_hashes=False)  # whose error says what is missing
            raise ConfigError(f"--last {last}: {one} is one checkpoint; name the run that holds it")
        if len(whole) < last:
            raise ConfigError(
                f"--last {last}: {places[0]} holds {len(whole)} complete checkpoints; lower it, or train with "
                "checkpoint.keep_last at least as large"
            )
        found = [layout.resolve_checkpoint(folder) for folder in whole[-last:]]
    if len({folder.resolve() for folder in found}) < max(2, len(found)):
        raise ConfigError(f"{', '.join(map(str, found))}: an average needs two or more different checkpoints")
    return found


def average(folders: Sequence[Path], out: Path, *, progress: Progress | None = None) -> AverageReport:
    """Write the mean of these checkpoints' weights as `out`/iter_<newest iteration>, without optimizer state.

    Errors: CheckpointError naming folders and field for another architecture or tokenizer, or if `out` holds others.
    Cost: memory for a few blocks of 16 MiB in fp64, whatever the model's size; reads every weight once.
    """
    meter = Meter()
    states = [layout.read_state(folder) for folder in folders]
    architecture = _common_architecture(folders)
    _check_alike(folders, states)
    weights = [CheckpointWeights(folder, architecture) for folder in folders]
    readers = [ChunkReader(folder) for folder in folders]
    tensors = global_tensors(architecture)
    of_masters = all(f"{MASTER}{key}" in reader.keys for reader in readers for key in tensors)
    newest = max(range(len(folders)), key=lambda index: states[index].iteration)
    final = out / layout.iteration_name(states[newest].iteration)
    _check_replaceable(out, final, folders)
    counter = Counter(progress, total=sum(math.prod(s) * weights[0].dtype(key).itemsize for key, s in tensors.items()))
    with layout.temporary_folder(final) as temporary:
        chunks: list[Chunk] = []
        for key, shape in tensors.items():
            dtype = weights[0].dtype(key)
            if of_masters:
                produce = partial(_mean, readers, f"{MASTER}{key}", dtype, counter)
            else:
                produce = partial(_mean, weights, key, dtype, counter)
            chunks += row_chunks(key, shape, dtype, produce, CHUNK_BYTES // 8)  # the sum is fp64
        hashes = save_chunks(temporary, chunks)
        _write_rest(temporary, folders, states, newest, hashes)
        layout.publish(temporary, final)
    return AverageReport(
        checkpoint=final, averaged=tuple(folders), of_masters=of_masters, cost=meter.cost(size_bytes=counter.total)
    )


def _mean(
    sources: Sequence[ChunkReader] | Sequence[CheckpointWeights], key: str, dtype: torch.dtype, counter: Counter,
    offsets: tuple[int, ...], block: tuple[int, ...],
) -> torch.Tensor:  # fmt: skip
    total = torch.zeros(block, dtype=torch.float64)
    for source in sources:
        total += source.read(key, offsets, block, torch.float64)
    mean = (total / len(sources)).to(dtype)
    if not bool(torch.isfinite(mean).all()):
        raise CheckpointError(
            f"{key}: a value of its mean is not finite; one of the checkpoints is damaged or diverged"
        )
    counter.add(mean)
    return mean


def _common_architecture(folders: Sequence[Path]) -> LlamaArchitecture:
    first, *others = [architecture_from_hf(read_hf_config(f), where=str(f / "config.json")) for f in folders]
    for folder, other in zip(folders[1:], others, strict=True):
        for field in fields(first):
            here, there = getattr(first, field.name), getattr(other, field.name)
            if here != there:
                raise CheckpointError(
                    f"{folder} is of another architecture than {folders[0]}: {field.name} is {there}, not {here}; "
                    "only checkpoints of one model can be averaged"
                )
    return first


def _check_alike(folders: Sequence[Path], states: Sequence[layout.CommonState]) -> None:
    """Tokenizers are compared where both are known: an imported checkpoint names none."""
    known = [(f, s.tokenizer_digest) for f, s in zip(folders, states, strict=True) if s.tokenizer_digest is not None]
    for folder, digest in known[1:]:
        if digest != known[0][1]:
            raise CheckpointError(
                f"{folder} was trained with another tokenizer than {known[0][0]} ({str(digest)[:12]}, not "
                f"{str(known[0][1])[:12]}); only checkpoints with one vocabulary can be averaged"
            )
    for folder, state in zip(folders[1:], states[1:], strict=True):
        if state.weights_dtype != states[0].weights_dtype:
            raise CheckpointError(
                f"{folder}: its weights are {state.weights_dtype}, those of {folders[0]} {states[0].weights_dtype}; "
                "average checkpoints of one precision"
            )


def _write_rest(
    temporary: Path, folders: Sequence[Path], states: Sequence[layout.CommonState], newest: int, hashes: dict[str, str]
) -> None:
    shutil.copyfile(folders[newest] / "config.json", temporary / "config.json")
    if (folders[newest] / "tokenizer").is_dir():
        shutil.copytree(folders[newest] / "tokenizer", temporary / "tokenizer")
    of_a_run = ("schedule", "schedule_hash", "last_validation", "wandb_id", "recent_losses", "layout")
    without: dict[str, Any] = dict.fromkeys(of_a_run)
    state = replace(states[newest], adam_step=0, has_optimizer=False, **without)
    layout.write_state(temporary, state)
    layout.write_megatron_files(temporary, state)
    lineages = [layout.read_manifest(folder).get("lineage_hash") for folder in folders]
    facts = {
        "kind": "average",
        "averaged": [folder.name for folder in folders],
        "averaged_lineage_hashes": lineages,
        "parent_lineage_hash": lineages[newest],
        "versions": versions(),
    }
    layout.write_manifest(temporary, facts, known_sha256=hashes)


def _check_replaceable(out: Path, final: Path, folders: Sequence[Path]) -> None:
    if any(folder.resolve() == final.resolve() for folder in folders):
        raise CheckpointError(f"{final}: is one of the checkpoints to average; choose another --out")
    others = sorted(folder.name for folder in out.glob("iter_*") if folder != final) if out.is_dir() else []
    if others or (out / layout.CHECKPOINTS).is_dir():
        raise CheckpointError(f"{out}: holds the checkpoints of a run; average into another folder")
