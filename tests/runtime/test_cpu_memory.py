"""Freed memory stays in the process."""

import os
import subprocess
import sys

import pytest

from tests import tiny

FAULTS = """
import resource, sys
import torch
from megatron_synE.runtime.cpu_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    blocks = [torch.ones(4_000_000) for _ in range(4)]  # 16 MB each
    del blocks
before = faults()
for _ in range(10):
    blocks = [torch.ones(4_000_000) for _ in range(4)]
    del blocks
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_blocks_freed_and_asked_for_again_are_not_faulted_in_again() -> None:
    # 40 blocks of 16 MB are 160,000 pages of 4 KB; where every page is a huge one, 320. Fresh processes: what a fork of
    # another holds and what its malloc was told is its parent's.
    plain = {"THP_MEM_ALLOC_ENABLE": "0", "MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
    kept, handed_back = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], env=os.environ | plain, cwd=tiny.ROOT, stdout=subprocess.PIPE,
                text=True, check=True, timeout=240,
            ).stdout
        )
        for how in ("keep", "default")
    )  # fmt: skip
    assert handed_back >= 320 > 100 > kept
