"""Triton's compiler takes every kernel for A100 and H100 all the way to a binary; that needs no card."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

pytest.importorskip("triton", reason="pip install --no-deps triton==3.9.0, then this compiles without a GPU")


def test_every_kernel_compiles_and_keeps_to_its_registers(tmp_path: Path) -> None:
    """The interpreter lets through what the compiler refuses: a parameter annotated with a global name, once."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(tiny.ROOT), *sys.path])}
    command = [sys.executable, Path(__file__).with_name("compile_kernels.py")]
    done = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads(done.stdout.splitlines()[-1])
    assert len(made) == 10
    assert all(size > 1000 for size, _, _ in made.values())
    assert [name for name, (_, spills, _) in made.items() if spills] == []
    assert [name for name, (_, _, narrow) in made.items() if narrow] == []
