"""The four configurations of Llama-3-8B pass `syne plan` beside an HF folder, a checkpoint and data of their shape."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from data_mixers.manifest import SourceEntry, read_manifest, write_manifest
from megatron_synE.checkpoint import layout
from megatron_synE.config.examine import Examination, examine
from megatron_synE.config.load import load_config
from megatron_synE.mixing import mixture_of
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
    hold_out(tmp_path / "data/stage1", {("zh", "web", "law"): 200})
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


def hold_out(folder: Path, tokens_of: dict[tuple[str, str, str], int]) -> None:
    """Add held-out sets to a folder of training data, where --holdout puts them."""
    train = read_manifest(folder)
    held = read_manifest(write_dataset(folder, tokens_of, role="validation"))
    write_manifest(replace(train, sources=(*train.sources, *held.sources)))


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


@pytest.mark.parametrize(("name", "controller"), [("run_paper.yaml", "syne_paper"), ("run_recommended.yaml", "syne")])
def test_the_loop_is_on_and_says_that_pages_without_topics_give_it_nothing_to_move(
    workplace: Path, name: str, controller: str
) -> None:
    (caution,) = examined(name, ANY_EPOCHS).cautions
    assert f"mixture.controller={controller} will move nothing" in caution


def test_with_labelled_and_sorted_pages_the_loop_and_the_curriculum_are_planned(workplace: Path) -> None:
    """With the override that the file itself gives."""
    topics, buckets = ("law", "food"), ("00", "01")
    pages = {("zh", "web", f"{topic}-{bucket}"): 20000 for topic in topics for bucket in buckets}
    pages |= {("en", "web", topic): 20000 for topic in topics}
    rest = {("zh", source, "all"): 20000 for source in ZH[1:]} | {("en", source, "all"): 20000 for source in EN[1:]}
    manifest = read_manifest(write_dataset(workplace / "data/stage1", pages | rest))
    write_manifest(replace(manifest, sources=tuple(sorted_as_buckets(entry) for entry in manifest.sources)))
    held = {(language, "web", topic): 200 for language in ("zh", "en") for topic in topics}
    hold_out(workplace / "data/stage1", held)
    text = (FOLDER / "run_recommended.yaml").read_text(encoding="utf-8")
    (override,) = re.findall(r"^#   '(data\.stages\.0\.curriculum=.*)'$", text, re.MULTILINE)
    found = examined("run_recommended.yaml", ANY_EPOCHS, override)
    assert (found.faults, found.cautions) == ((), ())
    assert found.schedule is not None and found.plan is not None
    assert [phase.name for phase in found.schedule.phases] == [
        "bilingual_adaptation, step 1", "bilingual_adaptation, step 2", "synthetic_enhancement",
    ]  # fmt: skip
    read_first = {name for name, _ in found.schedule.phases[0].weights if name.startswith("zh/web/")}
    assert read_first == {"zh/web/law/00", "zh/web/food/00"}
    assert found.plan.reweight_interval_iterations == 2 * (found.plan.validation_interval_iterations or 0) > 0
    mixture = mixture_of(load_config(FOLDER / "run_recommended.yaml", [ANY_EPOCHS, override]).resolved, found.manifests)
    assert mixture.groups == ("en/web", "zh/web")


def sorted_as_buckets(entry: SourceEntry) -> SourceEntry:
    """A topic called law-00 is bucket 00 of law, as `syne data sort` writes it."""
    topic, _, bucket = entry.topic.partition("-")
    if not bucket:
        return entry
    return replace(entry, name=f"{entry.language}/{entry.source}/{topic}/{bucket}", topic=topic, bucket=bucket)


def test_too_little_data_is_refused_before_anything_starts(workplace: Path) -> None:
    faults = [str(fault) for fault in examined("run_paper.yaml").faults]
    assert len(faults) == 1
    assert "more often than allowed (data.max_epochs=4)" in faults[0]


def test_the_separate_stages_are_the_stages_of_the_recipe(workplace: Path) -> None:
    whole = load_config(FOLDER / "run_recommended.yaml").resolved.data.stages
    assert load_config(FOLDER / "stage1.yaml").resolved.data.stages == whole[:1]
    assert load_config(FOLDER / "stage2.yaml").resolved.data.stages == whole[1:]
