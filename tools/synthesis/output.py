"""Where a step may write its pairs, and which pairs a later step takes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data_mixers.atomic import sweep
from data_mixers.errors import ConfigError, DataError
from tools.data.documents import Document, read_lines
from tools.data.readers import DROPPED, BadRecord, InputTask, find_inputs


def check_out(out: Path) -> None:
    """Make the folder of an output file. Errors: ConfigError for another suffix, or if it cannot be written."""
    if out.suffixes[-2:] != [".jsonl", ".zst"] and out.suffix != ".jsonl":
        raise ConfigError(f"--out {out}: the name must end with .jsonl or .jsonl.zst")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: its folder cannot be made ({error.strerror})") from error
    sweep(out.parent, out.name)


def check_no_input(out: Path, tasks: Sequence[InputTask]) -> None:
    """Errors: ConfigError if the output file would replace what is read."""
    if any(task.path.resolve() == out.resolve() for task in tasks):
        raise ConfigError(f"--out {out} is an input; name another file")


def kept_inputs(patterns: Sequence[str]) -> list[Path]:
    """The files of pairs behind names, globs and folders. Errors: ConfigError if dropped pairs are among them."""
    paths = find_inputs(patterns)
    dropped = [path for path in paths if path.parent.name == DROPPED]
    if dropped:
        raise ConfigError(f"--input holds dropped pairs ({dropped[0]}); name the kept ones: <folder>/*.jsonl.zst")
    return paths


def documents_of(
    tasks: Sequence[InputTask], *, text_key: str, on_bytes: Callable[[int], None] = lambda size: None
) -> Iterator[tuple[InputTask, Document]]:
    """Every document, with its task. Errors: DataError for a line that is none."""
    for task in tasks:
        for document in read_lines(task, text_key=text_key, on_bytes=on_bytes):
            if isinstance(document, BadRecord):
                raise bad_line(task, document)
            if document is not None:
                yield task, document


def bad_line(task: InputTask, bad: BadRecord) -> DataError:
    """The error that names it."""
    return DataError(f"{task.path}, line {bad.line} of its part from byte {task.start}: {bad.reason}")
