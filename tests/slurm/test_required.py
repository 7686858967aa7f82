"""Where Slurm is demanded, its tests cannot pass by being skipped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("demanded", "code", "said"), [("", 0, "1 skipped"), ("slurm", 1, "SYNE_REQUIRE asks for slurm")]
)
def test_no_cluster_is_a_skip_or_a_failure(tmp_path: Path, demanded: str, code: int, said: str) -> None:
    one = "tests/slurm/test_slurm_array.py::test_on_slurm[what_a_task_raises_reaches_the_caller]"
    # A stranger to the machine cannot make the nodes' namespaces, whether Slurm is installed or not.
    stranger = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    command = [*stranger, sys.executable, "-B", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", one]
    # Options of this pytest are not that one's: a report it was told to write, the stranger may not.
    environment = os.environ | {"SYNE_REQUIRE": demanded, "HOME": str(tmp_path), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout
