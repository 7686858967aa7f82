"""What an acceptance concludes from the numbers of two runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.slurm import acceptance_run


@pytest.mark.parametrize(("loss", "weight"), [(float("nan"), 1.0), (2.0, float("nan")), (float("inf"), 1.0)])
def test_what_is_no_number_agrees_with_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float, weight: float
) -> None:
    class Reader:
        keys = ("a", "b")

        def __init__(self, folder: Path) -> None:
            self.value = weight if "left" in str(folder) else 1.0

        def shape(self, key: str) -> tuple[int, ...]:
            return (2,)

        def read(self, key: str, *_: Any) -> torch.Tensor:
            return torch.tensor([1.0, self.value])

    monkeypatch.setattr("megatron_synE.checkpoint.chunk_reader.ChunkReader", Reader)
    for name, value in (("left", loss), ("right", 2.0)):
        (tmp_path / name).mkdir()
        rows = [{"kind": "train", "lm_loss": value}, {"kind": "train", "lm_loss": 1.0}]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    differences, agree = acceptance_run._differences(tmp_path / "left", tmp_path / "right")
    assert differences["loss_difference"] == (float("inf") if loss != 2.0 else 0.0)
    assert differences["weight_difference"] == (float("inf") if weight != 1.0 else 0.0)
    assert agree == (weight == 1.0)
