"""A disk that is full, read-only, or cannot sync: an error that says so, and the checkpoints that were there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

NAMESPACE = ["unshare", "--map-root-user", "--mount"]


def test_a_save_on_a_full_a_read_only_and_a_broken_disk(tmp_path: Path) -> None:
    probe = subprocess.run(
        [*NAMESPACE, "mount", "-t", "tmpfs", "syne", str(tmp_path)], capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip(f"no mount namespace here: {probe.stderr.decode().strip()}")
    script = Path(__file__).with_name("bad_disk.py")
    done = subprocess.run(
        [*NAMESPACE, sys.executable, str(script), str(tmp_path / "run")],
        cwd=tiny.ROOT, capture_output=True, text=True, check=False, timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tiny.ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = re.search(r"each of (\d+) fsyncs of a save failed once; (\d+) of them after the rename", done.stdout)
    assert found is not None and int(found[1]) >= 8
