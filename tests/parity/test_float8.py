"""Runs in FP8 against runs in bf16: they learn alike, on one rank and split over two; and what is refused."""

from pathlib import Path

import pytest

from tests import tiny
from tests.layouts import TP2_SP

STEPS = 20


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps of bf16, in a model all of whose products are multiples of 16, also halved."""
    root = tmp_path_factory.mktemp("float8")
    tiny.hf_folder(root / "hf", intermediate_size=128)
    tiny.manifest(root / "train", tiny.TWO_LANGUAGES)
    tree = tiny.run_tree(
        root, hf=root / "hf", tokens=STEPS * 8 * 32, training={"precision": "bf16"}, optimizer={"lr": 3e-3},
        validation={"manifests": []},
    )  # fmt: skip
    return tiny.write_run(root, tree)


def losses(config: Path, run: Path, *overrides: str, nproc: int = 1) -> list[float]:
    tiny.train(config, f"run.dir={run}", "training.stop_after_iterations=null", *overrides, nproc=nproc)
    return [row["lm_loss"] for row in tiny.rows(run, "train")]


FP8 = {
    "tensorwise hybrid": (1, ["training.fp8=hybrid"]),
    "rowwise e4m3": (1, ["training.fp8=e4m3", "training.fp8_recipe=rowwise"]),
    "tensorwise, TP2 SP": (2, ["training.fp8=hybrid", *TP2_SP]),
}


@pytest.fixture(scope="module")
def in_bf16(config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(config, tmp_path_factory.mktemp("bf16") / "run")


@pytest.mark.parametrize("name", FP8)
def test_a_run_in_fp8_learns_as_one_in_bf16(config: Path, in_bf16: list[float], tmp_path: Path, name: str) -> None:
    nproc, overrides = FP8[name]
    found = losses(config, tmp_path / "run", *overrides, nproc=nproc)
    assert in_bf16[0] - in_bf16[-1] > 0.5
    assert found != in_bf16
    # The largest gap seen was 0.022, of a loss that falls by 0.79; a gradient of the wrong sign anywhere is far off.
    assert found == pytest.approx(in_bf16, abs=0.05)
