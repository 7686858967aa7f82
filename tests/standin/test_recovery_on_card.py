"""A bad step on a card: what is left out, and a run that goes back, with sums and gathers in the background."""

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.layouts import ZERO2, ZERO3
from tests.standin.test_on_card import BF16, losses, on_card

pytestmark = [pytest.mark.compiler, pytest.mark.slow]
POISONED = "tests.faults.poisoned_run"
GOING_BACK = [
    "checkpoint.interval_tokens=256", "checkpoint.keep_last=null", "checkpoint.async_save=true",
    "stability.on_nan=rollback", "stability.rollback_steps=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten iterations of eight samples."""
    root = tmp_path_factory.mktemp("recovery")
    tiny.prepared(root, data={"stages": [{"name": "one", "tokens": 10 * 256, "languages": {"zh": 0.2, "en": 0.8}}]})
    return root


def norms(run: Path) -> list[float]:
    return [float(row["grad_norm"]) for row in tiny.rows(run, "train")]


@pytest.mark.parametrize(
    ("what", "overrides"),
    [("nan:43", ["stability.reexecute=true"]), ("nan:43", ZERO3), ("weight:5", ZERO2)],
    ids=["ZeRO 1", "ZeRO 3", "a broken weight under ZeRO 2"],
)
def test_a_run_that_goes_back_on_a_card_is_the_one_that_never_read_what_was_bad(
    library: Path, root: Path, tmp_path: Path, what: str, overrides: list[str]
) -> None:
    run, without = tmp_path / "run", tmp_path / "without"
    common = (root / "run.yaml", "device=cuda", BF16, *overrides)
    said = on_card(library, POISONED, what, *common, f"run.dir={run}", *GOING_BACK, ranks=2)
    assert "at iteration 6: back at iteration 3, the data of samples 24 to 47 is left out" in said
    skipped = f"data.skip_samples={json.dumps(['24:48'])}"
    on_card(library, "megatron_synE.train", *common, f"run.dir={without}", skipped, ranks=2)
    assert len(losses(run)) == 10
    assert losses(run) == losses(without) and norms(run) == norms(without)


def test_a_step_computed_again_on_a_card_tells_hardware_from_data(library: Path, root: Path, tmp_path: Path) -> None:
    given = (root / "run.yaml", "device=cuda", f"run.dir={tmp_path / 'run'}", "stability.on_spike=stop")
    again = ("stability.spike_window=4", "stability.reexecute=true")
    said = on_card(library, POISONED, "flip:5", *given, *again, ranks=2)
    assert "another loss when it was computed again on rank 1" in said and len(losses(tmp_path / "run")) == 10
