"""Results of the steps of one long call, kept until its end: a call that was killed goes on from its last step."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from data_mixers.atomic import publish, temporary_path, write_atomic

Tensors = dict[str, Tensor]
FINGERPRINT = "fingerprint"


class Kept:
    """Tensors by the name of their step, in a folder.

    fingerprint: of all that decides them; what another fingerprint left in the folder is removed.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder
        note = folder / FINGERPRINT
        if not note.is_file() or note.read_text(encoding="utf-8") != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_atomic(note, fingerprint.encode())

    def tensors(self, step: str, make: Callable[[], Tensors]) -> Tensors:
        """What the step gave, in this call or in an earlier one."""
        file = self._folder / f"{step}.safetensors"
        if not file.exists():
            made = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}
            temporary = temporary_path(file)
            save_file(made, temporary)
            publish(temporary, file)
        found: Tensors = load_file(file)
        return found

    def parts(self, step: str, count: int, more: Callable[[int, Tensors], Tensors]) -> Tensors:
        """A step in parts, each from what the one before gave (the first: nothing); the last one alone stays."""
        there = [number for number in range(count) if (self._folder / f"{step}-{number}.safetensors").exists()]
        found: Tensors = {}
        for number in range(max(there, default=0), count):
            found = self.tensors(f"{step}-{number}", partial(more, number, found))
            (self._folder / f"{step}-{number - 1}.safetensors").unlink(missing_ok=True)
        return found
