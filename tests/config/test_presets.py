"""The published figures, typed again from the recipe, against the presets."""

import copy
from pathlib import Path

import pytest

from megatron_synE.config.load import load_config
from megatron_synE.config.presets import DEVIATIONS, PRESETS
from megatron_synE.config.schema import RunConfig


def resolved(folder: Path, preset: str) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(f"{{preset: {preset}, run: {{name: a, dir: r}}, data: {{manifests: [m]}}}}", encoding="utf-8")
    return load_config(path).resolved


@pytest.fixture
def paper(tmp_path: Path) -> RunConfig:
    return resolved(tmp_path, "syne_paper")


def test_paper_stages(paper: RunConfig) -> None:
    first, second = paper.data.stages
    assert (first.tokens, second.tokens) == (92_500_000_000, 7_500_000_000)
    assert first.languages == {"zh": 0.2, "en": 0.8}
    assert second.languages == {"zh": 0.1, "en": 0.7, "synthetic": 0.2}
    for stage in (first, second):
        assert stage.sources["zh"] == {"web": 0.70, "encyclopedia": 0.05, "book": 0.20, "qa_forum": 0.05}
        assert stage.sources["en"] == {
            "web": 0.40,
            "encyclopedia": 0.05,
            "book": 0.15,
            "qa_forum": 0.05,
            "paper": 0.10,
            "math": 0.10,
            "code": 0.15,
        }


def test_paper_totals_per_source_are_the_published_billions(paper: RunConfig) -> None:
    totals: dict[str, float] = {}
    for stage in paper.data.stages:
        for language, share in stage.languages.items():
            for source, part in stage.sources.get(language, {"synthetic": 1.0}).items():
                totals[source] = totals.get(source, 0.0) + stage.tokens * share * part / 1e9
    published = {
        "web": 45.175,
        "encyclopedia": 4.925,
        "book": 15.7375,
        "qa_forum": 4.925,
        "paper": 7.925,
        "math": 7.925,
        "code": 11.8875,
        "synthetic": 1.5,
    }
    assert totals == pytest.approx(published, rel=1e-12)


def test_paper_optimisation(paper: RunConfig) -> None:
    assert paper.training.seq_length == 8192
    assert paper.training.precision == "bf16"
    assert paper.training.clip_grad == 1.0
    assert paper.training.recompute == "full"
    assert paper.mixture.stages == (paper.data.stages[0].name,)
    assert paper.parallel.zero_stage == 2
    assert (paper.optimizer.lr, paper.lr_schedule.start_lr) == (1e-5, 1e-7)
    assert (paper.optimizer.adam_beta1, paper.optimizer.adam_beta2) == (0.9, 0.95)
    assert (paper.lr_schedule.style, paper.lr_schedule.warmup_tokens) == ("wsd", 10_000_000_000)
    assert paper.lr_schedule.decay_tokens == 0
    assert paper.data.document_masking is False


def test_batch_size_weight_decay_and_interval_are_marked_ours() -> None:
    source = Path(__file__).parents[2].joinpath("megatron_synE/config/presets.py").read_text(encoding="utf-8")
    for key in ('"global_batch_size"', '"weight_decay"', '"reweight_interval_tokens"'):
        (line,) = [line for line in source.splitlines() if key in line]
        assert "# ours" in line


def test_recommended_differs_from_paper_exactly_where_the_table_says() -> None:
    expected = copy.deepcopy(PRESETS["syne_paper"])
    for section, values in DEVIATIONS.items():
        for name, value in values.items():
            assert expected[section].get(name) != value
            expected[section][name] = value
    assert PRESETS["syne_recommended"] == expected
    assert "decay_style" not in PRESETS["syne_paper"]["lr_schedule"]


def test_recommended_masks_documents_and_decays_over_the_last_eight_percent(tmp_path: Path) -> None:
    config = resolved(tmp_path, "syne_recommended")
    assert config.data.document_masking is True
    assert config.lr_schedule.decay_tokens / sum(stage.tokens for stage in config.data.stages) == 0.08
    assert config.lr_schedule.decay_style == "1-sqrt"
