"""Lines that are no documents: collected from the tasks with their place in the file, refused above a threshold."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_mixers.errors import DataError
from tools.data.readers import InputTask

NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class BadLine:
    """A line that was not used."""

    file: str
    line: int
    """Of the file, counted from 1; a row of a parquet file."""
    reason: str


def bad_lines(tasks: Sequence[InputTask], found: Iterable[tuple[int, Iterable[tuple[int, str]]]]) -> list[BadLine]:
    """The bad lines of all tasks of a call, in order.

    found: of each task, how many lines it has, and (line counted from 1 inside the task, reason) of the bad ones.
    """
    bad: list[BadLine] = []
    lines_before, previous = 0, -1
    for task, (num_lines, of_task) in zip(tasks, found, strict=True):
        lines_before = lines_before if task.file_index == previous else 0
        previous = task.file_index
        bad += [BadLine(file=str(task.path), line=lines_before + line, reason=reason) for line, reason in of_task]
        lines_before += num_lines
    return bad


def is_too_much(num_bad: int, num_records: int, *, max_share: float, max_lines: int) -> bool:
    """Whether the input is refused: more bad lines than max_lines, and a larger share than max_share."""
    return num_bad > max_lines and num_bad > max_share * num_records


def too_many(
    bad: Sequence[BadLine], *, num_bad: int, num_records: int, max_share: float, quarantine_path: Path
) -> DataError:
    """What to say when the input is refused: how many lines for which reasons, and the first ones."""
    counts = Counter(item.reason.split(":")[0] for item in bad)
    listed = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common(4))
    first = "; ".join(f"{item.file} line {item.line}: {item.reason}" for item in bad[:NUM_EXAMPLES])
    return DataError(
        f"{num_bad} of {num_records} lines are no documents, more than {max_share:.1%}: {listed}. First: {first}. All "
        f"are in {quarantine_path}. Mend the input, name the right --text-key, or allow more with --max-bad-share"
    )
