"""A full disk, a folder without write permission, a path that is none: one message on stderr, never a traceback."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from data_mixers.manifest import write_manifest
from tests import tiny
from tests.tools import corpus

ROOT = Path(__file__).parents[2]


def failed(*arguments: object, most_bytes: int | None = None) -> str:
    """What a command says that must end with 3 and without a traceback.

    most_bytes: a file may grow to so many, then writes fail as on a full disk.
    """
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most_bytes or 0, most_bytes or 0))
    # A stranger where root runs the tests: permissions do not hold root back.
    stranger = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 and most_bytes is None else []
    done = subprocess.run(
        [*stranger, sys.executable, "-m", "tools", "data", *map(str, arguments)],
        cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False, timeout=240,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, preexec_fn=limit if most_bytes is not None else None,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    return done.stderr


@pytest.fixture
def documents(tmp_path: Path) -> Iterator[Path]:
    for folder in (tmp_path, *tmp_path.parents[:3]):  # the worker's, the run's, the user's
        folder.chmod(folder.stat().st_mode | 0o055)  # a stranger may read
    path = corpus.write_jsonl(tmp_path / "pages.jsonl", [f"{text}。 " * 9 for text in corpus.documents(400)])
    yield path
    (tmp_path / "shut").chmod(0o755)


@pytest.mark.parametrize("command", ["decontaminate", "preprocess"])
def test_a_folder_that_may_not_be_written_is_named(documents: Path, tmp_path: Path, command: str) -> None:
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o555)
    more: list[object] = []
    if command == "decontaminate":
        (tmp_path / "b.jsonl").write_text(json.dumps({"question": "one two three four five six seven eight nine"}))
        more = ["--benchmarks", tmp_path / "b.jsonl"]
    if command == "preprocess":
        more = ["--tokenizer", corpus.hf_folder(tmp_path / "hf")]
    said = failed(command, "--input", documents, "--out", shut / "out", *more)
    assert f"error: {shut / 'out'}: Permission denied; " in said


def test_a_file_of_documents_that_may_not_be_read_is_named(documents: Path, tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut").chmod(0o777)
    documents.chmod(0o000)
    assert f"{documents}: Permission denied" in failed("clean", "--input", documents, "--out", tmp_path / "shut/out")


@pytest.mark.parametrize("most_bytes", [100, 20_000])
def test_clean_on_a_full_disk_says_so_and_goes_on(documents: Path, tmp_path: Path, most_bytes: int) -> None:
    (tmp_path / "shut").mkdir()
    command = ("clean", "--input", documents, "--out", tmp_path / "out")
    said = failed(*command, most_bytes=most_bytes)
    assert "again" in said and ("space" in said or "large" in said)
    done = subprocess.run(
        [sys.executable, "-m", "tools", "data", *map(str, command)], cwd=ROOT, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads((tmp_path / "out/report.json").read_text())["documents"]
    assert counts["read"] == 400 == counts["kept"] + counts["dropped"]


def _with_few_files(soft: int, hard: int, *command: str | Path) -> subprocess.CompletedProcess[str]:
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    return subprocess.run(
        [sys.executable, "-m", "tools", "data", *command],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=240, preexec_fn=limit,
    )  # fmt: skip


def test_more_token_files_than_may_be_open_at_once(tmp_path: Path) -> None:
    """Two descriptors each; a limit that may be raised is raised, and one source is let go before the next."""
    topics = {("zh", "web", f"topic_{number}"): 20 for number in range(60)}
    manifest = tiny.manifest(tmp_path, topics)
    command = ("stats", "--data", tmp_path, "--format", "json")
    done = _with_few_files(100, 100, *command)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 60
    shards = tuple(shard for entry in manifest.sources for shard in entry.shards)
    write_manifest(replace(manifest, sources=(replace(manifest.sources[0], shards=shards),)))
    done = _with_few_files(100, 400, *command)
    assert done.returncode == 0, done.stderr
    done = _with_few_files(100, 100, *command)
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    assert "Too many open files (the limit is 100, at most 100); raise it with ulimit -n" in done.stderr


def test_more_input_files_than_may_be_open_at_once(tmp_path: Path) -> None:
    """A page a file: each gives a run of its own, and runs are read side by side."""
    (tmp_path / "pages").mkdir()
    for number, text in enumerate(corpus.documents(150, seed=1)):
        corpus.write_jsonl(tmp_path / "pages" / f"{number}.jsonl", [text])
    command = [
        "preprocess",
        "--input",
        tmp_path / "pages",
        "--tokenizer",
        corpus.hf_folder(tmp_path / "hf"),
        "--out",
        tmp_path / "out",
    ]
    done = _with_few_files(100, 100, *command)
    assert done.returncode == 0, done.stderr
    assert "150 documents" in done.stderr


def test_a_figure_into_a_folder_that_is_not_there(documents: Path, tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir()
    tiny.manifest(tmp_path / "data", {("zh", "web", "law"): 300})
    for path in (tmp_path / "data").iterdir():
        path.chmod(0o644)
    (tmp_path / "data").chmod(0o755)
    target = tmp_path / "nowhere/stats.png"
    said = failed("stats", "--data", tmp_path / "data", "--plot", target)
    assert f"error: {target.parent}/" in said and "No such file or directory" in said
