"""A run as long in steps as the recipe's: 24,000 under the closed loop, in 54 starts, is the run of one start."""

from pathlib import Path

import pytest

from data_mixers.schedule import read_schedule
from tests import tiny
from tests.distributed.test_resume import assert_same_run

STEPS, TOKENS = 24_000, 8 * 32
TOPICS = ["math", "law", "novel", "history", "computing", "biology", "chemistry", "economics", "art", "sport", "others"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Eleven topics of web pages in either language, and books; English pages are read more than once."""
    topics = {(language, "web", topic): 250_000 for language in ("zh", "en") for topic in TOPICS}
    books = {("zh", "book", "all"): 600_000, ("en", "book", "all"): 600_000}
    tiny.manifest(tmp_path / "train", topics | books)
    tiny.manifest(tmp_path / "held", dict.fromkeys(topics, 600), role="validation", seed=9)
    sources = {"zh": {"web": 0.8, "book": 0.2}, "en": {"web": 0.9, "book": 0.1}}
    stage = {"name": "adapt", "tokens": STEPS * TOKENS, "languages": {"zh": 0.3, "en": 0.7}, "sources": sources}
    tree = tiny.run_tree(
        tmp_path, hf=tiny.hf_folder(tmp_path / "hf", num_hidden_layers=2), data={"stages": [stage]},
        training={"micro_batch_size": 8}, validation={"interval_tokens": 100 * TOKENS},
        mixture={"controller": "syne", "reweight_interval_tokens": 200 * TOKENS},
        lr_schedule={"warmup_tokens": 200 * TOKENS, "decay_tokens": 2_000 * TOKENS},
        checkpoint={"async_save": True, "interval_tokens": 150 * TOKENS, "keep_last": 3},
        logging={"interval_iterations": 1},
    )  # fmt: skip
    return tiny.write_run(tmp_path, tree)


@pytest.mark.slow
def test_a_run_of_many_starts_is_the_run_of_one(file: Path, tmp_path: Path) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    for _ in range(STEPS // 450):
        done = tiny.syne("train", "--config", file, "--nproc", 1, "training.stop_after_iterations=450")
        assert done.returncode == 75, done.stderr[-4000:]
    tiny.train(file)
    done = tiny.syne("train", "--config", file, "--nproc", 1, f"run.dir={straight}", timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same_run(run, straight)
    assert read_schedule(run) == read_schedule(straight)
    assert len(tiny.rows(run, "train")) == STEPS
    assert len(tiny.rows(run, "reweight")) > 100  # the loop moved: a plan alone would show nothing
