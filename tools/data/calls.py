"""A call that fills a folder of its own: it goes on after a kill, and refuses a folder with another call's result.

<out>/.work/call.json   what the call is, from its first moment to its end
<out>/report.json       its result, written last
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from tools.data.documents import source_of_file
from tools.data.quarantine import BadLine, check_bad_share, no_document, write_quarantine
from tools.data.readers import CALL, DROPPED, WORK, InputTask, check_name, find_inputs, plan_tasks
from tools.data.slurm_options import SlurmArray
from tools.data.stage import Report, Stage, fingerprint_of, refuse_foreign, remove_work, run_stage

logger = logging.getLogger(__name__)

REPORT_NAME = "report.json"


def deciding(options: Any, *left_out: str, **instead: Any) -> dict[str, Any]:
    """Of a command's options, all that decides the result besides the input. instead: what stands for some of them."""
    never = ("inputs", "out", "workers", "array", "max_bad_share", "max_bad_lines", *left_out, *instead)
    return {key: value for key, value in asdict(options).items() if key not in never} | instead


@dataclass(frozen=True, kw_only=True)
class Call:
    out: Path
    command: str
    options: dict[str, Any]
    """What decides the result, besides the input."""
    tasks: list[InputTask]
    workers: int = 1
    array: SlurmArray | None = None

    @classmethod
    def of(cls, command: str, options: Any, decided: dict[str, Any]) -> "Call":
        """Of a command's options. Errors: as find_inputs; DataError if there is nothing in the input."""
        paths = find_inputs(options.inputs, out=options.out)
        for path in paths:
            check_name(source_of_file(path), f"--input {path}: the folder")
        tasks = plan_tasks(paths)
        if not tasks:
            raise DataError(f"there is no document in {', '.join(options.inputs)}")
        return cls(
            out=options.out, command=command, options=decided, tasks=tasks, workers=options.workers, array=options.array
        )

    @cached_property
    def inputs(self) -> list[list[Any]]:
        """Path, size, time of change of every file, when the call began."""
        return [[str(path), *_state(path)] for path in dict.fromkeys(task.path for task in self.tasks)]

    @cached_property
    def fingerprint(self) -> str:
        """Of the pieces of input too: the files of a call are named by the pieces' numbers."""
        pieces = [(task.start, task.stop) for task in self.tasks]
        return fingerprint_of([self.command, self.options, self.inputs, pieces])

    @property
    def work(self) -> Path:
        return self.out / WORK

    def take(self, *, writes: bool) -> dict[str, Any] | None:
        """Take the folder; the content of report.json if this call has been made to its end already.

        writes: documents are asked for, not only the report.
        Errors: ConfigError if the folder holds the result, or a part of it, of another call.
        """
        finished, begun = _read(self.out / REPORT_NAME), _read(self.work / CALL)
        for found in (finished, begun):
            if found is not None and found["fingerprint"] != self.fingerprint:
                raise ConfigError(
                    f"{self.out} holds what another call (other input, options or rules), or another version, has made "
                    "of it; choose another --out, or remove the folder"
                )
        refuse_foreign(self.out, is_begun=finished is not None or begun is not None)
        if finished is not None and (finished["writes"] or not writes):
            if finished["writes"]:  # else it may be of a call that writes, and goes on from it
                remove_work(self.work)  # of a call that was killed at its end
            logger.info("%s is finished already", self.out)
            return finished
        self.work.mkdir(parents=True, exist_ok=True)
        write_atomic(self.work / CALL, json.dumps({"fingerprint": self.fingerprint}).encode())
        return None

    def run(
        self,
        name: str,
        do: Callable[[int, Report], Any],
        *,
        folder: str | None = None,
        sizes: Sequence[int] | None = None,
        unit: str = "MB",
        scale: float = 1e6,
    ) -> list[Any]:
        """The results of a stage of this name, kept in a folder of this name or the given one, in `work`.

        sizes, unit, scale: as in Stage; None: a task is a piece of the input.
        """
        given = [task.size_bytes for task in self.tasks] if sizes is None else sizes
        stage = Stage(
            name=name, work=self.work / (folder or name), fingerprint=self.fingerprint, sizes=tuple(given), do=do,
            unit=unit, scale=scale,
        )  # fmt: skip
        return run_stage(stage, workers=self.workers, array=self.array)

    def check_bad_share(self, bad: Sequence[BadLine], num_documents: int, options: Any) -> None:
        """Errors: DataError if there is no document, or, with quarantine.jsonl written, too many lines are none."""
        if not num_documents:
            raise no_document(bad, options)
        write = partial(write_quarantine, self.out, bad)
        check_bad_share(bad, options, num_bad=len(bad), num_records=num_documents + len(bad), write=write)

    def finish(self, result: dict[str, Any], quarantine: Sequence[BadLine], *, writes: bool) -> None:
        """Write quarantine.jsonl and report.json, which gets the keys of `result`, and remove `work`.

        What killed copies of a task have left half written goes too, on whatever machine they ran.
        Errors: DataError if an input file has changed since the call began: its verdicts may belong to other documents.
        """
        for file, *was in self.inputs:
            if _state(Path(file)) != was:
                raise DataError(f"{file} has changed since this call began; remove {self.out} and start again")
        for left in (*self.out.glob(".*.tmp"), *self.out.glob(f"{DROPPED}/.*.tmp")):
            left.unlink(missing_ok=True)
        write_quarantine(self.out, quarantine)
        content = {
            "command": self.command,
            "fingerprint": self.fingerprint,
            "writes": writes,
            "options": self.options,
            "inputs": [{"file": file, "size_bytes": size} for file, size, _ in self.inputs],
            **result,
        }
        write_atomic(self.out / REPORT_NAME, json.dumps(content, ensure_ascii=False, indent=1, default=str).encode())
        remove_work(self.work)


def _state(path: Path) -> list[int]:
    """Size and time of change. Errors: DataError if the file is gone."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{path} is gone; put it back, or start again without it") from error
    return [status.st_size, status.st_mtime_ns]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove {path.parent} and run again") from error
    if "fingerprint" not in content:
        raise ConfigError(f"{path} was not written by this command; choose another --out")
    return content
