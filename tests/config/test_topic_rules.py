"""What a controller is told before the run: wrong names and unreachable stages are refused, idle loops are said."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_mixers.manifest import TokenizerIdentity
from megatron_synE.assemble import _validation_tokens
from megatron_synE.config.examine import Examination, examine
from megatron_synE.config.load import load_config
from megatron_synE.data.probe import SCHEMA_VERSION, Probe, ProbeItem, write_probe
from tests.config.tiny_dataset import write_dataset
from tools.cli import main

STAGE = {"name": "one", "tokens": 2000, "languages": {"zh": 0.5, "en": 0.5}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """zh web pages of two topics, zh books of two, one English topic; held out: Chinese law and food, English."""
    pages = {("zh", "web", "law"): 3000, ("zh", "web", "food"): 3000, ("en", "web", "all"): 6000}
    books = {("zh", "book", "novel"): 2000, ("zh", "book", "play"): 2000}
    write_dataset(tmp_path / "train", pages | books)
    write_dataset(tmp_path / "joins", {("zh", "web", "music"): 3000})
    held = {("zh", "web", "law"): 200, ("zh", "web", "food"): 200, ("en", "web", "all"): 200}
    write_dataset(tmp_path / "held", held, role="validation")
    write_dataset(tmp_path / "held_en", {("en", "web", "all"): 200}, role="validation")
    tree: dict[str, Any] = {
        "run": {"name": "a", "dir": "run"},
        "init": {"from": "random"},
        "model": {"preset": "llama3_8b"},
        "training": {"seq_length": 10, "global_batch_size": 10},
        "data": {"manifests": ["train"], "stages": [STAGE]},
        "validation": {"manifests": ["held"], "interval_tokens": 500},
        "mixture": {"controller": "syne", "reweight_interval_tokens": 1000},
        "device": "cpu",
    }
    (tmp_path / "run.yaml").write_text(json.dumps(tree), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examined(*overrides: str) -> Examination:
    return examine(load_config(Path("run.yaml"), overrides).resolved, world_size=1)


def stages(*more: dict[str, Any], **first: Any) -> str:
    return "data.stages=" + json.dumps([STAGE | first, *({"name": f"s{i}"} | s for i, s in enumerate(more))])


def test_a_loop_that_can_move_has_neither_faults_nor_cautions(folder: Path) -> None:
    found = examined()
    assert (found.faults, found.cautions) == ((), ())


@pytest.mark.parametrize("controller", ["static", "exponentiated_gradient"])
def test_settings_of_another_controller_are_said(folder: Path, controller: str) -> None:
    (caution,) = examined(f"mixture.controller={controller}", "mixture.settings.alpha=0.1").cautions
    assert f"alpha change nothing under mixture.controller={controller}" in caution


@pytest.mark.parametrize(
    ("override", "key", "named"),
    [
        (
            "mixture.sources=[web, page]",
            "mixture.sources",
            "page is no source of the manifests; name some of book, web",
        ),
        ("mixture.settings.importance={lawn: 2}", "mixture.settings.importance", "lawn is no topic of web"),
        ("mixture.settings.targets={play: 2}", "mixture.settings.targets", "play is no topic of web; name some of"),
        ("mixture.settings.targets={en/law: 2}", "mixture.settings.targets", "en/law is no topic of web"),
    ],
)
def test_a_name_that_nothing_answers_to_is_refused(folder: Path, override: str, key: str, named: str) -> None:
    (fault,) = examined(override).faults
    assert fault.key == key
    assert named in str(fault)
    assert examined(override, "mixture.controller=static").faults == ()


def test_a_target_of_two_languages_needs_to_say_whose_it_is(folder: Path) -> None:
    write_dataset(folder / "en_law", {("en", "web", "law"): 3000})
    both = "data.manifests=[train, en_law]"
    (fault,) = examined(both, "mixture.controller=velocitune", "mixture.settings.targets={law: 2}").faults
    assert "law is a topic of en and zh" in fault.message and fault.cure == "write en/law and zh/law"
    for settings in ("targets={zh/law: 2, en/law: 3, food: 2}", "importance={law: 2}"):
        assert examined(both, "mixture.controller=velocitune", f"mixture.settings.{settings}").faults == ()


def test_a_topic_that_joins_a_group_with_decisions_needs_its_share_written(folder: Path) -> None:
    """Found only at the first decision, it would end a run after billions of tokens."""
    zh = {"tokens": 500, "languages": {"zh": 1.0}}
    later = stages(zh | {"manifests": ["joins"]})
    (fault,) = examined(later).faults
    assert fault.key == "data.stages.1.topics"
    assert "music of zh/web is not read in stage one" in fault.message
    written = {"zh": {"web": {"law": 0.5, "food": 0.3, "music": 0.2}}}
    assert examined(stages(zh | {"manifests": ["joins"], "topics": written})).faults == ()
    # A stage in between that reads it and wrote its shares is where decisions start again.
    assert examined(stages(zh | {"topics": written}, zh, manifests=["joins"])).faults == ()
    assert examined(later, "mixture.controller=static").faults == ()
    assert examined(later, "mixture.sources=[book]").faults == ()
    # Where the controller does not decide in the stage before, there is nothing that knows its topics alone.
    assert examined(later, "mixture.stages=[s0]").faults == ()
    assert [fault.key for fault in examined(later, "mixture.stages=[one]").faults] == ["data.stages.1.topics"]
    # With one topic before, nothing has been decided.
    one = {"zh": {"web": {"law": 1.0}}}
    assert examined(stages(zh | {"manifests": ["joins"]}, topics=one)).faults == ()


def test_a_loop_whose_stages_have_nothing_that_trades_is_said(folder: Path) -> None:
    second = {"tokens": 500, "languages": {"en": 1.0}}
    assert examined(stages(second), "mixture.stages=[one]").cautions == ()
    (caution,) = examined(stages(second), "mixture.stages=[s0]").cautions
    assert "will move nothing" in caution and "mixture.stages" in caution


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data.stages.0.topics={zh: {web: {law: 1.0}}}", "will move nothing: no source of mixture.sources=['web']"),
        ("validation.manifests=[held_en]", "topics of zh/web without a held-out set keep their share: food, law"),
        ("mixture.reweight_interval_tokens=2000", "nothing will be decided"),
    ],
)
def test_a_loop_that_would_stand_still_is_said(
    folder: Path, override: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = examined(override)
    assert found.faults == ()
    (caution,) = found.cautions
    assert named in caution
    # one process is not a layout with tensor parallelism: that hides nothing of the loop
    for layout in (1, 4):
        sizes = f"parallel.tensor_model_parallel_size={layout}"
        assert main(["mix", "plan", "--config", "run.yaml", override, sizes]) == 0
        assert f"caution: {caution}" in capsys.readouterr().err


def test_a_plan_of_the_mixture_refuses_names_that_nothing_answers_to(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for override in ("mixture.stages=[oen]", "mixture.sources=[wbe]"):
        assert main(["mix", "plan", "--config", "run.yaml", override]) == 2
        assert override.partition("=")[0] in capsys.readouterr().err


def test_the_probe_is_part_of_validations_budget_and_said_to_exceed_it(folder: Path) -> None:
    items = tuple(ProbeItem(choices=((1, 2, 3), (1, 4)), answer=0) for _ in range(2))  # 10 tokens
    identity = TokenizerIdentity(digest="a" * 64, vocab_size=1000, eos_id=0, bos_id=None)
    write_probe(Probe(schema_version=SCHEMA_VERSION, language="en", tokenizer=identity, items=items), folder / "p.json")
    inside = examined("mixture.guard.probe=p.json")
    assert (inside.faults, inside.cautions) == ((), ())  # 10 of 500 tokens are 2 %
    config = load_config(Path("run.yaml"), ["validation.max_training_share=0.05"]).resolved
    assert _validation_tokens(config, inside.probe) == 15
    assert _validation_tokens(config, None) == 25
    (caution,) = examined("mixture.guard.probe=p.json", "validation.max_training_share=0.01").cautions
    assert "its 10 tokens alone are 2.0% of the tokens between two validations" in caution
