"""The four configurations of Llama-3-8B pass `syne plan` beside an HF folder, a checkpoint and data of their shape."""

import json
from pathlib import Path

import pytest

from megatron_synE.checkpoint import layout
from megatron_synE.config.examine import Examination, examine
from megatron_synE.config.load import load_config
from megatron_synE.model.llama import hf_config_of
from megatron_synE.model.presets import ARCHITECTURES
from tests.config.tiny_dataset import write_dataset
from tools.cli import main

FOLDER = Path(__file__).parents[2] / "examples" / "llama3_8b"
ZH = ("web", "encyclopedia", "book", "qa_forum")
EN = (*ZH, "paper", "math", "code")
GPUS = 128
# The stand-in data has thousands of tokens, not billions.
ANY_EPOCHS = "data.max_epochs=1e9"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    config = json.dumps(hf_config_of(ARCHITECTURES["llama3_8b"]))
    (tmp_path / "models/Meta-Llama-3-8B").mkdir(parents=True)
    (tmp_path / "models/Meta-Llama-3-8B/config.json").write_text(config, encoding="utf-8")
    pages = {("zh", source, "all"): 20000 for source in ZH} | {("en", source, "all"): 20000 for source in EN}
    write_dataset(tmp_path / "data/stage1", pages)
    write_dataset(tmp_path / "data/stage2", {("synthetic", "qa", "all"): 20000})
    write_dataset(tmp_path / "data/heldout", {("zh", "web", "law"): 200}, role="validation")
    checkpoint = tmp_path / "runs/llama3-8b-stage1/checkpoints/iter_0000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text(config, encoding="utf-8")
    (checkpoint / ".metadata").write_bytes(b"")
    layout.write_state(
        checkpoint,
        layout.CommonState(
            iteration=10,
            consumed_samples=5120,
            consumed_tokens=5120 * 8192,
            adam_step=10,
            has_optimizer=True,
            weights_dtype="bfloat16",
            tied=False,
            vocab_size=128256,
        ),
    )
    layout.write_manifest(checkpoint, {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examined(name: str, *overrides: str) -> Examination:
    return examine(load_config(FOLDER / name, overrides).resolved, world_size=GPUS, device="cuda")


@pytest.mark.parametrize("name", ["run_paper.yaml", "run_recommended.yaml", "stage1.yaml", "stage2.yaml"])
def test_plan_accepts(workplace: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", str(FOLDER / name), "--nodes", str(GPUS // 8), ANY_EPOCHS]) == 0
    printed = capsys.readouterr().out
    assert "data_parallel_size: 32" in printed
    assert "zh/web/all: " in printed  # epochs of every source


@pytest.mark.parametrize("name", ["run_paper.yaml", "run_recommended.yaml"])
def test_one_run_reads_both_stages_in_the_published_shares(workplace: Path, name: str) -> None:
    schedule = examined(name, ANY_EPOCHS).schedule
    assert schedule is not None
    first, second = schedule.phases
    # Rounded up to whole batches of 512 * 8192 tokens: less than one batch more than 92.5 B and 7.5 B.
    assert 0 <= first.num_samples * 8192 - 92_500_000_000 < 512 * 8192
    assert 0 <= second.num_samples * 8192 - 7_500_000_000 < 512 * 8192
    share = {name: weight / 2**32 for name, weight in first.weights}
    assert share["zh/web/all"] == pytest.approx(0.2 * 0.7, abs=1e-9)
    assert share["en/code/all"] == pytest.approx(0.8 * 0.15, abs=1e-9)
    assert {name: weight / 2**32 for name, weight in second.weights}["synthetic/qa/all"] == pytest.approx(0.2, abs=1e-9)


def test_too_little_data_is_refused_before_anything_starts(workplace: Path) -> None:
    faults = [str(fault) for fault in examined("run_paper.yaml").faults]
    assert len(faults) == 1
    assert "more often than allowed (data.max_epochs=4)" in faults[0]


def test_the_separate_stages_are_the_stages_of_the_recipe(workplace: Path) -> None:
    whole = load_config(FOLDER / "run_recommended.yaml").resolved.data.stages
    assert load_config(FOLDER / "stage1.yaml").resolved.data.stages == whole[:1]
    assert load_config(FOLDER / "stage2.yaml").resolved.data.stages == whole[1:]
