"""Writing a checkpoint: snapshot now, write in a thread, publish when every rank has written all of it."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint.dcp import Chunk, save_chunks
from megatron_synE.exit_codes import CheckpointError

logger = logging.getLogger(__name__)


class Saver:
    """One save at a time into `checkpoints`; every method is collective over all ranks.

    All traffic of the writing thread goes over its own gloo group, so it can never cross training's collectives.
    """

    def __init__(
        self, checkpoints: Path, group: dist.ProcessGroup, *, keep_last: int | None, source_files: Sequence[Path]
    ) -> None:
        """source_files: tokenizer and generation_config files to carry along (rank 0 copies them)."""
        self._checkpoints = checkpoints
        self._group = group
        self._keep_last = keep_last
        self._source_files = tuple(source_files)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.last_seconds = 0.0
        """Wall time of the last whole save."""

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
        self.finish()
        copies = [_snapshot(chunk) for chunk in chunks] if in_background else list(chunks)
        self._thread = threading.Thread(target=self._run, args=(copies, state, hf_config, facts), name="checkpoint")
        self._thread.start()
        if not in_background:
            self.finish()

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
            error, self._error = self._error, None
            if isinstance(error, CheckpointError):
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
        self.last_seconds = time.monotonic() - started

    def _write(
        self, chunks: list[Chunk], state: layout.CommonState, hf_config: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        is_writer = dist.get_rank(self._group) == 0
        temporary = self._checkpoints / layout.temporary_name(state.iteration, "saving")
        final = self._checkpoints / layout.iteration_name(state.iteration)
        opened: list[str | None] = [None]
        if is_writer:
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            except OSError as error:
                opened[0] = f"{temporary}: {error.strerror}"
        dist.broadcast_object_list(opened, src=dist.get_global_rank(self._group, 0), group=self._group)
        if opened[0] is not None:
            raise CheckpointError(f"{final}: not written; {opened[0]}. Earlier checkpoints are untouched")
        failure: str | None = None
        hashes: dict[str, str] = {}
        try:
            hashes = save_chunks(temporary, chunks, group=self._group)
        except Exception as error:  # noqa: BLE001  # the other ranks must hear of it before anything is published
            failure = f"{type(error).__name__}: {error}"
        reports: list[tuple[str | None, dict[str, str]]] = [(None, {})] * dist.get_world_size(self._group)
        dist.all_gather_object(reports, (failure, hashes), group=self._group)
        outcome = [next((f for f, _ in reports if f), None)]
        if is_writer and outcome[0] is None:
            try:
                known = {name: digest for _, part in reports for name, digest in part.items()}
                self._complete(temporary, final, state, hf_config, facts, known)
            except Exception as error:  # noqa: BLE001  # as above
                outcome[0] = f"{type(error).__name__}: {error}"
        dist.broadcast_object_list(outcome, src=dist.get_global_rank(self._group, 0), group=self._group)
        if outcome[0] is not None:
            if is_writer:
                shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(f"{final}: not written; {outcome[0]}. Earlier checkpoints are untouched")

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
        if self._source_files:
            (temporary / "tokenizer").mkdir()
            for file in self._source_files:
                shutil.copyfile(file, temporary / "tokenizer" / file.name)
        layout.write_megatron_files(temporary, state)
        layout.write_manifest(temporary, facts, known_sha256=known_sha256)
        layout.publish(temporary, final)
        logger.info("saved %s", final)
        try:
            layout.prune(self._checkpoints, keep_last=self._keep_last, written=final)
        except OSError as error:  # the checkpoint is whole; network file systems refuse to delete files still in use
            logger.warning("an older checkpoint in %s could not be deleted: %s", self._checkpoints, error)


def _snapshot(chunk: Chunk) -> Chunk:
    """The chunk with its own copy of the values in host memory."""
    return replace(chunk, data=chunk.tensor().detach().to(device="cpu", copy=True))
