"""Runs the commands of a page: its ```bash blocks, one after another in one shell, as somebody types them.

A block that begins with ```bash slow takes too long for every change, ```bash cluster needs what only a cluster has;
they are left out unless asked for. `syne` is a fork of the warm process (warm.py): the same program without the seconds
that its imports take.
"""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from tests import warm

BLOCK = re.compile(r"^```bash([ a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CLIENT = Path(__file__).with_name("warm_client.py")
ROOT = Path(__file__).parents[1]


def commands(page: Path, also: Collection[str] = ()) -> list[str]:
    """The blocks of a page in their order; `also`: words after ```bash whose blocks are not left out."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for words, text in found if set(words.split()) <= set(also)]


def walk(
    page: Path, folder: Path, also: Collection[str] = (), *, before: str = "", timeout: float = 300, **environment: str
) -> str:
    """Run a page's blocks in `folder`; what they said. before: shell in front of them, in place of what a reader has.

    Errors: AssertionError with all that was said, if a command fails.
    """
    bin_folder = folder / ".walk"
    bin_folder.mkdir(parents=True)
    shim = bin_folder / "syne"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {CLIENT} {warm.address()} -m tools "$@"\n')
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    script = "\n".join(["set -euo pipefail", before, *commands(page, also)])
    path = f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=env, timeout=timeout, **both)
    assert done.returncode == 0, f"{page.name}: exit {done.returncode}\n{done.stdout}"
    return done.stdout
