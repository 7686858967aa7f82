"""The books of `clean` and `decontaminate`: a lost document, too many bad lines or a changed input stop the call."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_mixers.errors import DataError
from tests.tiny import ROOT
from tests.tools import corpus
from tools.data import calls
from tools.data import clean as cleaning
from tools.data import preprocess as preprocessing
from tools.data.clean import CleanOptions, clean
from tools.data.decontaminate import DecontaminateOptions, decontaminate
from tools.data.documents import DocumentWriter, read_lines
from tools.data.preprocess import PreprocessOptions, preprocess
from tools.data.quarantine import bad_lines
from tools.data.readers import BadRecord, InputTask, plan_tasks
from tools.data.selection import SelectionTask, gather


def items_of(path: Path, count: int) -> list[SelectionTask]:
    tasks = [InputTask(file_index=0, path=path, kind="jsonl", start=n, stop=n + 1, size_bytes=1) for n in range(count)]
    return [
        SelectionTask(task=task, index=n, text_key="text", source_key=None, out=None) for n, task in enumerate(tasks)
    ]


def result(num_documents: int, counts: list[list[Any]], bad: list[tuple[int, str]]) -> dict[str, Any]:
    return {
        "num_documents": num_documents, "counts": counts, "text_bytes": {}, "examples": {}, "bad": bad, "num_lines": 9,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kept", "is_whole"), [(3, True), (2, False), (4, False)], ids=["whole", "one lost", "one twice"]
)
def test_a_document_that_is_lost_or_counted_twice_stops_the_call(tmp_path: Path, kept: int, is_whole: bool) -> None:
    results = [
        result(5, [["web", "", kept], ["web", "too_short", 2]], [(4, "broken JSON")]),
        result(1, [["web", "", 1]], []),
    ]
    items = items_of(tmp_path / "web/a.jsonl", 2)
    if is_whole:
        assert gather(items, results).num_read == 7  # 4 kept, 2 dropped, 1 bad
        return
    with pytest.raises(DataError, match=r"^7 documents were read, but .*'kept': \d"):
        gather(items, results)


def test_bad_lines_are_named_by_their_line_in_the_file(tmp_path: Path) -> None:
    """Two pieces of nine lines each: line 2 of the second is line 11 of the file; another file counts from 1."""
    found = [result(0, [], [(4, "first")]), result(0, [], [(2, "second"), (9, "third")])]
    items = items_of(tmp_path / "a.jsonl", 2)
    other = items_of(tmp_path / "b.jsonl", 1)[0]
    other = SelectionTask(
        task=InputTask(file_index=1, path=tmp_path / "b.jsonl", kind="jsonl", start=0, stop=1, size_bytes=1),
        index=2, text_key="text", source_key=None, out=None,
    )  # fmt: skip
    report = gather([*items, other], [*found, result(0, [], [(1, "fourth")])])
    assert [(Path(bad.file).name, bad.line, bad.reason) for bad in report.quarantine] == [
        ("a.jsonl", 4, "first"), ("a.jsonl", 11, "second"), ("a.jsonl", 18, "third"), ("b.jsonl", 1, "fourth"),
    ]  # fmt: skip


def changing(path: Path, after: Any) -> Any:
    """A stage's function that also writes the file again, as long and with as many documents as before."""

    def run(*arguments: Any, **options: Any) -> Any:
        found = after(*arguments, **options)
        before = path.stat()
        path.write_bytes(path.read_bytes().swapcase().replace(b"TEXT", b"text"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        return found

    return run


@pytest.mark.usefixtures("own_cache")
def test_an_input_that_changes_in_mid_call_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = corpus.hf_folder(tmp_path / "hf")
    path = corpus.write_jsonl(tmp_path / "a.jsonl", [f"{n} {'word ' * 60}" for n in range(5)])
    (tmp_path / "b.jsonl").write_text('{"question": "one of those that nobody asks"}\n')
    inputs = (str(path),)
    cases = [
        (cleaning, "find_near", clean, CleanOptions(inputs=inputs, out=tmp_path / "clean")),
        (calls, "run_stage", decontaminate,
         DecontaminateOptions(inputs=inputs, benchmarks=(str(tmp_path / "b.jsonl"),), out=tmp_path / "report")),
        (preprocessing, "run_stage", preprocess,
         PreprocessOptions(inputs=inputs, tokenizer=tokenizer, out=tmp_path / "tokens")),
    ]  # fmt: skip
    for module, name, call, options in cases:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, changing(path, getattr(module, name)))
            with pytest.raises(DataError, match="has changed since this call began"):
                call(options)
    assert not list(tmp_path.rglob("report.json")) and not list(tmp_path.rglob("manifest.json"))


def test_blank_lines_count_in_every_piece_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"text": "fine"}\n\n[1]\n' + b'{"text": "fine"}\n' * 3 + b"\n{\n")
    tasks = plan_tasks([path], chunk_bytes=20)
    assert len(tasks) > 3
    found = []
    for task in tasks:
        lines = list(read_lines(task, text_key="text", on_bytes=lambda _: None))
        found.append((len(lines), [(line.line, line.reason) for line in lines if isinstance(line, BadRecord)]))
    assert [(bad.line, bad.reason.split(":")[0]) for bad in bad_lines(tasks, found)] == [
        (4, "not a JSON object"), (9, "broken JSON"),
    ]  # fmt: skip


OLD_COPY = """
import sys
from pathlib import Path
from tools.data.documents import DocumentWriter
with DocumentWriter(Path(sys.argv[1])) as writer:
    for number in range(2):
        writer.write({"text": f"{number}" * 100_000})
        print(number, flush=True)
        sys.stdin.readline()
"""


def test_an_old_copy_of_a_task_writes_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "0000000-web.jsonl"
    command = [sys.executable, "-c", OLD_COPY, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as old:
        assert old.stdout is not None and old.stdout.readline() == "0\n"
        with DocumentWriter(path) as writer:
            for number in range(2):
                writer.write({"text": f"{number}" * 100_000})
        whole = path.read_bytes()
        old.communicate("\n\n", timeout=240)
    assert old.returncode == 0
    assert path.read_bytes() == whole and whole.count(b"\n") == 2
    assert list(tmp_path.iterdir()) == [path]
