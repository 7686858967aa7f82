"""Files appear whole; what a process that ended left under a temporary name goes, and nobody else's does."""

import os
from pathlib import Path

from data_mixers.atomic import sweep, temporary_path

HOST = os.uname().nodename
ENDED = 99_999_999  # above any pid_max of Linux


def test_what_an_ended_process_left_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    ours = [f".a.json.{HOST}.{ENDED}.tmp", f".b.{HOST}.{ENDED}.tmp-replaced"]
    living = temporary_path(tmp_path / "a.json").name
    others = [living, f".a.json.other-{HOST}.{ENDED}.tmp", f"a.json.{HOST}.{ENDED}.tmp", f".a.{HOST}.x.tmp", "a.json"]
    for name in (ours[0], *others):
        (tmp_path / name).touch()
    (tmp_path / ours[1]).mkdir()
    (tmp_path / ours[1] / "weights").touch()
    sweep(tmp_path, "b")
    assert {path.name for path in tmp_path.iterdir()} == {ours[0], *others}
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(others)
