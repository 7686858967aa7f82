"""A decay branched from any stable checkpoint, and a start from an average, through the commands a user types."""

import json
from pathlib import Path

import pytest

from tests import tiny


def test_a_decay_begins_at_the_step_it_is_branched_from_and_an_average_is_a_start(tmp_path: Path) -> None:
    """Four stable steps of 256 tokens, a checkpoint each; the decay replaces the last two and goes two further."""
    config = tiny.prepared(tmp_path, checkpoint={"async_save": False, "interval_tokens": 256, "keep_last": None})
    parent, branch, again = (tmp_path / name for name in ("parent", "branch", "again"))
    tiny.train(config, f"run.dir={parent}", "data.stages.0.tokens=1024", "lr_schedule.decay_tokens=0")
    tiny.train(
        config, f"run.dir={branch}", "init.from=checkpoint", f"init.path={parent}/checkpoints/iter_0000002",
        "init.mode=branch", "data.stages.0.tokens=1024", "lr_schedule.decay_tokens=1024",
    )  # fmt: skip
    found = tiny.rows(branch, "train")
    # 512 tokens came before, 1024 follow, all of them the decay: 1 - sqrt of 0, 1/4, 1/2 and 3/4 of the way, by hand
    assert [row["consumed_tokens"] for row in found] == [768, 1024, 1280, 1536]
    assert [row["learning_rate"] for row in found] == pytest.approx([1e-3, 5e-4, 2.928932e-4, 1.339746e-4])
    assert json.loads((branch / "checkpoints/iter_0000004/state.json").read_text())["adam_step"] == 6
    averaged = tmp_path / "averaged"
    done = tiny.syne("average", parent, "--last", 3, "--out", averaged)
    assert done.returncode == 0, done.stderr
    tiny.train(
        config, f"run.dir={again}", "init.from=checkpoint", f"init.path={averaged}", "training.stop_after_iterations=1",
        code=75,
    )  # fmt: skip
    before = {row["set"]: row["nll"] for row in tiny.rows(again, "validation")}
    ends = {row["set"]: row["nll"] for row in tiny.rows(parent, "validation") if row["iteration"] == 4}
    assert before.keys() == ends.keys()
    assert before != ends  # other weights, and loaded: a fresh model of 256 tokens would have ln 256 = 5.55
    assert all(before[name] == pytest.approx(ends[name], abs=0.3) for name in ends)
    refused = tiny.syne(
        "train", "--config", config, "--nproc", 1, f"run.dir={tmp_path / 'no'}", "init.from=checkpoint",
        f"init.path={averaged}", "init.mode=branch",
    )  # fmt: skip
    assert refused.returncode == 4 and "holds weights only" in refused.stderr
