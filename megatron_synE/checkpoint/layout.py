"""Which folder is a checkpoint: names, the manifest that makes it complete, publishing, choosing, pruning. No torch."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from data_mixers.atomic import sweep, sync, temporary_path, write_atomic
from data_mixers.file_version import check_version
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.runtime.lease import Lease

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
OTHER_VERSION = "export it to a Hugging Face folder with the version that wrote it, and import that"
MANIFEST = "manifest.json"
STATE = "state.json"
TRACKER = "latest_checkpointed_iteration.txt"
CHECKPOINTS = "checkpoints"
"""The folder of a run that holds its iter_* folders."""
_REQUIRED = (".metadata", STATE)
_ITERATION_NAME = re.compile(r"iter_(\d{7,})")
_TEMPORARY_NAME = re.compile(r"\.tmp-iter_(\d{7,})(-.*)?")
_MEGATRON_BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass(frozen=True, kw_only=True)
class CommonState:
    """state.json: what every rank shares besides tensors (docs/checkpoint.md). JSON values only."""

    iteration: int
    consumed_samples: int
    consumed_tokens: int
    adam_step: int
    has_optimizer: bool
    weights_dtype: str
    """float32, bfloat16, or float16 (imported without a cast)."""
    tied: bool
    vocab_size: int
    schedule: Mapping[str, Any] | None = None
    schedule_hash: str | None = None
    tokenizer_digest: str | None = None
    last_validation: Mapping[str, Any] | None = None
    wandb_id: str | None = None
    recent_losses: Sequence[float] | None = None
    """What the next steps are compared with to find a loss spike."""
    layout: Mapping[str, int] | None = None
    """World size and parallel sizes it was written under; information only."""


def iteration_name(iteration: int) -> str:
    return f"iter_{iteration:07d}"


def temporary_name(iteration: int, suffix: str) -> str:
    """Name of the folder that is written before it is published; `suffix` must be the same on all ranks."""
    return f".tmp-{iteration_name(iteration)}-{suffix}"


def iteration_of(folder: Path) -> int:
    """The iteration in a folder's name. Errors: CheckpointError if it is not an iter_* name."""
    match = _ITERATION_NAME.fullmatch(folder.name)
    if match is None:
        raise CheckpointError(f"{folder}: not a checkpoint folder (expected a name such as {iteration_name(10)})")
    return int(match[1])


def write_state(folder: Path, state: CommonState) -> None:
    write_json(folder / STATE, {"schema_version": SCHEMA_VERSION, **asdict(state)})


def read_state(folder: Path) -> CommonState:
    """state.json of a checkpoint. Errors: CheckpointError for another schema version, unknown or missing fields."""
    raw = _read_json(folder / STATE)
    check_version(raw, understood=SCHEMA_VERSION, file=folder / STATE, cure=OTHER_VERSION, fault=CheckpointError)
    del raw["schema_version"]
    known = {field.name for field in fields(CommonState)}
    if unknown := sorted(raw.keys() - known):
        raise CheckpointError(f"{folder / STATE}: unknown field {unknown[0]!r}")
    try:
        return CommonState(**raw)
    except TypeError as error:
        raise CheckpointError(f"{folder / STATE}: incomplete ({error})") from error


def write_megatron_files(folder: Path, state: CommonState) -> None:
    """Write metadata.json and common.pt, which megatron-core's own dist_checkpointing asks for to open the folder.

    common.pt holds plain numbers only; nothing here ever reads it.
    """
    import torch  # the one thing here that needs it; the rest must serve where torch is not

    write_json(folder / "metadata.json", _MEGATRON_BACKENDS)
    common = {"iteration": state.iteration, "consumed_train_samples": state.consumed_samples, "checkpoint_version": 3.0}
    torch.save(common, folder / "common.pt")


def write_manifest(folder: Path, extra: Mapping[str, Any], *, known_sha256: Mapping[str, str] | None = None) -> None:
    """Write manifest.json: `extra`, size and sha256 of every other file below `folder`, and the lineage hash.

    extra: facts of the run; `parent_lineage_hash` among them ties the checkpoint to what it was trained from.
    known_sha256: relative path -> hash of files hashed while they were written; the others are read once more.
    """
    known = known_sha256 or {}
    if missing := sorted(name for name in known if not (folder / name).is_file()):
        raise CheckpointError(
            f"{folder / missing[0]} was written and is not seen here; does every node see one folder?"
        )
    files = {
        name: {"size_bytes": file.stat().st_size, "sha256": known.get(name) or sha256_of(file)}
        for name, file in sorted((f.relative_to(folder).as_posix(), f) for f in folder.rglob("*") if f.is_file())
        if name != MANIFEST
    }
    lineage = {"parent": extra.get("parent_lineage_hash"), "files": {n: entry["sha256"] for n, entry in files.items()}}
    lineage_hash = hashlib.sha256(json.dumps(lineage, sort_keys=True).encode()).hexdigest()
    manifest = {**extra, "schema_version": SCHEMA_VERSION, "lineage_hash": lineage_hash, "files": files}
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a checkpoint. Errors: CheckpointError if missing, damaged or of another schema version."""
    file = folder / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; {folder} was not written to its end")
    manifest = _read_json(file)
    check_version(manifest, understood=SCHEMA_VERSION, file=file, cure=OTHER_VERSION, fault=CheckpointError)
    if not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{file}: does not list the checkpoint's files; take another checkpoint")
    return manifest


def check_complete(folder: Path, *, verify_hashes: bool) -> None:
    """Return if every file of the manifest is here as written.

    Errors: CheckpointError naming the first file that is missing, of another size or (verify_hashes) other content.
    Cost: with verify_hashes every byte is read.
    """
    files = read_manifest(folder)["files"]
    for name in _REQUIRED:
        if name not in files:
            raise CheckpointError(f"{folder / MANIFEST}: does not list {name}; not a whole checkpoint")
    for name, entry in files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing; the checkpoint is incomplete")
        size = file.stat().st_size
        if size != entry["size_bytes"]:
            raise CheckpointError(f"{file}: has {size} bytes, the manifest says {entry['size_bytes']}")
    if verify_hashes:
        # hashlib lets go of the interpreter: a terabyte takes minutes on a node, not an hour.
        with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
            hashes = dict(zip(files, pool.map(lambda name: sha256_of(folder / name), files), strict=True))
        for name, entry in files.items():
            if hashes[name] != entry["sha256"]:
                raise CheckpointError(
                    f"{folder / name}: its content differs from the sha256 in {MANIFEST}; the file is damaged"
                )


def complete_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """The complete iter_* folders by ascending iteration (sizes checked); logs a warning for each it passes over."""
    return [folder for folder in iteration_folders(checkpoints_dir) if _is_complete(folder, verify_hashes=False)]


def newest_complete(checkpoints_dir: Path, *, verify_hashes: bool = False, at_most: int | None = None) -> Path | None:
    """The complete checkpoint of the highest iteration, whatever the tracker says; None if there is none.

    at_most: the highest iteration that is wanted.
    Passes over incomplete (verify_hashes: also damaged) ones with a logged warning; temporary folders never count.
    """
    for folder in reversed(iteration_folders(checkpoints_dir)):
        if at_most is not None and iteration_of(folder) > at_most:
            continue
        if not _is_complete(folder, verify_hashes=verify_hashes):
            continue
        tracked = _tracked_iteration(checkpoints_dir)
        if tracked is not None and tracked != iteration_of(folder):
            logger.warning("%s names iteration %d; using %s", checkpoints_dir / TRACKER, tracked, folder.name)
        return folder
    return None


def resolve_checkpoint(path: Path, *, verify_hashes: bool = True) -> Path:
    """The checkpoint that a user means: an iter_* folder, or the newest complete one of a run or its checkpoints.

    Errors: CheckpointError if the named folder is incomplete or damaged, or nothing complete is below it.
    Cost: with verify_hashes every byte is read.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give an iter_* folder, or the run that holds checkpoints/")
    if _ITERATION_NAME.fullmatch(path.name) or ((path / MANIFEST).is_file() and (path / STATE).is_file()):
        check_complete(path, verify_hashes=verify_hashes)
        return path
    for folder in (path, path / CHECKPOINTS):
        newest = newest_complete(folder, verify_hashes=verify_hashes) if folder.is_dir() else None
        if newest is not None:
            return newest
    raise CheckpointError(f"{path}: holds no complete checkpoint (no iter_* folder with a whole {MANIFEST})")


@contextmanager
def temporary_folder(final: Path) -> Iterator[Path]:
    """An empty folder to write `final` in; what was not published of it is gone at the end.

    What calls that were killed on this machine left of `final` goes first; what they had put aside to replace it, when
    it is replaced.
    Errors: CheckpointError naming `final` for an OSError inside.
    """
    temporary = temporary_path(final)
    try:
        sweep(final.parent, final.name)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        sweep(final.parent, final.name, replaced=True)
    except OSError as error:
        raise CheckpointError(f"{final}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, final: Path, *, lease: Lease | None = None) -> None:
    """Make a fully written folder visible under its final name, then point the tracker at it.

    lease: of a run; checked right before each name appears. Errors: LeaseLostError, and nothing is published.
    """
    put_in_place(temporary, final, lease=lease)
    _check(lease)
    write_atomic(final.parent / TRACKER, f"{iteration_of(final)}\n".encode())


def put_in_place(temporary: Path, final: Path, *, lease: Lease | None = None) -> None:
    """fsync every file and folder, rename, fsync of the parent. A folder of the same name is replaced."""
    for path in (*temporary.rglob("*"), temporary):
        sync(path)
    if final.exists():
        replaced = _aside(final.parent / f"{temporary.name}-replaced")  # may be there: a killed process had this number
        _check(lease)
        final.rename(replaced)
        temporary.rename(final)
        _delete(replaced)
    else:
        _check(lease)
        temporary.rename(final)
    sync(final.parent)


def _check(lease: Lease | None) -> None:
    if lease is not None:
        lease.check()


def prune(
    checkpoints_dir: Path,
    *,
    keep_last: int | None,
    reach: int = 0,
    written: Path | None = None,
    lease: Lease | None = None,
) -> list[Path]:
    """Delete complete checkpoints but the newest `keep_last` (None keeps all), and temporary folders; what went.

    reach: how many iterations the run may have to go back from any next one, when it has not just gone back. The
    newest checkpoint that lies so far back is kept too: those of preemptions lie closer than an interval. Until there
    is one, the oldest.
    written: the one just written, after which none counts: the run passed over those, because their content is damaged.
    lease: of a run; of the temporary folders only its own go. Those of others went when it was taken.
    What may not be deleted is named in a warning, and stays: network file systems refuse where files are in use.
    Call it only when no save is under way in `checkpoints_dir`. An incomplete iter_* folder is left for a person.
    """
    stale = [
        folder
        for folder in checkpoints_dir.iterdir()
        if _TEMPORARY_NAME.fullmatch(folder.name) and (lease is None or lease.token in folder.name)
    ]
    counted = complete_checkpoints(checkpoints_dir)
    if written is not None:
        counted = [folder for folder in counted if iteration_of(folder) <= iteration_of(written)]
    old = [] if keep_last is None else counted[: -max(keep_last, 1)]
    if reach and old:
        far = [folder for folder in counted if iteration_of(folder) <= iteration_of(counted[-1]) + 1 - reach]
        kept = far[-1] if far else counted[0]
        old = [folder for folder in old if folder != kept]
    for folder in old:
        _check(lease)
        # Under a temporary name first: a deletion that is interrupted must not leave half a checkpoint.
        doomed = checkpoints_dir / f".tmp-{folder.name}-{lease.token if lease else 'x'}-pruned"
        try:
            folder.rename(doomed)
        except OSError as error:  # those after it go all the same, or every later save would leave one more
            logger.warning("%s could not be deleted: %s", folder, error)
        else:
            stale.append(doomed)
    for folder in stale:
        _delete(folder)
    return old


def withdraw_after(checkpoints_dir: Path, iteration: int, lease: Lease) -> None:
    """Delete the checkpoints after `iteration`: the run went back there, and nothing may resume what it left.

    Errors: CheckpointError for one that may not be withdrawn.
    """
    write_atomic(checkpoints_dir / TRACKER, f"{iteration}\n".encode())
    for folder in reversed(iteration_folders(checkpoints_dir)):
        if iteration_of(folder) > iteration:
            lease.check()
            withdrawn = _aside(checkpoints_dir / f".tmp-{folder.name}-{lease.token}-withdrawn")
            try:
                folder.rename(withdrawn)
            except OSError as error:
                raise CheckpointError(
                    f"{folder}: the run goes back to iteration {iteration} and this one must go, but may not be renamed"
                    f" ({error}); remove it, and start again"
                ) from error
            _delete(withdrawn)


def _aside(name: Path) -> Path:
    """This name; with a number where one that may not be deleted has it."""
    if name.exists():
        shutil.rmtree(name, ignore_errors=True)
    names = (name, *(name.with_name(f"{name.name}-{number}") for number in range(2, 100)))
    return next((free for free in names if not os.path.lexists(free)), name)


def _delete(folder: Path) -> None:
    """With all that is in it; of a link the link alone: somebody keeps on another disk what it points to."""
    try:
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)
    except OSError as error:
        logger.warning("%s could not be deleted: %s", folder, error)


def sha256_of(file: Path) -> str:
    """Hash of a file's content. Errors: CheckpointError if it cannot be read."""
    try:
        with file.open("rb", buffering=0) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write readable JSON, atomically."""
    write_atomic(file, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _is_complete(folder: Path, *, verify_hashes: bool) -> bool:
    try:
        check_complete(folder, verify_hashes=verify_hashes)
    except CheckpointError as error:
        logger.warning("passing over %s: %s", folder.name, error)
        return False
    return True


def iteration_folders(checkpoints_dir: Path) -> list[Path]:
    """The iter_* folders by ascending iteration, whole or not."""
    if not checkpoints_dir.is_dir():
        return []
    return sorted((f for f in checkpoints_dir.iterdir() if _ITERATION_NAME.fullmatch(f.name)), key=iteration_of)


def _tracked_iteration(checkpoints_dir: Path) -> int | None:
    try:
        return int((checkpoints_dir / TRACKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: expected a JSON object")
    return value
