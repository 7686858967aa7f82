"""What is evaluated: an HF folder as it is, or checkpoints of a run, each exported for its turn."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_mixers.errors import ConfigError, DataError
from data_mixers.file_version import check_version
from megatron_synE.exit_codes import CheckpointError
from tools.evaluation.options import Which

EXPORT_MARKER = "syne_export.json"
"""megatron_synE.checkpoint.hf_export.MARKER; that module imports torch."""
CONVERTED = "hf"
"""Beside its results, while a checkpoint is evaluated."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    path: Path
    label: str
    """Names the folder of its results."""
    run: Path | None = None
    iteration: int | None = None
    consumed_tokens: int | None = None
    is_hf: bool = False

    def described(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "path": str(self.path.absolute()),
            "label": self.label,
            "run": None if self.run is None else str(self.run.absolute()),
            "iteration": self.iteration,
            "consumed_tokens": self.consumed_tokens,
        }


def subjects_of(model: Path, which: Which) -> list[Subject]:
    """The models that a path means: an HF folder, an iter_* folder, or a run.

    Errors: CheckpointError if it is none of them, or the run has no complete checkpoint.
    """
    if (model / "config.json").is_file() and not model.name.startswith("iter_"):
        return [_hf_folder(model)]
    from megatron_synE.checkpoint import layout

    if not model.is_dir():
        raise CheckpointError(f"{model}: no such folder; give an HF folder, a run, or one of its iter_* folders")
    if model.name.startswith("iter_"):
        return [_checkpoint(layout.resolve_checkpoint(model, verify_hashes=False))]
    found: list[Path] = []
    for folder in (model / layout.CHECKPOINTS, model):
        if folder.is_dir() and not found:
            found = layout.complete_checkpoints(folder)
    if not found:
        raise CheckpointError(
            f"{model}: is neither an HF folder (config.json) nor holds a complete checkpoint (iter_*)"
        )
    return [_checkpoint(folder) for folder in (found if which == "all" else found[-1:])]


def results_folder(subject: Subject, out: Path | None, suite: str) -> Path:
    """Errors: ConfigError if an HF folder's results have no place."""
    if out is None:
        if subject.run is None:
            raise ConfigError(f"--out is missing: {subject.path} belongs to no run, so say where its results go")
        out = subject.run / "eval"
    return out / suite / subject.label


@contextmanager
def as_hf(subject: Subject, results: Path) -> Iterator[Path]:
    """Its HF folder; a checkpoint's is made beside its results and removed afterwards.

    Errors: CheckpointError if the checkpoint is damaged, or an HF folder has no weights or brings code of its own.
    """
    if subject.is_hf:
        _check_hf(subject.path)
        yield subject.path
        return
    from megatron_synE.checkpoint.hf_export import write_hf_folder
    from tools.data.progress import live_bytes

    folder = results / CONVERTED
    try:
        with live_bytes(f"export {subject.path}") as progress:
            write_hf_folder(subject.path, folder, progress=progress, name=subject.label)
        if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
            raise CheckpointError(
                f"{subject.path}: was saved without a tokenizer (tokenizer/), so text cannot be given to it; "
                "export it, put the tokenizer's files there, and evaluate that folder"
            )
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fingerprint(subject: Subject) -> str:
    """Changes when the weights do: names, sizes and times of the weight files, and config.json.

    Cost: no weight is read.
    """
    digest = hashlib.sha256()
    folder = subject.path
    inside = folder.iterdir() if subject.is_hf else folder.rglob("*")  # results may lie below an HF folder
    files = [path for path in sorted(inside) if path.is_file() and not path.name.startswith(".")]
    for path in files:
        status = path.stat()
        digest.update(json.dumps([path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()


def _hf_folder(folder: Path) -> Subject:
    """One that was exported into its run's folder carries the checkpoint's label; any other its own name."""
    own = Subject(path=folder, label=folder.resolve().name, is_hf=True)
    marker = folder / EXPORT_MARKER
    if not marker.is_file():
        return own
    from megatron_synE.checkpoint import layout

    try:
        made_from = json.loads(marker.read_text(encoding="utf-8"))
        name = str(made_from["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):  # a damaged mark names no run
        return own
    cure = "export the checkpoint again"
    check_version(made_from, understood=layout.SCHEMA_VERSION, file=marker, cure=cure, fault=DataError)
    checkpoint = folder.resolve().parent / layout.CHECKPOINTS / name
    if not (checkpoint / layout.STATE).is_file():
        return own
    return replace(_checkpoint(checkpoint), path=folder, is_hf=True)


def _checkpoint(folder: Path) -> Subject:
    from megatron_synE.checkpoint import layout

    state = layout.read_state(folder)
    parent = folder.resolve().parent
    return Subject(
        path=folder,
        label=folder.name,
        run=parent.parent if parent.name == layout.CHECKPOINTS else parent,
        iteration=layout.iteration_of(folder),
        consumed_tokens=state.consumed_tokens,
    )


def _check_hf(folder: Path) -> None:
    if not any(path.name.endswith((".safetensors", ".bin")) for path in folder.iterdir()):
        raise CheckpointError(f"{folder}: has a config.json and no weights (*.safetensors)")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: is not JSON ({error})") from error
    if "auto_map" in config:
        raise CheckpointError(
            f"{folder / 'config.json'}: auto_map asks for code of the folder, which is never run; remove it if "
            "transformers knows the architecture itself"
        )
