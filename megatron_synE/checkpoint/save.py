"""Writing a checkpoint: snapshot now, write in a thread, publish when every rank has written all of it."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_mixers.errors import UserError
from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint.dcp import Chunk, save_chunks
from megatron_synE.exit_codes import CheckpointError, LeaseLostError
from megatron_synE.runtime.lease import Lease

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveReport:
    """What one save cost this rank."""

    iteration: int
    in_background: bool
    blocking_seconds: float
    """Training stood still: waiting for the save before, and the snapshot; or the whole save."""
    snapshot_bytes: int
    """Copied in host memory until they are written; 0 where training waits instead."""
    seconds: float
    """From the snapshot on until every rank's part is on disk and the folder is visible."""


class Saver:
    """One save at a time into `checkpoints`; every method is collective over all ranks.

    All traffic of the writing thread goes over its own gloo group, so it can never cross training's collectives.
    """

    def __init__(
        self,
        checkpoints: Path,
        group: dist.ProcessGroup,
        *,
        keep_last: int | None,
        reach: int = 0,
        source_files: Mapping[str, Path],
        lease: Lease | None = None,
    ) -> None:
        """source_files: tokenizer and generation_config files to carry along, by name. Rank 0 reads them now: those of
        the checkpoint that a run resumed from are gone when that is pruned.

        keep_last, reach: as of layout.prune. lease: of the run, on rank 0; without it nothing becomes visible.
        """
        self._checkpoints = checkpoints
        self._group = group
        self._keep_last, self._reach = keep_last, reach
        is_writer = dist.get_rank(group) == 0
        self._source_files = {name: file.read_bytes() for name, file in source_files.items()} if is_writer else {}
        self._lease = lease
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._seconds = 0.0
        self._started: SaveReport | None = None
        self._ended: list[SaveReport] = []

    def start(
        self,
        chunks: Sequence[Chunk],
        state: layout.CommonState,
        hf_config: dict[str, Any],
        facts: dict[str, Any],
        *,
        in_background: bool,
    ) -> None:
        """Save; with in_background after a snapshot in host memory, else before returning.

        Errors: CheckpointError (from finish) on every rank if any rank failed.
        """
        began = time.perf_counter()
        self.finish()
        self._note_ended()
        copies = [_snapshot(chunk) for chunk in chunks] if in_background else list(chunks)
        copied = sum(chunk.size_bytes for chunk in copies) if in_background else 0
        self._thread = threading.Thread(target=self._run, args=(copies, state, hf_config, facts), name="checkpoint")
        self._thread.start()
        if not in_background:
            self.finish()
        blocking = time.perf_counter() - began
        self._started = SaveReport(state.iteration, in_background, blocking, copied, 0.0)

    def reports(self) -> list[SaveReport]:
        """What the saves cost that have ended well since the last call."""
        self._note_ended()
        ended, self._ended = self._ended, []
        return ended

    def _note_ended(self) -> None:
        if self._started is not None and not self.is_running and not self.has_failed:
            self._ended.append(replace(self._started, seconds=self._seconds))
            self._started = None

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        return self._error is not None

    def finish(self) -> None:
        """Wait for the save under way. Errors: CheckpointError if it failed on any rank."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error, self._started = self._error, None, None
            if isinstance(error, UserError):
                raise error
            raise CheckpointError(f"{self._checkpoints}: the checkpoint could not be written ({error})") from error

    def _run(
        self, chunks: list[Chunk], state: layout.CommonState, hf_config: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        started = time.monotonic()
        try:
            self._write(chunks, state, hf_config, facts)
        except BaseException as error:  # noqa: BLE001  # raised again by finish(), on the main thread
            self._error = error
        self._seconds = time.monotonic() - started

    def _write(
        self, chunks: list[Chunk], state: layout.CommonState, hf_config: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        is_writer = dist.get_rank(self._group) == 0
        final = self._checkpoints / layout.iteration_name(state.iteration)
        opened: list[Any] = [None, None]
        if is_writer:
            # A name of this writer alone: an old copy of the run must never write into the same folder.
            name = layout.temporary_name(state.iteration, self._lease.token if self._lease else "saving")
            opened = [name, self._fault_of(partial(_make_empty, self._checkpoints / name))]
        dist.broadcast_object_list(opened, src=dist.get_global_rank(self._group, 0), group=self._group)
        temporary = self._checkpoints / opened[0]
        _raise(opened[1], final)
        hashes: dict[str, str] = {}
        fault = self._fault_of(lambda: hashes.update(save_chunks(temporary, chunks, group=self._group)))
        # The other ranks must hear of any fault before anything is published.
        reports: list[tuple[UserError | None, dict[str, str]]] = [(None, {})] * dist.get_world_size(self._group)
        dist.all_gather_object(reports, (fault, hashes), group=self._group)
        outcome = [next((fault for fault, _ in reports if fault is not None), None)]
        if is_writer and outcome[0] is None:
            known = {name: digest for _, part in reports for name, digest in part.items()}
            outcome[0] = self._fault_of(partial(self._complete, temporary, final, state, hf_config, facts, known))
        dist.broadcast_object_list(outcome, src=dist.get_global_rank(self._group, 0), group=self._group)
        if outcome[0] is not None and is_writer:
            shutil.rmtree(temporary, ignore_errors=True)
        _raise(outcome[0], final)

    def _fault_of(self, act: Callable[[], None]) -> UserError | None:
        """What went wrong in `act`. If the lease is lost, that is the reason: the successor took the folder away."""
        try:
            act()
        except LeaseLostError as error:
            return error
        except Exception as error:  # noqa: BLE001  # whatever it is, the other ranks must hear of it
            if self._lease is not None and (lost := self._fault_of(self._lease.check)) is not None:
                return lost
            return CheckpointError(f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else f"{error}")
        return None

    def _complete(
        self,
        temporary: Path,
        final: Path,
        state: layout.CommonState,
        hf_config: dict[str, Any],
        facts: dict[str, Any],
        known_sha256: dict[str, str],
    ) -> None:
        layout.write_state(temporary, state)
        (temporary / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n", encoding="utf-8")
        for name, content in self._source_files.items():
            carried = temporary / "tokenizer" / name
            carried.parent.mkdir(parents=True, exist_ok=True)
            carried.write_bytes(content)
        layout.write_megatron_files(temporary, state)
        layout.write_manifest(temporary, facts, known_sha256=known_sha256)
        layout.publish(temporary, final, lease=self._lease)
        logger.info("saved %s", final)
        try:
            layout.prune(
                self._checkpoints, keep_last=self._keep_last, reach=self._reach, written=final, lease=self._lease
            )
        except OSError as error:  # the checkpoint is whole
            logger.warning("no older checkpoint in %s could be deleted: %s", self._checkpoints, error)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _raise(fault: UserError | None, final: Path) -> None:
    if isinstance(fault, LeaseLostError):
        raise fault
    if fault is not None:
        raise CheckpointError(f"{final}: not written; {fault}. Earlier checkpoints are untouched")


def _snapshot(chunk: Chunk) -> Chunk:
    """The chunk with its own copy of the values in host memory."""
    return replace(chunk, data=chunk.tensor().detach().to(device="cpu", copy=True))
