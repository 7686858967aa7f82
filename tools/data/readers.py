"""Input files (.jsonl, .gz, .zst, .parquet) cut into tasks, and tasks read as records or reasons why a line is none."""

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from data_mixers.errors import ConfigError, DataError
from tools.data.lines import byte_range, compressed

logger = logging.getLogger(__name__)

Kind = Literal["jsonl", "gz", "zst", "parquet"]
KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".gz": "gz", ".zst": "zst", ".parquet": "parquet",
}  # fmt: skip
LEAST_CHUNK_BYTES = 8 << 20  # of one plain file per task
MOST_CHUNK_BYTES = 64 << 20  # a task's tokens are sorted in memory
NUM_CHUNKS = 64  # wanted: enough to keep many workers busy, few enough to merge
MAX_DOCUMENT_BYTES = 16 << 20  # ours: four times a Bible; whole books fit, a file without line ends does not
REPORTS = ("report.json", "quarantine.jsonl", "sources.json", "agreement.json", "answers.jsonl")
"""What these tools write beside documents."""
DROPPED = "dropped"
"""The folder in which `clean` and `decontaminate` keep what they leave out."""
PAIRS, FAILED, PARTS = "pairs.jsonl.zst", "failed.jsonl.zst", "parts"
"""Of `synth generate`: what PARTS hold, answers as they come, is in the two files in the end; FAILED holds no pairs."""
WORK, CALL = ".work", "call.json"
"""<out>/WORK/CALL lies in a folder of documents for as long as the call that fills it has not come to its end."""
PARQUET_ROWS = 256  # at once in memory, as Python objects


@dataclass(frozen=True, kw_only=True)
class InputTask:
    """A piece of one input file that is read by one worker."""

    file_index: int
    path: Path
    kind: Kind
    start: int
    """First byte (jsonl) or row group (parquet)."""
    stop: int
    size_bytes: int
    """Its part of the file, for progress."""

    @property
    def is_whole_file(self) -> bool:
        """Whether no other task reads the rest of its file; of a parquet file it may be False."""
        return self.kind in ("gz", "zst") or (self.kind == "jsonl" and self.size_bytes == self.path.stat().st_size)


class Record(NamedTuple):  # made for every line: a frozen dataclass takes three times as long
    line: int
    """Counted from 1 inside the task: line, or row of a parquet file."""
    place: int
    """Where it begins in its file: byte of a plain file, else line or row counted from 1."""
    text: str
    topic: str | None
    """The value of the topic key, if one is asked for."""
    fields: dict[str, Any]
    """All keys of the line, or the columns that were asked for."""


class BadRecord(NamedTuple):
    line: int
    reason: str


def find_inputs(
    patterns: Sequence[str],
    *,
    option: str = "--input",
    out: Path | None = None,
    suffixes: Collection[str] = tuple(KINDS),
) -> list[Path]:
    """The files behind names, globs and folders (all their files of a known suffix), each once, part-2 before part-10.

    What the tools write beside documents (REPORTS, DROPPED next to a report, FAILED, PARTS) is read only if it is
    named itself.
    out: of the call itself; what it has written there, in a folder that it reads, is no input.
    suffixes: of a folder's files.
    Errors: ConfigError for a pattern without a file, a link to nothing, a name that is not UTF-8, or a file of a folder
    that a call has not filled to the end.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        is_literal = Path(pattern).exists()  # brackets may be of the name
        names = [pattern] if is_literal else glob.glob(pattern, recursive=True)  # noqa: PTH207  # absolute patterns
        matches = [Path(name) for name in names]
        named = Path(pattern) if is_literal else _named_part(pattern)
        if not is_literal:
            _check_folders(pattern, option)
        files = [path for path in matches if _is_file(path, option)]
        for folder in (path for path in matches if path.is_dir()):
            files += _files_inside(folder, option, suffixes)
        if out is not None:
            inside, read = out.resolve(), named.resolve()
            if read.is_relative_to(inside):
                raise ConfigError(f"{option} {pattern} lies inside --out {out}; choose another --out")
            if inside.is_relative_to(read):
                files = [path for path in files if not path.resolve().is_relative_to(inside)]
        by_products = dict.fromkeys(path for path in files if _is_by_product(path, named))
        if by_products:
            first, count = ", ".join(map(str, list(by_products)[:4])), len(by_products)
            logger.info("%s %s: not read, since no documents to keep: %s (%d in all)", option, pattern, first, count)
            files = [path for path in files if path not in by_products]
        if not files:
            raise ConfigError(f"{option} {pattern} matches no file and no folder with {', '.join(suffixes)} files")
        _check_finished(files, f"{option} {pattern}")
        for path in files:
            check_name(str(path), option)
            found.setdefault(path.resolve(), path)
    return sorted(found.values(), key=_natural)


def check_name(name: str, where: str) -> None:
    """Errors: ConfigError for a name that is not UTF-8, as of a folder that was unpacked from a Chinese Windows."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where} {os.fsencode(name)!r}: this name is not UTF-8, so no file could name its documents; "
            "rename it, e.g. with `convmv -f gbk -t utf8 -r --notest FOLDER`"
        ) from error


def _files_inside(folder: Path, option: str, suffixes: Collection[str]) -> list[Path]:
    """The visible files of a known suffix, through links to folders too; the log counts the others.

    Errors: ConfigError for a folder inside that cannot be read, and as _is_file.
    """

    def refuse(error: OSError) -> None:
        raise ConfigError(
            f"{option} {error.filename} cannot be read: {error.strerror}; allow it, or name other folders"
        )

    files: list[Path] = []
    others: Counter[str] = Counter()
    entered: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in entered:  # by a link, maybe to a folder that this one lies in
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(root, name) for name in sorted(names) if not name.startswith(".")):
            if _is_file(path, option) and path.suffix in suffixes:
                files.append(path)
            else:
                others[path.suffix or path.name] += 1
    if others:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8))
        logger.info("%s %s: not read, by suffix: %s (%d in all)", option, folder, counts, others.total())
    return files


def _is_file(path: Path, option: str) -> bool:
    """Errors: ConfigError for a link to nothing: what it stood for would be missing, unsaid."""
    if path.is_file():
        return True
    if path.is_symlink() and not path.exists():
        raise ConfigError(
            f"{option} {path} is a link to {path.readlink()}, which is not there; mend or remove the link"
        )
    return False


def _check_folders(pattern: str, option: str) -> None:
    """Errors: as _is_file, for what a wildcard stands for before the last part: glob passes over zh of */*.jsonl."""
    for above in Path(pattern).parents:
        if glob.has_magic(str(above)):
            for name in glob.iglob(str(above), recursive=True):  # noqa: PTH207  # absolute patterns
                _is_file(Path(name), option)


def _check_finished(files: Sequence[Path], where: str) -> None:
    """Until its end a call holds a part of the documents, and what it drops has no report beside it."""
    for folder in dict.fromkeys(path.parent for path in files):
        out = folder.parent if folder.name == DROPPED else folder
        if (out / WORK / CALL).is_file():
            raise ConfigError(
                f"{where}: {out} is unfinished; run the command that fills it again first, or leave it out"
            )


def _named_part(pattern: str) -> Path:
    """The folder, or file, that a pattern names before its first wildcard."""
    parts = Path(pattern).parts
    magic = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:magic])


def _is_by_product(path: Path, named: Path) -> bool:
    if path == named:
        return False
    parents = [parent for parent in path.parents if parent != named and parent.is_relative_to(named)]
    is_dropped = any(parent.name == DROPPED and (parent.parent / REPORTS[0]).is_file() for parent in parents)
    is_part = any(parent.name == PARTS and (parent.parent / FAILED).is_file() for parent in parents)
    is_beside_pairs = path.name in (FAILED, CALL) and path.with_name(PAIRS).is_file()
    return path.name in REPORTS or is_dropped or is_part or is_beside_pairs


def _natural(path: Path) -> tuple[list[tuple[str, int]], str]:
    """Numbers inside names count as numbers."""
    pieces = re.findall(r"(\D*)(\d*)", str(path))
    return [(text, int(number or -1)) for text, number in pieces], str(path)


def plan_tasks(paths: Sequence[Path], *, chunk_bytes: int | None = None) -> list[InputTask]:
    """The tasks of all files in order; they do not depend on the number of workers.

    chunk_bytes: of a plain file, or of a parquet file's row groups unpacked, per task; None: by the size of all files.
    """
    sizes = [path.stat().st_size for path in paths]
    if chunk_bytes is None:
        chunk_bytes = min(max(sum(sizes) // NUM_CHUNKS, LEAST_CHUNK_BYTES), MOST_CHUNK_BYTES)
    tasks = []
    for file_index, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        if path.suffix not in KINDS:
            raise ConfigError(f"--input {path} has an unknown suffix; known: {', '.join(KINDS)}")
        kind = KINDS[path.suffix]
        if kind == "jsonl":
            cuts = [(start, min(start + chunk_bytes, size)) for start in range(0, size, chunk_bytes)]
        elif kind == "parquet":
            cuts = _row_groups(path, chunk_bytes)
        else:
            cuts = [(0, size)]
        for start, stop in cuts:
            part = stop - start if kind != "parquet" else size * (stop - start) // cuts[-1][1]
            task = InputTask(file_index=file_index, path=path, kind=kind, start=start, stop=stop, size_bytes=part)
            tasks.append(task)
    return tasks


def read_task(
    task: InputTask,
    *,
    text_key: str | tuple[str, ...],
    topic_key: str | None,
    on_bytes: Callable[[int], None],
    other_columns: Sequence[str] | None = (),
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
) -> Iterator[Record | BadRecord | None]:
    """Every line of a task, as a document or with the reason why it is none; None for a blank line.

    text_key: of several, the first that the line (the parquet file) has.
    on_bytes: told how many bytes of the input have been read since the last call.
    other_columns: of a parquet file, beside text and topic, where it has them; None: all. Other files hold whole lines.
    max_document_bytes: of UTF-8 text; a line more than twice as long (escapes, other keys) is not even read.
    Errors: DataError naming the file if it is damaged as a whole (cut off, not the format its name says).
    """
    text_keys = (text_key,) if isinstance(text_key, str) else text_key
    if task.kind == "parquet":
        yield from _read_parquet(task, text_keys, topic_key, other_columns, max_document_bytes, on_bytes)
        return
    limit = 2 * max_document_bytes + (1 << 20)
    if task.kind == "jsonl":
        lines = byte_range(task.path, task.start, task.stop, limit=limit, on_bytes=on_bytes)
    else:
        lines = compressed(task.path, task.kind, limit=limit, on_bytes=on_bytes)
    for number, (place, line) in enumerate(lines, start=1):
        if line is None:
            yield BadRecord(number, f"the line is longer than {limit} bytes")
        elif not line or line.isspace():
            yield None
        else:
            yield _parse(line, number, place, text_keys, topic_key, max_document_bytes)


def _parse(
    line: bytes, number: int, place: int, text_keys: tuple[str, ...], topic_key: str | None, max_document_bytes: int
) -> Record | BadRecord:
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError as decode_error:
            return BadRecord(number, f"invalid UTF-8 at byte {decode_error.start} of the line")
        kind = "lone surrogate" if "surrogate" in str(error) else "broken JSON"
        if b"}\r{" in line:
            return BadRecord(number, "broken JSON: its lines end in carriage returns alone")
        return BadRecord(number, f"{kind}: {error}")
    if not isinstance(content, dict):
        are_objects = isinstance(content, list) and content and isinstance(content[0], dict)
        return BadRecord(number, f"not a JSON object{' but a list of objects' if are_objects else ''}")
    for text_key in text_keys:
        if text_key in content:
            break
    else:
        return BadRecord(number, f"missing key {' or '.join(text_keys)}")
    if topic_key is not None and topic_key not in content:
        return BadRecord(number, f"missing key {topic_key}")
    return _check(content, number, place, text_key, topic_key, max_document_bytes)


def _check(
    content: dict[str, Any], number: int, place: int, text_key: str, topic_key: str | None, max_document_bytes: int
) -> Record | BadRecord:
    text, topic = content[text_key], content[topic_key] if topic_key is not None else None
    if not isinstance(text, str):
        return BadRecord(number, f"{text_key} is not text")
    if not text or text.isspace():
        return BadRecord(number, f"{text_key} is empty")
    if "\x00" in text:
        return BadRecord(number, f"{text_key} holds a NUL character")
    if 4 * len(text) > max_document_bytes and len(text.encode()) > max_document_bytes:
        return BadRecord(number, f"{text_key} is longer than {max_document_bytes} bytes")
    if topic is not None and not isinstance(topic, str):
        return BadRecord(number, f"{topic_key} is not text")
    if topic_key is not None and topic is None:
        return BadRecord(number, f"{topic_key} is empty")
    return Record(number, place, text, topic, content)


def _read_parquet(
    task: InputTask,
    text_keys: tuple[str, ...],
    topic_key: str | None,
    wanted: Sequence[str] | None,
    max_document_bytes: int,
    on_bytes: Callable[[int], None],
) -> Iterator[Record | BadRecord]:
    import pyarrow
    import pyarrow.parquet

    number, group = 0, task.start
    try:
        with pyarrow.parquet.ParquetFile(task.path) as file:
            names = file.schema_arrow.names
            text_key = next((key for key in text_keys if key in names), text_keys[0])
            needed = [text_key] if topic_key is None else [text_key, topic_key]
            for column in needed:
                if column not in names:
                    raise DataError(f"{task.path} has no column {column}; it has {', '.join(names)}")
            columns = None if wanted is None else [*needed, *(n for n in wanted if n in names and n not in needed)]
            first_row = sum(file.metadata.row_group(group).num_rows for group in range(task.start))
            for done, group in enumerate(range(task.start, task.stop)):
                for batch in file.iter_batches(batch_size=PARQUET_ROWS, row_groups=[group], columns=columns):
                    for content in _rows(batch):
                        number += 1
                        if content is None:
                            yield BadRecord(number, "invalid UTF-8")
                        else:
                            place = first_row + number
                            yield _check(content, number, place, text_key, topic_key, max_document_bytes)
                num_groups = task.stop - task.start
                on_bytes(task.size_bytes * (done + 1) // num_groups - task.size_bytes * done // num_groups)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{task.path} is damaged in row group {group}: {error}") from error


def _rows(batch: Any) -> list[dict[str, Any] | None]:
    """The rows of a record batch; None where a value is no UTF-8."""
    try:
        rows: list[dict[str, Any] | None] = batch.to_pylist()
    except UnicodeDecodeError:
        rows = []
        for index in range(batch.num_rows):
            try:
                rows += batch.slice(index, 1).to_pylist()
            except UnicodeDecodeError:
                rows.append(None)
    return rows


def _row_groups(path: Path, chunk_bytes: int) -> list[tuple[int, int]]:
    """[start, stop) of row groups that follow each other and hold at most chunk_bytes unpacked, or are one alone."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error
    cuts: list[tuple[int, int]] = []
    start = held = 0
    for group, size in enumerate(sizes):
        if group > start and held + size > chunk_bytes:
            cuts.append((start, group))
            start, held = group, 0
        held += size
    return [*cuts, (start, len(sizes))] if sizes else []
