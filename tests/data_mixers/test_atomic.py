"""Files appear whole; what a process that ended left under a temporary name goes, and nobody else's does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_mixers.atomic import sweep, temporary_path

ENDED = 99_999_999  # above any pid_max of Linux
WRITER = """
import sys
from pathlib import Path
from data_mixers.atomic import temporary_path
temporary_path(Path(sys.argv[1])).touch()
print("begun", flush=True)
sys.stdin.read()
"""


def left_of(target: str, ending: str = "tmp") -> str:
    """The temporary name of a process that has ended."""
    return f"{temporary_path(Path(target)).name.removesuffix(f'{os.getpid()}.tmp')}{ENDED}.{ending}"


def test_what_an_ended_process_left_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    host, ours = os.uname().nodename, [left_of("a.json"), left_of("b", "tmp-replaced")]
    living = temporary_path(tmp_path / "a.json").name
    others = [
        living, left_of("a.json").replace(f".{host}", f".other-{host}"), left_of("a.json")[1:],
        left_of("a.json").replace(str(ENDED), "x"), "a.json",
        # of a machine "b", while a part of the target's name is that of this one
        f".{temporary_path(Path('a')).name.removesuffix(f'.{os.getpid()}.tmp')[1:]}.b.1.{ENDED}.tmp",
    ]  # fmt: skip
    for name in (ours[0], *others):
        (tmp_path / name).touch()
    (tmp_path / ours[1]).mkdir()
    (tmp_path / ours[1] / "weights").touch()
    sweep(tmp_path, "b")
    assert {path.name for path in tmp_path.iterdir()} == {*ours, *others}
    sweep(tmp_path, "b", replaced=True)
    assert {path.name for path in tmp_path.iterdir()} == {ours[0], *others}
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_what_a_process_of_another_container_writes_stays(tmp_path: Path) -> None:
    """The machine's name is the same and so may its number be, which no process has here."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare --pid is refused: only root, or who may make namespaces, can be another container")
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", WRITER]
    with subprocess.Popen(
        [*command, str(tmp_path / "a.json")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "begun\n"
        (temporary,) = tmp_path.iterdir()
        number = temporary.name.split(".")[-2]
        temporary.rename(elsewhere := temporary.with_name(temporary.name.replace(f".{number}.tmp", f".{ENDED}.tmp")))
        sweep(tmp_path)
        assert elsewhere.exists()
        assert temporary.name != temporary_path(tmp_path / "a.json").name.replace(str(os.getpid()), number)
        writer.communicate("")


def test_another_users_process_that_proc_does_not_show_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """proc(5), hidepid=2: no /proc/<pid>; kill(2) says EPERM all the same."""

    def kill(pid: int, signal: int) -> None:
        assert (pid, signal) == (ENDED, 0)
        raise PermissionError

    left = tmp_path / left_of("a.json")
    left.touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", kill)
        sweep(tmp_path)
    assert left.exists()
    sweep(tmp_path)
    assert not left.exists()
