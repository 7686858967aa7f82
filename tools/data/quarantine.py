"""Lines that are no documents: collected from the tasks with their place in the file, refused above a threshold."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from data_mixers.atomic import publish, temporary_path
from data_mixers.errors import DataError
from tools.data.readers import InputTask

QUARANTINE_NAME = "quarantine.jsonl"
NUM_EXAMPLES = 3
_NOT_LINES = ("broken JSON", "not a JSON object", "invalid UTF-8 at", "the line is longer")
"""Of a line that may be any number of documents in another format; a line without its key is one."""


@dataclass(frozen=True, slots=True, kw_only=True)  # of many documents millions are longer than a window
class BadLine:
    file: str
    line: int
    """Of the file, counted from 1; a row of a parquet file."""
    reason: str


def bad_lines(tasks: Sequence[InputTask], found: Iterable[tuple[int, Iterable[tuple[int, str]]]]) -> list[BadLine]:
    """The bad lines of all tasks of a call, in order.

    found: of each task, how many lines it has, and (line counted from 1 inside the task, reason) of the bad ones.
    Errors: as check_lines, of a file.
    """
    bad: list[BadLine] = []
    for _, of_file in groupby(zip(tasks, found, strict=True), key=lambda each: each[0].file_index):
        first, num_before = len(bad), 0
        for task, (num_lines, of_task) in of_file:
            bad += [BadLine(file=str(task.path), line=num_before + line, reason=reason) for line, reason in of_task]
            num_before += num_lines
        check_lines(task.path, num_before, [(item.line, item.reason) for item in bad[first:]])
    return bad


def check_lines(path: Path, num_lines: int, bad: Sequence[tuple[int, str]]) -> None:
    """Errors: DataError if a file has lines, and none of them holds a document: as bad lines they would be a few.

    num_lines: without blank ones, where they are known.
    bad: (line of the file counted from 1, reason).
    """
    if not bad or len(bad) < num_lines or not all(reason.startswith(_NOT_LINES) for _, reason in bad):
        return
    line, reason = bad[0]
    cure = "Mend it, or leave it out"
    if "a list of objects" in reason:
        cure = f"Write one object a line: jq -c '.[]' {path}"
    elif "carriage returns" in reason:
        cure = f"Write line feeds: tr '\\r' '\\n' < {path}"
    raise DataError(f"{path}: no line is a document ({len(bad)} in all); line {line}: {reason}. {cure}")


def write_quarantine(folder: Path, bad: Sequence[BadLine]) -> Path:
    """The bad lines of the call whose folder it is."""
    return write_records(folder / QUARANTINE_NAME, (json.dumps(asdict(line), ensure_ascii=False) for line in bad))


def write_records(path: Path, records: Iterable[str]) -> Path:
    """Replace a file by these records, each on a line of its own and one at a time in memory."""
    temporary = temporary_path(path)
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(f"{record}\n" for record in records)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def check_bad_share(
    bad: Sequence[BadLine], options: Any, *, num_bad: int, num_records: int, write: Callable[[], Path]
) -> None:
    """Errors: DataError with the first bad lines if there are more of them, and a larger share, than options allow.

    options: of a command, with max_bad_share and max_bad_lines.
    write: keeps them in the file that it names; called if the input is refused.
    """
    max_share = options.max_bad_share
    if num_bad <= options.max_bad_lines or num_bad <= max_share * num_records:
        return
    raise DataError(
        f"{num_bad} of {num_records} lines are no documents, more than {max_share:.1%}: {_listed(bad)}. All are in "
        f"{write()}. Mend the input, name the right {_keys(options)}, or allow more with --max-bad-share"
    )


def no_document(bad: Sequence[BadLine], options: Any) -> DataError:
    """For a call whose input has none. options: of a command, with inputs."""
    where = f"there is no document in {', '.join(options.inputs)}"
    return DataError(f"{where}: {_listed(bad)}. Mend it, or name the right {_keys(options)}" if bad else where)


def _listed(bad: Sequence[BadLine]) -> str:
    counts = Counter(item.reason.split(":")[0] for item in bad)
    listed = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common(4))
    first = "; ".join(f"{item.file} line {item.line}: {item.reason}" for item in bad[:NUM_EXAMPLES])
    return f"{listed}. First: {first}"


def _keys(options: Any) -> str:
    return "--text-key" if getattr(options, "topic_key", None) is None else "--text-key and --topic-key"
