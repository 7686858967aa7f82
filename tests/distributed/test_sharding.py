"""ZeRO stages 2 and 3 against stage 1: the same weights, masters and moments, and freely exchanged checkpoints."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from megatron_synE.sharding.bucket import Bucket, cut
from megatron_synE.sharding.bucket_size import default_bucket_size
from tests import tiny
from tests.distributed.test_resume import tensors
from tests.layouts import OVERLAP

ACCUMULATED = ["training.micro_batch_size=1"]


def stage(number: int) -> str:
    return f"parallel.zero_stage={number}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sharding")
    tiny.prepared(root, validation={"manifests": []})
    return root


@dataclass(frozen=True)
class Outcome:
    """Of five steps."""

    losses: list[float]
    norms: list[float]
    tensors: dict[str, torch.Tensor]


def outcome(run: Path) -> Outcome:
    rows = tiny.rows(run, "train")
    found = tensors(run / "checkpoints/iter_0000005")
    return Outcome([row["lm_loss"] for row in rows], [row["grad_norm"] for row in rows], found)


def trained(root: Path, name: str, *overrides: str, nproc: int = 2) -> Outcome:
    """Five steps at DP 2."""
    run = root / name
    if not run.exists():
        tiny.train(root / "run.yaml", f"run.dir={run}", *overrides, nproc=nproc)
    return outcome(run)


def distance(left: Outcome, right: Outcome, prefix: str) -> float:
    keys = [key for key in left.tensors if key.startswith(prefix)]
    assert left.tensors.keys() == right.tensors.keys()
    assert keys
    return max(float((left.tensors[key].double() - right.tensors[key].double()).abs().max()) for key in keys)


@pytest.mark.parametrize("number", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_bf16_with_one_micro_batch_equals_stage_1(root: Path, number: int) -> None:
    """Both ranks' gradients are added in fp32 once, in either order: only the norm is summed over other pieces.

    So without clipping, as one bit of fp32 in its factor can make a master round to the other bf16 weight.
    """
    whole = ("training.precision=bf16", "training.micro_batch_size=4", "training.clip_grad=0")
    plain = trained(root, "bf16-whole", *whole)
    sharded = trained(root, f"bf16-whole-{number}", *whole, stage(number))
    assert sharded.losses == plain.losses
    assert sharded.norms == pytest.approx(plain.norms, rel=1e-6)
    assert distance(sharded, plain, "optimizer.master") == 0
    assert distance(sharded, plain, "optimizer.exp_avg.") == 0


def test_bf16_clipped_differs_from_stage_1_by_a_bit_of_the_norm(root: Path) -> None:
    """Whose sum over other pieces turns a master to the other bf16 weight here and there (see below)."""
    whole = ("training.precision=bf16", "training.micro_batch_size=4")
    plain = trained(root, "bf16-clipped", *whole)
    sharded = trained(root, "bf16-clipped-2", *whole, stage(2))
    assert max(plain.norms) > 1.0, "or nothing is clipped"
    assert sharded.losses == pytest.approx(plain.losses, abs=1e-4)
    assert sharded.norms == pytest.approx(plain.norms, rel=1e-3)
    assert distance(sharded, plain, "optimizer.master") < 2e-3


@pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_bf16_accumulated_differs_from_stage_1_by_the_order_of_sums(root: Path, number: int) -> None:
    """Stage 1 adds a rank's micro-batches and then the ranks, stages 2 and 3 the other way round, all in fp32.

    The 1e-7 between the sums makes a master round to the other bf16 weight here and there, and from then on the two
    runs see weights one bf16 step apart: 2e-3 is a tenth of what 2 ** -8 of the largest weights would be.
    """
    plain = trained(root, "bf16", "training.precision=bf16", *ACCUMULATED)
    sharded = trained(root, f"bf16-{number}", "training.precision=bf16", *ACCUMULATED, stage(number))
    assert sharded.losses == pytest.approx(plain.losses, abs=1e-4)
    assert sharded.norms == pytest.approx(plain.norms, rel=1e-3)
    assert distance(sharded, plain, "optimizer.master") < 2e-3
    assert distance(sharded, plain, "optimizer.exp_avg_sq") < 1e-4


def test_gradients_summed_in_bf16_are_those_of_fp32_within_its_rounding(root: Path) -> None:
    """A bucket is in bf16 while it travels; the sum over micro-batches stays in fp32, so four of them lose nothing."""
    plain = trained(root, "bf16", "training.precision=bf16", *ACCUMULATED)
    narrow = ["training.precision=bf16", "training.grad_reduce_in_fp32=false"]
    sharded = trained(root, "bf16-narrow", *narrow, *ACCUMULATED, stage(2))
    assert sharded.losses == pytest.approx(plain.losses, abs=1e-3)
    assert sharded.norms == pytest.approx(plain.norms, rel=2e-3)  # an element is rounded to 2^-9, a norm is a mean
    first = "optimizer.exp_avg.decoder.layers.0.mlp.linear_fc1.weight"
    scale = float(plain.tensors[first].abs().max())
    assert 0 < distance(sharded, plain, first) < 0.02 * scale


@pytest.mark.parametrize(("number", "elements"), [(2, 3000), (3, 700)])
def test_buckets_of_any_size_give_the_same_sums(root: Path, number: int, elements: int) -> None:
    """3000: a layer is several buckets, its matrices slices; 700: slices of 350 columns, padding in the last ones."""
    plain = trained(root, "fp32", *ACCUMULATED)
    run = root / f"small-{number}"
    script = Path(__file__).with_name("small_buckets.py")
    overrides = [f"run.dir={run}", *ACCUMULATED, *OVERLAP, stage(number)]
    tiny.launched(2, script, elements, root / "run.yaml", *overrides)
    sharded = outcome(run)
    # fp32: sums in another order; a slice lost or taken twice is off by tens of percent.
    assert sharded.losses == pytest.approx(plain.losses, abs=1e-6)
    assert sharded.norms == pytest.approx(plain.norms, rel=1e-6)
    assert distance(sharded, plain, "decoder") < 1e-4  # Adam on gradients near zero, as in tests/parity


def test_one_run_goes_through_all_stages_with_its_moments(root: Path) -> None:
    """Iterations 1, 2-3, 4, 5 at stages 1, 2, 3, 1: without the moments or Adam's count the steps would be others."""
    straight = trained(root, "fp32", *ACCUMULATED)
    run = root / "switching"
    for number, iterations in ((1, 1), (2, 2), (3, 1)):
        tiny.train(
            root / "run.yaml", f"run.dir={run}", *ACCUMULATED, stage(number),
            f"training.stop_after_iterations={iterations}", nproc=2, code=75,
        )  # fmt: skip
    tiny.train(root / "run.yaml", f"run.dir={run}", *ACCUMULATED, nproc=2)
    switched = outcome(run)
    assert switched.losses == pytest.approx(straight.losses, abs=1e-6)
    assert switched.norms == pytest.approx(straight.norms, rel=1e-6)
    assert distance(switched, straight, "decoder") < 1e-4
    assert distance(switched, straight, "optimizer.exp_avg.") < 1e-6


def test_one_data_parallel_rank_runs_as_stage_1_and_says_so(root: Path) -> None:
    done = tiny.train(
        root / "run.yaml", f"run.dir={root / 'alone'}", stage(2), "training.stop_after_iterations=1", code=75
    )
    assert "parallel.zero_stage=2: one data-parallel rank has nobody to share with; running as stage 1" in done.stderr


class Rank:
    """A process group of which only place and size are asked."""

    def __init__(self, index: int, ranks: int) -> None:
        self._index, self._ranks = index, ranks

    def rank(self) -> int:
        return self._index

    def size(self) -> int:
        return self._ranks


def parameters(*sizes: int) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.arange(size, dtype=torch.float32) + 1000 * size) for size in sizes]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("keeps_weights", [True, False])
def test_the_ranks_parts_are_every_weight_once(ranks: int, keeps_weights: bool) -> None:
    sizes = (5, 700, 64, 1, 129)
    pieces: dict[int, list[torch.Tensor]] = {size: [] for size in sizes}
    for index in range(ranks):
        mine = parameters(*sizes)
        bucket = Bucket(
            mine, bucket_id=0, offset=0, group=Rank(index, ranks), reduce_dtype=torch.float32,  # type: ignore[arg-type]
            bucket_size=10_000, keeps_weights=keeps_weights,
        )  # fmt: skip
        bucket.let_go()
        for parameter, size in zip(mine, sizes, strict=True):
            start, _ = bucket.own_range(parameter)
            own = bucket.own_weights(parameter)
            assert own.numel() == 0 or float(own[0]) == 1000 * size + start
            assert bucket.own_gradients(parameter).shape == own.shape
            pieces[size].append(own)
    for size, parts in pieces.items():
        assert torch.equal(torch.cat(parts), torch.arange(size, dtype=torch.float32) + 1000 * size)


def test_buckets_are_cut_from_the_end_and_never_too_large() -> None:
    a, b, c, d, e = parameters(10, 500, 40, 60, 90)
    # Backward: 90, then 60 does not fit beside it in 120, 40 and 60 do, 500 stands alone, 10 opens a new one.
    cuts = cut([a, b, c, d, e], bucket_size=120)
    assert [[p.numel() for p in group] for group in cuts] == [[90], [60, 40], [500], [10]]
    c.shared_embedding = True  # type: ignore[attr-defined]
    cuts = cut([a, b, c, d, e], bucket_size=1200)
    assert [[p.numel() for p in group] for group in cuts] == [[90, 60], [40], [500, 10]]


def test_buckets_grow_with_the_ranks_up_to_a_bound() -> None:
    assert [default_bucket_size(ranks) for ranks in (2, 40, 64, 512)] == [40e6, 40e6, 64e6, 160e6]
