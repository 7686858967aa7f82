"""Processes of a SLURM launch that share out chunks: those that never come leave nothing undone."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from data_mixers.errors import ConfigError
from data_mixers.manifest import read_manifest
from tests import tiny
from tools.data import score, shares
from tools.data.options import ScoreOptions
from tools.data.score import score_ppl
from tools.data.scores_file import scores_path

SOURCES = {("zh", "web", "law"): 900, ("en", "web", "computing"): 700}


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScoreOptions:
    """Of token files of several chunks each."""
    monkeypatch.setattr(score, "MIN_CHUNK_TOKENS", 250)
    monkeypatch.setattr(shares, "WAIT_SECONDS", 0.0)
    tiny.manifest(tmp_path / "data", SOURCES)
    hf = tiny.hf_folder(tmp_path / "hf", num_hidden_layers=1)
    return ScoreOptions(data=tmp_path / "data", hf=hf, precision="fp32", device="cpu", seq_length=128)


def element(monkeypatch: pytest.MonkeyPatch, number: int, *, programs: Path, queue: str | None) -> None:
    """This process is one of four elements of job 7. queue: what squeue says of them; None: it fails."""
    for key, value in {"TASK_ID": number, "TASK_MIN": 0, "TASK_MAX": 3, "TASK_COUNT": 4, "JOB_ID": 7}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_{key}", str(value))
    squeue = programs / "squeue"
    programs.mkdir(exist_ok=True)
    squeue.write_text("#!/bin/sh\nexit 1\n" if queue is None else f"#!/bin/sh\nprintf '{queue}'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")


def scores_of(data: Path, name: str = "default") -> list[bytes]:
    manifest = read_manifest(data)
    shards = [shard for entry in manifest.sources for shard in entry.shards]
    return [scores_path(manifest.shard_prefix(shard), name).read_bytes() for shard in shards]


def test_an_element_whose_fellows_work_in_other_folders_does_their_share(
    options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a script does that gives every element of the array a folder of its own; element 3 has ended already."""
    score_ppl(replace(options, name="alone"))
    element(monkeypatch, 1, programs=tmp_path / "bin", queue=r"0|RUNNING\n1|RUNNING\n2|COMPLETING\n")
    with caplog.at_level(logging.WARNING):
        assert score_ppl(options) == (2, 2)
    assert "of 4 processes 0, 2, 3 did not come to" in caplog.text
    assert scores_of(options.data) == scores_of(options.data, "alone")


@pytest.mark.parametrize("queue", [r"0|PENDING\n1|RUNNING\n2|PENDING\n3|PENDING\n", None])
def test_shares_of_queued_elements_are_left_to_them(
    options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: str | None
) -> None:
    element(monkeypatch, 1, programs=tmp_path / "bin", queue=queue)
    assert score_ppl(options) == (2, 0)
    assert len(list((options.data / ".work/score-default").glob("*.json"))) == 2  # of 7 chunks: 1 and 5
    for number, complete in ((0, 0), (2, 1), (3, 2)):  # the first file has chunks 0 to 2
        element(monkeypatch, number, programs=tmp_path / "bin", queue=queue)
        assert score_ppl(options) == (2, complete)


def test_the_share_of_a_process_that_is_there_is_left_to_it(
    options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued = r"0|RUNNING\n1|PENDING\n2|PENDING\n3|PENDING\n"
    element(monkeypatch, 0, programs=tmp_path / "bin", queue=queued)
    score_ppl(options)
    work = options.data / ".work/score-default"
    (work / "0000004.json").unlink()  # element 0 is still at it
    element(monkeypatch, 2, programs=tmp_path / "bin", queue=r"0|RUNNING\n1|RUNNING\n2|RUNNING\n3|PENDING\n")
    assert score_ppl(options) == (2, 1)  # 1 works elsewhere, so 3 will too: only the rest of 0 is left
    assert sorted(path.stem for path in work.glob("*.json")) == [f"{task:07d}" for task in (0, 1, 2, 3, 5, 6)]


def test_a_command_in_a_shell_that_srun_gave_several_tasks_does_it_all(
    options: ScoreOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {"JOB_ID": 9, "STEP_ID": 0, "NTASKS": 3, "PROCID": 0, "LOCALID": 0}.items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    assert score_ppl(options) == (2, 2)


def test_elements_that_compute_unlike_things_are_refused(
    options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--precision auto on nodes of two kinds: each would write over what the other has done, and none would end."""
    queue = r"0|PENDING\n1|RUNNING\n2|PENDING\n3|PENDING\n"
    element(monkeypatch, 1, programs=tmp_path / "bin", queue=queue)
    score_ppl(replace(options, precision="bf16"))
    element(monkeypatch, 2, programs=tmp_path / "bin", queue=queue)
    with pytest.raises(ConfigError, match=r"process 1 of this launch does not compute what this one, 2, does.*precis"):
        score_ppl(options)
    element(monkeypatch, 3, programs=tmp_path / "bin", queue=r"0|RUNNING\n3|RUNNING\n")  # 1 and 2 have gone
    assert score_ppl(replace(options, precision="bf16")) == (2, 2)
