"""A call that is killed anywhere, or whose disk is full, goes on when repeated, and the folder ends up the same."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import read_manifest
from tests.rows import contents
from tests.tools import corpus
from tools.data import spool
from tools.data.folder import DataFolder
from tools.data.preprocess import PreprocessOptions, preprocess
from tools.data.stage import only_one

# Dies of SIGKILL just before the n-th rename: every step of the work ends in one. Small pieces make many of them.
PROGRAM = """
import json, logging, os, signal, sys
from pathlib import Path
from tools.data import merge, preprocess, readers, spool
logging.basicConfig(level=logging.INFO)
options, left = json.loads(sys.argv[1]), int(sys.argv[2])
rename = Path.replace
def dying(path, target):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.replace = dying
readers.LEAST_CHUNK_BYTES = 2000
preprocess.SHARD_TOKENS = 1500
options["inputs"] = tuple(options["inputs"])
for name in ("tokenizer", "out"):
    options[name] = Path(options[name])
preprocess.preprocess(preprocess.PreprocessOptions(**options))
"""


@pytest.fixture
def options(tmp_path: Path) -> PreprocessOptions:
    pages = tmp_path / "pages"
    pages.mkdir()
    for number in range(3):
        texts = corpus.documents(40, seed=number)
        topics = ["law" if number % 3 else "数学" for number in range(40)]
        corpus.write_jsonl(pages / f"part-{number}.jsonl", texts, topics=topics)
    with (pages / "part-1.jsonl").open("a") as stream:
        stream.write('{"broken"\n')
    return PreprocessOptions(
        inputs=(str(pages),),
        tokenizer=corpus.hf_folder(tmp_path / "hf"),
        out=tmp_path / "out",
        language="zh",
        topic_key="topic",
        holdout=2,
        max_bad_lines=1000,
    )


def start(options: PreprocessOptions, *, dies_at: int = 0, stderr: int | None = None) -> "subprocess.Popen[bytes]":
    content = json.dumps(asdict(options), default=str)
    environment = {**os.environ, "XDG_CACHE_HOME": str(options.out.parent / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, content, str(dies_at)], env=environment, stderr=stderr)


def bytes_of(folder: Path) -> dict[str, bytes]:
    assert not (folder / ".work").exists()
    return contents(folder)


def done(folder: Path) -> dict[Path, int]:
    """The kept results of tasks, and when each was written; work that is finished and being removed is none."""
    kept = [path for path in folder.glob(".work/**/0*.json") if not any(".removed" in part for part in path.parts)]
    return {path: path.stat().st_mtime_ns for path in kept}


def killed_and_repeated(options: PreprocessOptions, *, seed: int, most: int) -> int:
    """Kill calls at random renames until one ends; how many were killed. No task is done twice."""
    rng = random.Random(seed)
    kills = 0
    while True:
        before = done(options.out)
        code = start(options, dies_at=rng.randrange(1, most + 5 * kills)).wait()
        if code == 0:
            return kills
        assert code == -signal.SIGKILL
        kills += 1
        assert kills < 60
        after = done(options.out)
        assert before.items() <= after.items() or not after
        if (options.out / "manifest.json").exists():
            read_manifest(options.out)  # every file it names is whole


@pytest.fixture
def undisturbed(options: PreprocessOptions) -> dict[str, bytes]:
    straight = replace(options, out=options.out.parent / "straight")
    assert start(straight).wait() == 0
    return bytes_of(straight.out)


def test_killed_at_random_steps_and_repeated_gives_the_same_bytes(
    options: PreprocessOptions, undisturbed: dict[str, bytes]
) -> None:
    kills = killed_and_repeated(options, seed=1, most=12)
    assert kills >= 5
    assert bytes_of(options.out) == undisturbed
    assert len(read_manifest(options.out).sources[0].shards) > 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_campaign_of_kills(options: PreprocessOptions, undisturbed: dict[str, bytes], seed: int) -> None:
    options = replace(options, workers=1 + seed % 2)
    rng = random.Random(seed)
    for _ in range(5):
        # at any moment, by the clock: workers die with the call
        process = start(options)
        try:
            process.wait(timeout=rng.uniform(0.5, 4.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    killed_and_repeated(options, seed=seed, most=40)
    assert start(options).wait() == 0
    assert bytes_of(options.out) == undisturbed


def test_work_of_other_options_or_inputs_is_not_taken_over(
    options: PreprocessOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(options, dies_at=20).wait() == -signal.SIGKILL
    assert done(options.out)
    other = replace(options, seed=7)
    again = start(other, stderr=subprocess.PIPE)
    said = again.communicate()[1].decode()
    assert again.returncode == 0 and "was made with other options or inputs, or by another version: removed" in said
    straight = replace(other, out=options.out.parent / "straight")
    assert start(straight).wait() == 0
    assert bytes_of(options.out) == bytes_of(straight.out)


def test_a_second_call_into_the_folder_is_refused(options: PreprocessOptions) -> None:
    with only_one(options.out), pytest.raises(ConfigError, match="another call is writing into"):
        preprocess(options)


def test_a_file_that_cannot_grow_is_a_clear_error_and_the_same_command_goes_on(
    options: PreprocessOptions, tmp_path: Path
) -> None:
    # RLIMIT_FSIZE stands for a full disk: the kernel refuses the write in the middle of the work
    command = [
        sys.executable, "-m", "tools", "data", "preprocess", "--input", str(tmp_path / "pages"),
        "--tokenizer", str(options.tokenizer), "--out", str(options.out), "--language", "zh",
        "--max-bad-lines", "1000", "--topic-key", "topic",
    ]  # fmt: skip
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    failed = subprocess.run(
        command, env=environment, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
    )  # fmt: skip
    assert failed.returncode == 3, failed.stderr
    assert "Traceback" not in failed.stderr
    assert str(options.out) in failed.stderr and "run the same command again" in failed.stderr
    assert not (options.out / "manifest.json").exists()
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    straight = tmp_path / "straight"
    command[command.index(str(options.out))] = str(straight)
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert bytes_of(options.out) == bytes_of(straight)


def test_a_changed_threshold_takes_the_work_over(options: PreprocessOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="lines are no documents"):
        preprocess(replace(options, max_bad_lines=0, max_bad_share=0.0))
    monkeypatch.setattr(spool, "read_task", None)  # nothing is read again
    assert preprocess(options).num_quarantined == 1


@pytest.mark.usefixtures("own_cache")
def test_another_holdout_takes_the_tokenised_documents_over(
    options: PreprocessOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = replace(options, out=options.out.parent / "straight")
    preprocess(straight)
    with pytest.raises(DataError, match="--holdout 1000 would leave none to train on; hold out fewer"):
        preprocess(replace(options, holdout=1000))
    monkeypatch.setattr(spool, "read_task", None)  # nothing is read again
    with monkeypatch.context() as killing:  # when all is written, under names that the next holdout has too
        killing.setattr(DataFolder, "replace_sources", _interrupted)
        for holdout in (7, 2, 7):
            with pytest.raises(KeyboardInterrupt):
                preprocess(replace(options, holdout=holdout))
    preprocess(options)
    assert bytes_of(options.out) == bytes_of(straight.out)


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
