"""In fp32 a run on a card is the CPU's up to the order of sums: bf16 lets a sum that is left out pass for rounding."""

from pathlib import Path

import pytest

from tests import tiny
from tests.layouts import CP2, PP2, TP2_SP, VPP, ZERO3
from tests.standin.test_on_card import on_card

pytestmark = pytest.mark.compiler
LAYOUTS = {
    "TP 2 SP": (2, TP2_SP),
    "TP 2 SP CP 2": (4, [*TP2_SP, *CP2]),
    "PP 2 CP 2": (4, [*PP2, *CP2]),
    "VPP DP 2 ZeRO 3": (4, [*VPP, *ZERO3]),
    "DP 2, other micro-batches, readers": (
        2,
        ["training.micro_batch_size=1", "validation.micro_batch_size=4", "data.num_workers=2"],
    ),
}
IN_MAKE_TEST = 1


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fp32")
    tiny.prepared(root)
    tiny.train(root / "run.yaml", f"run.dir={root / 'cpu'}")
    return root


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tied")
    tiny.prepared(root)
    tiny.hf_folder(root / "hf", tie_word_embeddings=True)
    tiny.train(root / "run.yaml", f"run.dir={root / 'cpu'}")
    return root


def check(run: Path, cpu: Path) -> None:
    """The norm sees a gradient that one rank lacks, of a norm's weight too."""
    for kind, keys, count in (("train", ("lm_loss", "grad_norm"), 5), ("validation", ("nll",), 4)):
        for key in keys:
            found, expected = ([float(row[key]) for row in tiny.rows(each, kind)] for each in (run, cpu))
            assert len(found) == count and found == pytest.approx(expected, rel=1e-6), key


@pytest.mark.parametrize(
    "layout",
    [*LAYOUTS][:IN_MAKE_TEST] + [pytest.param(each, marks=pytest.mark.slow) for each in [*LAYOUTS][IN_MAKE_TEST:]],
)
def test_a_run_in_fp32_on_a_card_is_that_of_the_cpu(library: Path, root: Path, tmp_path: Path, layout: str) -> None:
    ranks, overrides = LAYOUTS[layout]
    given = (root / "run.yaml", "device=cuda", f"run.dir={tmp_path / 'run'}", *overrides)
    on_card(library, "megatron_synE.train", *given, ranks=ranks)
    check(tmp_path / "run", root / "cpu")


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "overrides"), [(2, PP2), (4, [*PP2, *ZERO3])], ids=["PP 2", "PP 2 ZeRO 3"])
def test_tied_embeddings_on_a_card_are_those_of_the_cpu(
    library: Path, tied: Path, tmp_path: Path, ranks: int, overrides: list[str]
) -> None:
    given = (tied / "run.yaml", "device=cuda", f"run.dir={tmp_path / 'run'}", *overrides)
    on_card(library, "megatron_synE.train", *given, ranks=ranks)
    check(tmp_path / "run", tied / "cpu")


@pytest.mark.slow
def test_a_run_goes_from_the_cpu_to_cards_and_back(library: Path, root: Path, tmp_path: Path) -> None:
    run, stop = f"run.dir={tmp_path / 'run'}", "training.stop_after_iterations=2"
    tiny.train(root / "run.yaml", run, stop, code=75)
    given = (root / "run.yaml", "device=cuda", run, stop, *TP2_SP, "checkpoint.async_save=true")
    on_card(library, "megatron_synE.train", *given, ranks=2, code=75)
    tiny.train(root / "run.yaml", run, nproc=2)
    check(tmp_path / "run", root / "cpu")
