"""What a rank holds and sends for under ZeRO stages 2 and 3, moment by moment, and what its gradient norm counts."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

HERE = Path(__file__).parent
OVERLAP = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"]
EMBEDDING, FIRST, LAST, HEAD = 0, 1, 4, 5  # units of four layers


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.prepared(tmp_path_factory.mktemp("parts"), validation={"manifests": []})


def noted(script: str, config: Path, out: Path, *overrides: str, nproc: int) -> list[Any]:
    """What each rank wrote."""
    tiny.launched(nproc, HERE / script, out, config, f"run.dir={out / 'run'}", *overrides)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(nproc)]


@pytest.mark.parametrize("overlap", [True, False])
def test_stage_3_holds_the_weights_in_use_and_those_used_next(config: Path, tmp_path: Path, overlap: bool) -> None:
    """A gather the wrong way round, or weights that are not let go, change no number: only memory shows them."""
    background = OVERLAP if overlap else []
    for notes in noted("gathered_weights.py", config, tmp_path, "parallel.zero_stage=3", *background, nproc=2):
        ahead = {unit: [unit + 1] if overlap and unit < HEAD else [] for unit in range(6)}
        assert notes["forward"] == [[unit, [unit, *ahead[unit]]] for unit in range(6)]
        assert notes["after forward"] == [HEAD]  # the backward pass begins with it
        # Nothing is sent for the embedding, whose backward pass does not read it.
        behind = {unit: [unit - 1] if overlap and unit > FIRST else [] for unit in range(6)}
        assert notes["backward"] == [[unit, [*behind[unit], unit]] for unit in (5, 4, 3, 2, 1)]
        assert (notes["after backward"], notes["bytes after backward"]) == ([], 0)
        assert notes["sent for"] == [EMBEDDING, 1, 2, 3, 4, HEAD, LAST, 3, 2, FIRST]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_gradient_norm_counts_the_last_row_of_every_parameter_once(
    config: Path, tmp_path: Path, stage: int
) -> None:
    """TP 2 x DP 2. The square is the number of elements in last rows, of cut matrices on both TP ranks:

    embedding and head 64 columns; in each of four layers QKV 64, projection 32, gate and up 64, down 56; nine norms,
    whole on both ranks, one element each.
    """
    tp2 = ["parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"]
    norms = noted("known_gradients.py", config, tmp_path, *tp2, f"parallel.zero_stage={stage}", nproc=4)
    square = 2 * (64 + 64) + 4 * 2 * (64 + 32 + 64 + 56) + 9
    assert norms == [pytest.approx(square**0.5, rel=1e-6)] * 4  # fp32 sums of ones
