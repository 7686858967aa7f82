"""Sums and gathers over gloo: to the bit those added up by hand in the order of ranks, also in a part of the world."""

from pathlib import Path

import pytest

from tests import tiny

BUILT = """
import sys
from pathlib import Path
import megatron_synE.runtime.mcore as mcore
from megatron_synE.config.load import load_config
from megatron_synE.runtime import gloo
from megatron_synE.runtime.environment import ALONE
from megatron_synE.train import build_trainer

config = Path(sys.argv[1])
build_trainer(load_config(config, []), config, ALONE)
buffers = mcore.mcore_param_and_grad_buffer
assert buffers.dist_reduce_scatter_func is gloo.reduce_scatter and buffers.dist_all_gather_func is gloo.all_gather
"""
RANK = Path(__file__).with_name("gloo_rank.py")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_rank_has_its_part_of_the_sum_and_all_parts(ranks: int) -> None:
    tiny.launched(ranks, RANK, ranks)


def test_a_trainer_on_a_cpu_sums_and_gathers_by_them(tmp_path: Path) -> None:
    done = tiny.python("-c", BUILT, tiny.prepared(tmp_path))
    assert done.returncode == 0, done.stderr


ON_ONE_CORE = """
import os, sys
from megatron_synE.runtime.launch import launch
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
os.cpu_count = lambda: 64  # of the node; the job has one of them
os.environ.pop("OMP_NUM_THREADS")
sys.exit(launch(["-c", "import os; print(os.environ['OMP_NUM_THREADS'])"], 2))
"""


def test_local_ranks_share_the_cores_that_this_process_may_use() -> None:
    done = tiny.python("-c", ON_ONE_CORE)
    assert (done.returncode, done.stdout.split()) == (0, ["1", "1"]), done.stderr
