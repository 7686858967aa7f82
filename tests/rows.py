"""Rows of JSON lines, as the commands read and write them; what a folder of theirs holds."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zstandard


def read(path: Path) -> list[dict[str, Any]]:
    """Of a .jsonl or .jsonl.zst file, or of all .jsonl.zst files that a folder itself holds."""
    rows = []
    for file in sorted(path.glob("*.jsonl.zst")) if path.is_dir() else [path]:
        content = file.read_bytes()
        if file.suffix == ".zst":
            content = zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True).read()
        rows += [json.loads(line) for line in content.splitlines()]
    return rows


def contents(folder: Path, *, with_work: bool = True) -> dict[str, bytes]:
    """Of all files but the one that calls lock; without the work of calls that may go on, if that is not asked for."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    left_out = (".in_use",) if with_work else (".in_use", ".work")
    return {str(name): (folder / name).read_bytes() for name in files if name.parts[0] not in left_out}


def write(path: Path, rows: Iterable[Any]) -> Path:
    """A row that is text stands in the file as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path
