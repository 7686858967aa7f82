"""The saver in one process: what a checkpoint holds, when it is written, and what a fault leaves behind."""

import errno
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist

from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint import save as saving_module
from megatron_synE.checkpoint.chunk_reader import ChunkReader
from megatron_synE.checkpoint.dcp import Chunk, whole
from megatron_synE.checkpoint.save import Saver, SaveReport
from megatron_synE.exit_codes import CheckpointError, LeaseLostError
from megatron_synE.runtime import lease as leases
from megatron_synE.runtime.lease import Holder, Lease
from tests.checkpoint.saving import chunks_of, state_of, tensor_of

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def group(one_process: None) -> dist.ProcessGroup:
    made = dist.new_group(backend="gloo")
    assert isinstance(made, dist.ProcessGroup)
    return made


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    (tmp_path / "checkpoints").mkdir()
    held = leases.take(tmp_path)
    yield held
    held.release()


def saver_of(root: Path, group: dist.ProcessGroup, *, lease: Lease | None = None, keep_last: int | None = 2) -> Saver:
    files = {"tokenizer.json": "{}", "README.md": "# Base", "additional_chat_templates/tool_use.jinja": "T"}
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(content)
    source_files = {name: root / name for name in files}
    return Saver(root / "checkpoints", group, keep_last=keep_last, source_files=source_files, lease=lease)


def save(
    saver: Saver, iteration: int, chunks: list[Chunk] | None = None, *, in_background: bool = False
) -> list[SaveReport]:
    saver.start(
        chunks_of(iteration) if chunks is None else chunks, state_of(iteration), {"hidden_size": 64}, {"run": "mine"},
        in_background=in_background,
    )  # fmt: skip
    saver.finish()
    return saver.reports()


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "checkpoints").iterdir())


@pytest.mark.parametrize("in_background", [False, True])
def test_a_checkpoint_holds_tensors_state_config_and_tokenizer(
    tmp_path: Path, group: dist.ProcessGroup, lease: Lease, in_background: bool
) -> None:
    saver = saver_of(tmp_path, group, lease=lease)
    (tmp_path / "tokenizer.json").unlink()  # read when the saver was made
    (report,) = save(saver, 7, in_background=in_background)
    folder = tmp_path / "checkpoints/iter_0000007"
    layout.check_complete(folder, verify_hashes=True)
    assert sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()) == [
        ".metadata", "__0_0.distcp", "common.pt", "config.json", "manifest.json", "metadata.json", "state.json",
        "tokenizer/README.md", "tokenizer/additional_chat_templates/tool_use.jinja", "tokenizer/tokenizer.json",
    ]  # fmt: skip
    assert layout.read_state(folder) == state_of(7)
    assert torch.equal(ChunkReader(folder).read("weight", (0, 0), (512, 256)), tensor_of(7))
    assert (folder / "config.json").read_text() == '{\n  "hidden_size": 64\n}\n'
    assert (folder / "tokenizer/tokenizer.json").read_text() == "{}"
    assert layout.read_manifest(folder)["run"] == "mine"
    assert (tmp_path / "checkpoints" / layout.TRACKER).read_text() == "7\n"
    assert torch.load(folder / "common.pt") == {
        "iteration": 7, "consumed_train_samples": 56, "checkpoint_version": 3.0,
    }  # fmt: skip
    assert json.loads((folder / "metadata.json").read_text())["sharded_backend"] == "torch_dist"
    # What it cost: a copy of 512 * 256 fp32 values only where training goes on meanwhile.
    assert (report.iteration, report.in_background) == (7, in_background)
    assert report.snapshot_bytes == (512 * 256 * 4 if in_background else 0)
    assert report.seconds > 0 and report.blocking_seconds > 0
    assert in_background or report.blocking_seconds >= report.seconds
    assert saver.reports() == []  # each is told once


def test_without_a_tokenizer_and_without_a_lease(tmp_path: Path, group: dist.ProcessGroup) -> None:
    saver = Saver(tmp_path / "checkpoints", group, keep_last=None, source_files={})
    for iteration in (1, 2, 3):
        save(saver, iteration)
    assert names(tmp_path) == ["iter_0000001", "iter_0000002", "iter_0000003", layout.TRACKER]
    assert not (tmp_path / "checkpoints/iter_0000001/tokenizer").exists()


def test_older_ones_go_when_a_newer_one_is_there(tmp_path: Path, group: dist.ProcessGroup, lease: Lease) -> None:
    saver = saver_of(tmp_path, group, lease=lease)
    for iteration in (1, 2, 3):
        save(saver, iteration)
    assert names(tmp_path) == ["iter_0000002", "iter_0000003", layout.TRACKER]


def test_in_the_background_training_may_change_its_tensors_at_once(
    tmp_path: Path, group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer waits at a gate until they have changed."""
    gate, shipped = threading.Event(), saving_module.save_chunks

    def held(*arguments: Any, **named: Any) -> dict[str, str]:
        gate.wait()
        return shipped(*arguments, **named)

    monkeypatch.setattr(saving_module, "save_chunks", held)
    saver, tensor = saver_of(tmp_path, group), tensor_of(1)
    saver.start([whole("weight", tensor)], state_of(1), {}, {}, in_background=True)
    assert saver.is_running and saver.reports() == []
    tensor.zero_()
    gate.set()
    saver.finish()
    assert not saver.is_running
    assert [report.iteration for report in saver.reports()] == [1]
    folder = tmp_path / "checkpoints/iter_0000001"
    assert torch.equal(ChunkReader(folder).read("weight", (0, 0), (512, 256)), tensor_of(1))


def full_disk() -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


LAZY = Chunk("weight", (2, 2), (0, 0), (2, 2), torch.float32, full_disk)


def test_a_save_that_fails_leaves_the_others_and_is_told_once(
    tmp_path: Path, group: dist.ProcessGroup, lease: Lease
) -> None:
    saver = saver_of(tmp_path, group, lease=lease)
    save(saver, 1)
    with pytest.raises(CheckpointError) as found:
        save(saver, 2, [LAZY])
    assert re.fullmatch(
        r".*/checkpoints/iter_0000002: not written; .*No space left on device.*\. Earlier checkpoints are untouched",
        str(found.value),
    )
    assert names(tmp_path) == ["iter_0000001", layout.TRACKER]
    assert saver.reports() == [] and not saver.has_failed
    assert [report.iteration for report in save(saver, 3)] == [3]


def test_a_fault_in_the_background_comes_out_at_the_next_save(
    tmp_path: Path, group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = saver_of(tmp_path, group)
    with monkeypatch.context() as patch:
        patch.setattr(layout, "write_state", lambda *_: (_ for _ in ()).throw(ValueError("odd")))
        saver.start(chunks_of(1), state_of(1), {}, {}, in_background=True)
        while saver.is_running:
            os.sched_yield()
    assert saver.has_failed and saver.reports() == []
    with pytest.raises(CheckpointError, match=r"iter_0000001: not written; ValueError: odd\. Earlier"):
        saver.start(chunks_of(2), state_of(2), {}, {}, in_background=True)
    assert names(tmp_path) == []
    assert [report.iteration for report in save(saver, 2)] == [2]


def taken_by_another(root: Path) -> None:
    successor = replace(Holder.this_process(), token="f" * 16)
    (root / leases.LEASE).write_text(json.dumps(asdict(successor)))


@pytest.mark.parametrize("chunks", [None, [LAZY]], ids=["all well", "its folder taken away"])
def test_who_lost_the_lease_publishes_nothing_and_says_so(
    tmp_path: Path, group: dist.ProcessGroup, lease: Lease, chunks: list[Chunk] | None
) -> None:
    """Also where a write failed: because the successor has swept the folder away."""
    saver = saver_of(tmp_path, group, lease=lease)
    taken_by_another(tmp_path)
    with pytest.raises(LeaseLostError, match="holds this run now"):
        save(saver, 1, chunks)
    assert names(tmp_path) == []


def test_a_checkpoint_stays_whole_where_older_ones_cannot_be_looked_at(
    tmp_path: Path, group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(layout, "prune", lambda *_, **__: full_disk())
    saver = saver_of(tmp_path, group)
    assert len(save(saver, 1)) == 1
    assert "no older checkpoint in" in caplog.text
    assert layout.newest_complete(tmp_path / "checkpoints") == tmp_path / "checkpoints/iter_0000001"


def test_what_a_killed_save_left_under_the_same_name_is_not_taken_over(
    tmp_path: Path, group: dist.ProcessGroup
) -> None:
    left = tmp_path / "checkpoints" / layout.temporary_name(1, "saving")
    left.mkdir(parents=True)
    (left / "half.distcp").write_bytes(b"half")
    save(saver_of(tmp_path, group), 1)
    assert not (tmp_path / "checkpoints/iter_0000001/half.distcp").exists()
