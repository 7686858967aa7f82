"""Who may write into a run folder, between real processes, and what a copy that lost it can still do: nothing."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_mixers.errors import ConfigError
from megatron_synE.exit_codes import LeaseLostError
from megatron_synE.runtime import lease
from tests import tiny

HOLDER = """
import sys
from pathlib import Path
from megatron_synE.runtime import lease
held = lease.take(Path(sys.argv[1]))
print("holds", flush=True)
for line in sys.stdin:
    try:
        lease.write_text(Path(sys.argv[1]) / "file", line, token=held.token, lease=held)
        print("wrote", flush=True)
    except lease.LeaseLostError as error:
        print(error, flush=True)
"""


class Other:
    """Another process that holds the lease of a folder and writes when told."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(root)], cwd=tiny.ROOT, env=os.environ | environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.said() == "holds"

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def writes(self, text: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.said()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    holder = Other(tmp_path, SLURM_JOB_ID="77")
    yield holder
    holder.process.kill()
    holder.process.wait()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LOCK_SECONDS", 0.3)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)


def as_job(monkeypatch: pytest.MonkeyPatch, job: str, restart: str | None = None) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", job)
    if restart is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)


def test_a_later_restart_takes_over_from_a_living_copy_which_then_writes_nothing(
    tmp_path: Path, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert other.writes("first") == "wrote"
    as_job(monkeypatch, "77", "1")
    mine = lease.take(tmp_path)
    mine.check()
    said = other.writes("second")
    assert "restart 1 of job 77" in said and "writes nothing more" in said
    assert (tmp_path / "file").read_text() == "first\n"
    assert not list(tmp_path.glob(".file*"))
    # The lock that the old copy still has is no longer the folder's.
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(ConfigError, match="another run is writing there"):
        lease.take(tmp_path)
    mine.release()
    lease.take(tmp_path).check()


@pytest.mark.parametrize(("job", "restart"), [(None, None), ("78", "1"), ("77", None), ("77", "0")])
def test_nobody_else_takes_over_from_a_living_holder(
    tmp_path: Path, other: Other, monkeypatch: pytest.MonkeyPatch, job: str | None, restart: str | None
) -> None:
    if job is not None:
        as_job(monkeypatch, job, restart)
    with pytest.raises(ConfigError, match=f"process {other.process.pid} on .*restart 0 of job 77"):
        lease.take(tmp_path)
    assert other.writes("still") == "wrote"


def test_an_earlier_restart_that_comes_late_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_job(monkeypatch, "77", "2")
    lease.take(tmp_path).release()
    as_job(monkeypatch, "77", "1")
    with pytest.raises(LeaseLostError, match="only restart 1"):
        lease.take(tmp_path)


def test_a_takeover_on_request_needs_a_holder_without_sign_of_life(
    tmp_path: Path, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = iter(range(1, 1000))

    def touched_meanwhile(file: Path) -> int:
        return next(shown)

    with monkeypatch.context() as patch:
        patch.setattr(lease, "_mtime", touched_meanwhile)
        with pytest.raises(ConfigError, match="is alive"):
            lease.take(tmp_path, takeover=True, expiry_seconds=1.0)
    os.kill(other.process.pid, signal.SIGSTOP)
    assert list(tmp_path.glob(".alive-*"))
    lease.take(tmp_path, takeover=True, expiry_seconds=0.2)
    os.kill(other.process.pid, signal.SIGCONT)
    assert "writes nothing more" in other.writes("second")


def test_without_locks_a_living_holder_of_this_host_is_seen_by_its_beat(
    tmp_path: Path, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(stream: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    shown = iter(range(1, 1000))
    monkeypatch.setattr("fcntl.flock", no_locks)
    with monkeypatch.context() as patch:
        patch.setattr(lease, "_mtime", lambda file: next(shown))
        with pytest.raises(ConfigError, match="is alive"):
            lease.take(tmp_path, expiry_seconds=1.0)
    assert other.writes("still") == "wrote"
    other.process.kill()
    other.process.wait()
    lease.take(tmp_path, expiry_seconds=0.2).check()


def test_a_dead_holder_of_this_host_leaves_no_wait(tmp_path: Path, other: Other) -> None:
    other.process.kill()
    other.process.wait()
    lease.take(tmp_path, expiry_seconds=1e9).check()


def test_of_a_checkpoint_on_another_disk_that_was_being_deleted_the_link_goes(tmp_path: Path) -> None:
    """Its holder was killed between the two: the link had its temporary name already."""
    (disk := tmp_path / "disk").mkdir()
    (run := tmp_path / "run/checkpoints").mkdir(parents=True)
    (run / ".tmp-iter_0000001-old-pruned").symlink_to(disk)
    lease.take(run.parent)
    assert not list(run.iterdir())
    assert disk.is_dir()


def test_a_rename_that_was_checked_before_the_takeover_finds_nothing_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_job(monkeypatch, "77")
    old = lease.take(tmp_path)
    folder = tmp_path / "checkpoints" / f".tmp-iter_0000007-{old.token}"
    folder.mkdir(parents=True)
    file = tmp_path / f".schedule.json.{old.token}.tmp"
    file.write_text("old")
    (tmp_path / ".hf.node.7.tmp-replaced").mkdir()
    (tmp_path / ".swept-0a1b").mkdir()  # its holder was killed before it was gone
    (tmp_path / ".writable-7").touch()
    old.check()
    as_job(monkeypatch, "77", "1")
    new = lease.take(tmp_path)
    for path in (folder, file):
        with pytest.raises(FileNotFoundError):
            path.rename(path.with_name("visible"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        [".lock", ".lease.lock", "lease.json", f".alive-{new.token}", "checkpoints"]
    )


def test_a_damaged_lease_is_said(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text('{"token": 1')
    with pytest.raises(ConfigError, match=r"lease\.json: cannot be read"):
        lease.take(tmp_path)
