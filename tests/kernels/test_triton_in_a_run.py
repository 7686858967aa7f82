"""A run whose layers use the Triton kernels, in Triton's interpreter, is the run in plain torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

pytest.importorskip("triton", reason="pip install --no-deps triton==3.9.0, then this runs in its interpreter")


def test_losses_and_gradient_norms_are_those_of_plain_torch(tmp_path: Path) -> None:
    """Two steps of two rows: thousands of programs in numpy. In processes of their own: Triton reads the variable when
    it is imported, and the tests' warm process has imported it."""
    config = tiny.prepared(
        tmp_path,
        training={"global_batch_size": 2},
        data={
            "manifests": [str(tmp_path / "train")],
            "stages": [{"name": "adapt", "tokens": 2 * 2 * 32, "languages": {"zh": 0.2, "en": 0.8}}],
            "num_workers": 0,
        },
        lr_schedule={"warmup_tokens": 0, "decay_tokens": 0},
        validation={"manifests": []},
    )
    found = {}
    for kernels in ("torch", "triton"):
        run = tmp_path / kernels
        command = [sys.executable, "-m", "tools", "train", "--config", str(config), "--nproc", "1"]
        environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [*command, f"run.dir={run}", f"model.kernels={kernels}"],
            cwd=tiny.ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        assert ("SwiGLU and RoPE Triton" in done.stderr) == (kernels == "triton")
        found[kernels] = [(row["lm_loss"], row["grad_norm"]) for row in tiny.rows(run, "train")]
    assert len(found["torch"]) == 2
    for ours, theirs in zip(found["triton"], found["torch"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)  # fp32 sums in another order
