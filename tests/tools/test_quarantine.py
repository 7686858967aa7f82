"""Lines that are no documents, kept by call: any number of them, each call's own part replaced."""

import json
import tracemalloc
from pathlib import Path

from data_mixers.manifest import TokenizerIdentity
from tools.data.folder import DataFolder
from tools.data.quarantine import BadLine, write_quarantine


def many(count: int, file: str) -> list[BadLine]:
    return [BadLine(file=file, line=number, reason=f"{number} tokens with EOS, too long") for number in range(count)]


def records(path: Path) -> list[tuple[str, str, int]]:
    read = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return [(each["call"], each["file"], each["line"]) for each in read]


def test_a_call_replaces_its_own_part_and_holds_a_line_at_a_time(tmp_path: Path) -> None:
    identity = TokenizerIdentity(digest="0", vocab_size=9, eos_id=0, bos_id=None)
    folder = DataFolder(tmp_path, tokenizer=identity, dtype="uint16")
    first, second = many(20_000, "a\u2028b"), many(20_000, "c")
    folder.write_quarantine(first[:3], call="en/web/art")
    folder.write_quarantine(second, call="en/web/law")
    tracemalloc.start()
    path = folder.write_quarantine(first, call="en/web/art")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert records(path) == [
        *(("en/web/law", "c", number) for number in range(20_000)),
        *(("en/web/art", "a\u2028b", number) for number in range(20_000)),
    ]
    assert peak_bytes < 500_000 < path.stat().st_size
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_folder_of_one_call_has_its_lines_in_order(tmp_path: Path) -> None:
    path = write_quarantine(tmp_path, many(2, "水"))
    assert path.read_text(encoding="utf-8") == (
        '{"file": "水", "line": 0, "reason": "0 tokens with EOS, too long"}\n'
        '{"file": "水", "line": 1, "reason": "1 tokens with EOS, too long"}\n'
    )
