"""A checkpoint loaded into a model that has trained on: every rank holds the weights of then, copies of others' too."""

from pathlib import Path

import pytest
import torch

from tests import tiny

SCRIPT = Path(__file__).with_name("rolled_back.py")
TP2_SP = ["parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"]
OVERLAP = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"]


@pytest.mark.parametrize("stage", [2, 3])
def test_going_back_gives_every_rank_the_weights_that_were_saved(tmp_path: Path, stage: int) -> None:
    """TP 2 x DP 2 in fp32: weights are their own masters, so that no comparison with masters sees a stale one.

    Norms are on all TP ranks and written by the first; of a matrix one data-parallel rank may write nothing.
    """
    config = tiny.prepared(tmp_path, validation={"manifests": []})
    overrides = [f"run.dir={tmp_path / 'run'}", *TP2_SP, *OVERLAP, f"parallel.zero_stage={stage}"]
    tiny.launched(4, SCRIPT, tmp_path, config, *overrides)
    for rank in range(4):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        saved, back, end = found["saved"], found["back"], found["end"]
        assert len(saved) == 4 * 6 + 3
        for name, values in saved.items():
            assert torch.equal(back[name], values), f"rank {rank}: {name} is not what was saved"
            assert not torch.equal(end[name], values), f"rank {rank}: {name} never moves, and shows nothing"
        assert found["again"] == found["first"], f"rank {rank}"
