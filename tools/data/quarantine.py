"""Lines that are no documents: collected from the tasks with their place, refused above a threshold."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_mixers.errors import DataError
from tools.data.readers import InputTask
from tools.data.spool import TaskResult, bad_lines_path


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A line that was not used."""

    call: str
    """Which call over the folder met it: language/source/topic or topic key."""
    file: str
    line: int
    reason: str


def quarantined(
    tasks: Sequence[InputTask], results: Sequence[TaskResult], runs: Path, *, call: str
) -> list[Quarantined]:
    """The bad lines of all tasks with line numbers of their files."""
    found, lines_before, previous = [], 0, -1
    for number, (task, result) in enumerate(zip(tasks, results, strict=True)):
        lines_before = lines_before if task.file_index == previous else 0
        previous = task.file_index
        if result.num_bad or result.num_too_long:
            found += [
                Quarantined(call=call, file=str(task.path), line=lines_before + line, reason=reason)
                for line, reason in json.loads(bad_lines_path(runs, number).read_bytes())
            ]
        lines_before += result.num_lines
    return found


def too_many(
    bad: Sequence[Quarantined], *, num_bad: int, num_records: int, max_share: float, quarantine_path: Path
) -> DataError:
    """What to say when the input is refused."""
    counts = Counter(item.reason.split(":")[0] for item in bad)
    listed = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common(4))
    return DataError(
        f"{num_bad} of {num_records} lines are bad, more than {max_share:.1%}: {listed}; first: "
        f"{bad[0].file} line {bad[0].line}; all are in {quarantine_path}. Mend the input, or name the right --text-key"
    )
