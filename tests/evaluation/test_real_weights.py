"""SmolLM2-135M's real weights: the harness has the same answers of our export as of the folder they came from."""

from pathlib import Path

import pytest

from examples.quickstart.weights import unpack_weights
from megatron_synE.checkpoint.hf_export import write_hf_folder
from tests.evaluation import data_sets
from tests.synthesis.real_packages import chat_model
from tools.checkpoint.importer import import_hf
from tools.evaluation.compare import compare_results
from tools.evaluation.evaluate import evaluate
from tools.evaluation.options import EvalOptions
from tools.evaluation.results import read_task

SUITE = """
name: real
what: a choice and a written answer
benchmarks:
  - {name: ARC-E, group: science, language: en, tasks: [syne_arc_easy], shots: 0, metric: acc, chance: 0.3}
  - {name: PHY, group: science, language: en, tasks: [syne_scieval_physics], shots: 2, metric: exact_match, chance: 0.3}
"""
PROBE = """
name: some
what: the probe without code
benchmarks:
  - {name: OpenBookQA, group: e, language: en, tasks: [syne_openbookqa], shots: 0, metric: acc_norm, chance: 0.25}
  - {name: zh, group: c, language: zh, tasks: [syne_zh_questions], shots: 0, metric: acc, chance: 0.25}
  - {name: ASDiv, group: m, language: en, tasks: [syne_asdiv], shots: 8, metric: exact_match, chance: 0.0, limit: 32}
  - {name: GSM8K, group: m, language: en, tasks: [syne_gsm8k], shots: 8, metric: exact_match, chance: 0.0, limit: 32}
"""
QUESTIONS = [
    ("Which of these is a metal?", ["wood", "iron", "glass", "paper"], "B"),
    ("What do plants need to make food?", ["sunlight", "sand", "oil", "salt"], "A"),
    ("Which planet do we live on?", ["Mars", "Venus", "Earth", "Jupiter"], "C"),
    ("Water freezes into", ["steam", "air", "stone", "ice"], "D"),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assets = tmp_path_factory.mktemp("assets")
    (assets / "python").symlink_to(chat_model().parent.parent)
    return unpack_weights(assets, assets / "original")


def equal_answers(original: Path, root: Path, *, data: Path, offline: bool, suite: str) -> dict[str, int]:
    """Evaluate both folders and compare every item; gives the number of items by benchmark."""
    import_hf(original, root / "checkpoint", verify=False)
    write_hf_folder(root / "checkpoint", root / "exported", verify=False)
    assert not (original / "model.safetensors").samefile(root / "exported/model.safetensors")
    folders = []
    for model in (original, root / "exported"):
        options = EvalOptions(
            model=model, suite=suite, out=root / "out", data=data, offline=offline, device="cpu", batch_size=4
        )
        (results,) = evaluate(options)
        assert results.complete
        folders.append(results.folder)
    comparison = compare_results(folders)
    for row in comparison.rows:
        (change,) = row.changes
        assert (change.difference, change.only_base, change.only_model) == (0.0, 0, 0)
    for file in sorted((folders[0] / "tasks").glob("*.json")):
        one, other = (read_task(folder, file.stem) for folder in folders)
        assert one is not None and other is not None
        assert one.items == other.items  # answers, likelihoods and prompts, bit for bit
    return {row.name: row.num_items for row in comparison.rows}


def test_our_export_answers_as_the_original_does(original: Path, tmp_path: Path) -> None:
    data_sets.write_science(tmp_path / "data", 3)
    rows = [
        {"id": str(i), "question": question, "choices": {"text": texts, "label": list("ABCD")}, "answerKey": key}
        for i, (question, texts, key) in enumerate(QUESTIONS)
    ]
    data_sets.parquet(tmp_path / "data/allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet", rows)
    suite = tmp_path / "real.yaml"
    suite.write_text(SUITE)
    counts = equal_answers(original, tmp_path, data=tmp_path / "data", offline=True, suite=str(suite))
    assert counts == {"ARC-E": 4, "PHY": 3}


@pytest.mark.slow
def test_our_export_answers_the_probe_as_the_original_does(original: Path, tmp_path: Path) -> None:
    """Packaged sets: all of OpenBookQA and the Chinese questions, 32 word problems of each kind."""
    suite = tmp_path / "probe.yaml"
    suite.write_text(PROBE)
    counts = equal_answers(original, tmp_path, data=tmp_path / "data", offline=False, suite=str(suite))
    assert counts["OpenBookQA"] == 500
    assert counts["ASDiv"] == counts["GSM8K"] == 32
