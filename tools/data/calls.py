"""A call that fills a folder of its own: it goes on after a kill, and refuses a folder with another call's result.

<out>/.work/call.json   what the call is, from its first moment to its end
<out>/report.json       its result, written last
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from tools.data.readers import InputTask
from tools.data.selection import SelectionReport
from tools.data.stage import refuse_foreign

logger = logging.getLogger(__name__)

REPORT_NAME = "report.json"
QUARANTINE_NAME = "quarantine.jsonl"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a command."""

    out: Path
    command: str
    options: dict[str, Any]
    """What decides the result, besides the input."""
    inputs: list[list[Any]]
    """Path, size, time of change of every file."""
    fingerprint: str

    @property
    def work(self) -> Path:
        return self.out / ".work"

    def take(self, *, writes: bool) -> dict[str, Any] | None:
        """Take the folder; the content of report.json if this call has been made to its end already.

        writes: documents are asked for, not only the report.
        Errors: ConfigError if the folder holds the result, or a part of it, of another call.
        """
        finished = _read(self.out / REPORT_NAME)
        for found in (finished, _read(self.work / "call.json")):
            if found is not None and found["fingerprint"] != self.fingerprint:
                raise ConfigError(
                    f"{self.out} holds what another call (other input, options or rules) has made of it; "
                    "choose another --out, or remove the folder"
                )
        refuse_foreign(self.out, is_begun=finished is not None or (self.work / "call.json").is_file())
        if finished is not None and (finished["writes"] or not writes):
            logger.info("%s is finished already", self.out)
            return finished
        self.work.mkdir(parents=True, exist_ok=True)
        write_atomic(self.work / "call.json", json.dumps({"fingerprint": self.fingerprint}).encode())
        return None

    def check_bad_share(self, num_bad: int, num_documents: int, *, max_share: float, max_lines: int) -> None:
        """Errors: DataError if too many lines are no documents."""
        if num_bad > max_lines and num_bad > max_share * (num_documents + num_bad):
            raise DataError(
                f"{num_bad} of {num_documents + num_bad} lines are no documents, more than {max_share:.1%}: name the "
                "right --text-key, mend the input, or allow more with --max-bad-share"
            )

    def finish(self, report: SelectionReport, *, writes: bool, extra: dict[str, Any] | None = None) -> None:
        """Write quarantine.jsonl and report.json, which gets the keys of `extra` too."""
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in report.quarantine)
        write_atomic(self.out / QUARANTINE_NAME, lines.encode())
        content = {
            "command": self.command,
            "fingerprint": self.fingerprint,
            "writes": writes,
            "options": self.options,
            "inputs": [{"file": file, "size_bytes": size} for file, size, _ in self.inputs],
            **report.as_json(),
            **(extra or {}),
        }
        write_atomic(self.out / REPORT_NAME, json.dumps(content, ensure_ascii=False, indent=1, default=str).encode())


def begin(out: Path, *, command: str, options: dict[str, Any], tasks: list[InputTask]) -> Call:
    """The call over the tasks' files."""
    inputs = []
    for path in dict.fromkeys(task.path for task in tasks):
        status = path.stat()
        inputs.append([str(path), status.st_size, status.st_mtime_ns])
    what = json.dumps([command, options, inputs], sort_keys=True, default=str)
    fingerprint = hashlib.sha256(what.encode()).hexdigest()
    return Call(out=out, command=command, options=options, inputs=inputs, fingerprint=fingerprint)


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
