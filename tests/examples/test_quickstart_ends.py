"""What the quickstart reads of a run's own metrics, which end with the row of a checkpoint."""

import json
from pathlib import Path

import pytest

from examples.quickstart.__main__ import fitted_tokens, say_where
from tests import tiny


def test_the_next_command_asks_for_as_many_tokens_as_a_real_run_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.train(tiny.prepared(tmp_path))
    run = tmp_path / "run"
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert "consumed_tokens" not in last  # else this shows nothing
    say_where(tmp_path, "bilingual", run, tmp_path / "hf", 60.0)
    printed = capsys.readouterr().out
    assert "finished after 1.0 minutes" in printed
    assert "--arm chinese_only --tokens 1280\n" in printed  # 5 steps of 8 samples of 32 tokens
    # 1e9 s: no more than the most that the example trains on.
    assert fitted_tokens(run, left=1e9) == 200_000
