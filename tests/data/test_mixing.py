"""What the trainer asks of the mixture, without a model: decisions that the text at hand can carry."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from data_mixers.control_settings import ControllerSettings
from data_mixers.controllers import TopicLosses
from data_mixers.errors import ConfigError
from data_mixers.exhaustion import window_limits
from data_mixers.guard import GuardObservation, GuardSettings, GuardState
from data_mixers.guard import decide as decide_guard
from data_mixers.mixture import PlannedPhase
from data_mixers.sampling import Sampler
from megatron_synE.config.load import load_config
from megatron_synE.decision_log import lines_of, rows_of
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.mixing import Answer, GuardAnswer, Mixture, mixture_of
from megatron_synE.start import check_grown
from megatron_synE.validation import DocumentLosses, ValidationSet
from tests import tiny
from tests.data_mixers.orders import addresses
from tests.data_mixers.test_curriculum import entry
from tools.mix import replay

SEQ_LENGTH = 32
SAMPLES = 400  # 50 iterations of 8
DOCUMENTS = 20
TOPICS = ("law", "food", "music")


def test_a_mixture_puts_its_schedule_together_once(tmp_path: Path) -> None:
    """It is asked for some ten times in each answer to a validation, which all ranks wait for."""
    run = mixture(tmp_path, dict.fromkeys(TOPICS, 20000))
    assert run.schedule is run.schedule


def test_the_controller_decides_only_for_samples_of_its_stages(tmp_path: Path) -> None:
    """Stage one ends at sample 200; a decision at sample 176 begins at 192, one at 184 would begin at 200."""
    halves = [
        {"name": name, "tokens": SAMPLES // 2 * SEQ_LENGTH, "languages": {"zh": 0.9, "en": 0.1}}
        for name in ("one", "two")
    ]
    changes: dict[str, list[bool]] = {}
    for label, stages in (("all", None), ("one", ("one",))):
        run = mixture(tmp_path / label, dict.fromkeys(TOPICS, 20000), stages=halves, max_epochs=9.0)
        run, _ = validated(replace(run, stages=stages), dict.fromkeys(TOPICS, 2.0), at=0)
        changes[label] = []
        for number, at in enumerate((176, 184, 240), start=1):
            run, answer = validated(run, {"law": 2.0 + 0.2 * number, "food": 2.0, "music": 2.0}, at=at)
            changes[label].append(answer.changes_schedule)
    assert changes == {"all": [True, True, True], "one": [True, False, False]}


def test_a_decision_replaces_the_shares_of_when_it_will_hold(tmp_path: Path) -> None:
    """Stage two begins at sample 200: a decision at sample 176 holds from 192 on, one at 184 from 200."""
    shares = {
        "one": dict(zip(TOPICS, (0.5, 0.25, 0.25), strict=True)),
        "two": dict(zip(TOPICS, (0.2, 0.2, 0.6), strict=True)),
    }
    stages = [
        {"name": name, "tokens": SAMPLES // 2 * SEQ_LENGTH, "languages": {"zh": 0.9, "en": 0.1},
         "topics": {"zh": {"web": of_stage}}}
        for name, of_stage in shares.items()
    ]  # fmt: skip
    run = mixture(tmp_path, dict.fromkeys(TOPICS, 20000), stages=stages)
    for at, name in ((176, "one"), (184, "two")):
        assert run.ratios_next("zh/web", consumed_samples=at) == pytest.approx(shares[name])


def test_a_decision_that_begins_inside_a_range_left_out_is_taken_and_the_range_stays_out(tmp_path: Path) -> None:
    """Samples 40 to 71 are left out; decided at 32, the new shares hold from 48 on."""
    worse = {"law": 2.3, "food": 2.0, "music": 2.0}
    plain, _ = validated(mixture(tmp_path / "plain", dict.fromkeys(TOPICS, 20000)), dict.fromkeys(TOPICS, 2.0), at=0)
    skipping = plain.skipping(40, 72)
    expected, _ = validated(plain, worse, at=32)
    found, answer = validated(skipping, worse, at=32)
    assert len(expected.reweights) == 1 and expected.reweights[0].start_sample == 48
    assert found.reweights == expected.reweights
    assert not any("max_epochs" in note for note in answer.groups["zh/web"].notes)
    assert found.schedule.past_digest(48) == skipping.schedule.past_digest(48)
    left_out = set(addresses(Sampler(plain.schedule), 40, 72))
    read_then = addresses(Sampler(found.schedule), 0, SAMPLES - 32)
    assert len(set(read_then)) == SAMPLES - 32  # no window twice
    assert not left_out & set(read_then)
    assert read_then[:40] == addresses(Sampler(plain.schedule), 0, 40)


def test_a_bad_range_that_reaches_back_before_one_of_the_configuration_takes_nothing_back_in(tmp_path: Path) -> None:
    """data.skip_samples has 40:56; samples 32 to 71 turn out bad, on both sides of that range."""
    plain = mixture(tmp_path, dict.fromkeys(TOPICS, 20000))
    run = replace(plain, skips=((40, 56), (200, 208)))
    out = set(addresses(Sampler(plain.schedule), 40, 56)) | set(addresses(Sampler(run.schedule), 32, 72))
    samples = run.leavable(32, 72)
    after = run.skipping(samples.start, samples.stop)
    read_then = addresses(Sampler(after.schedule), 0, 160)
    assert not out & set(read_then)
    assert read_then[:32] == addresses(Sampler(run.schedule), 0, 32)


def test_steps_that_a_rollback_undoes_are_not_read_again_across_a_decision_nor_where_a_stage_begins(
    tmp_path: Path,
) -> None:
    """Decided at 32, other shares hold from 48 on; the second stage, at 200, brings a source of its own."""
    stage = {"tokens": SAMPLES // 2 * SEQ_LENGTH, "languages": {"zh": 0.9, "en": 0.1}}
    late = tiny.manifest(tmp_path / "late", {("en", "qa", "math"): 9000})
    stages = [{"name": "one", **stage}, {"name": "two", **stage, "manifests": [str(late.folder)]}]
    run = mixture(tmp_path, dict.fromkeys(TOPICS, 20000), late=[late], stages=stages)
    run, _ = validated(run, dict.fromkeys(TOPICS, 2.0), at=0)
    run, _ = validated(run, {"law": 2.3, "food": 2.0, "music": 2.0}, at=32)
    shares = [dict(run.schedule.phases[n].weights) for n in (0, 1)]
    risen = sum(max(0, shares[1][name] - shares[0][name]) for name in shares[0]) / 2**32
    assert 0.01 < risen < 0.1
    for start, stop, border, most in ((24, 96, 48, 1 + risen * 48), (160, 240, 200, 0)):
        bad = set(addresses(Sampler(run.schedule), start, stop))
        after = run.skipping(start, stop)
        read_then = addresses(Sampler(after.schedule), 0, 300)
        assert len(bad & set(read_then)) <= most, (border, after.schedule.skips)
        assert len(set(read_then)) == 300
        assert read_then[:start] == addresses(Sampler(run.schedule), 0, start)
        assert restored(run, after.to_dict()).schedule == after.schedule


def test_the_configuration_leaves_out_the_same_across_stages_as_a_rollback_does(tmp_path: Path) -> None:
    stage = {"tokens": SAMPLES // 2 * SEQ_LENGTH, "languages": {"zh": 0.9, "en": 0.1}}
    late = tiny.manifest(tmp_path / "late", {("en", "qa", "math"): 9000})
    stages = [{"name": "one", **stage}, {"name": "two", **stage, "manifests": [str(late.folder)]}]
    tokens = dict.fromkeys(TOPICS, 20000)
    plain = mixture(tmp_path, tokens, late=[late], stages=stages)
    asked = mixture(tmp_path, tokens, late=[late], stages=stages, skip_samples=["160:240"])
    assert asked.schedule == plain.skipping(160, 240).schedule == plain.schedule.skip(160, 240, consumed_samples=0)
    asked.check_new_skips(())


def test_what_is_set_for_a_topic_of_one_language_is_not_for_another(tmp_path: Path) -> None:
    run = mixture(tmp_path, dict.fromkeys(TOPICS, 20000))
    decided = {}
    for name in ("none", "law", "zh/law", "en/law"):
        settings = replace(run.settings, importance={} if name == "none" else {name: 0.0})
        one, _ = validated(replace(run, settings=settings), dict.fromkeys(TOPICS, 2.0), at=0)
        one, _ = validated(one, {"law": 2.3, "food": 2.0, "music": 1.9}, at=32)
        decided[name] = dict(one.reweights[0].ratios)
    assert decided["none"] == decided["en/law"] != decided["law"] == decided["zh/law"]


def test_a_plan_that_grows_under_a_decision_may_not_read_a_source_too_often(tmp_path: Path) -> None:
    """Law has text for 125 samples; the plan of 400 reads 120, of 410 samples 123, and with its share raised more."""
    tokens = {"law": 126 * SEQ_LENGTH, "food": 20000, "music": 20000}
    grown = {"name": "adapt", "tokens": 410 * SEQ_LENGTH, "languages": {"zh": 0.9, "en": 0.1},
             "topics": {"zh": {"web": dict.fromkeys(TOPICS, 1 / 3)}}}  # fmt: skip
    run, longer = (
        mixture(tmp_path / name, tokens, max_epochs=1.0, **changes)
        for name, changes in (("run", {}), ("longer", {"stages": [grown]}))
    )
    run, _ = validated(run, dict.fromkeys(TOPICS, 2.0), at=0)
    run, _ = validated(run, {"law": 2.3, "food": 2.0, "music": 2.0}, at=352)
    assert len(run.reweights) == 1
    followed = restored(longer, run.to_dict())
    check_grown(run, run.schedule)
    check_grown(longer, run.schedule)  # without the decision it lasts
    with pytest.raises(ConfigError, match=r"zh/web/law \(12[67] of 125 windows\); shorten the stage"):
        check_grown(followed, run.schedule)
    check_grown(replace(followed, renormalizes=True), run.schedule)


def test_a_guard_that_has_added_to_a_share_warns_when_its_documents_change() -> None:
    """From there on it knows nothing of the loss that it was added for, and takes it back step by step."""
    settings = GuardSettings(language="en", action="raise")
    before, other = (TopicLosses(nll_sums=(3.0 * n, 4.0 * n), tokens=(n, n)) for n in (10, 20))
    levels = {}
    for rise, losses in product((0.0, 0.04), (before, other)):
        state = GuardState(language="en", rise=rise, losses=before, answers=None)
        seen = GuardObservation(consumed_tokens=9, losses=losses, answers=None)
        decision = decide_guard(settings, state, seen)
        answer = Answer(groups={}, guard=GuardAnswer(observation=seen, decision=decision, shift=None))
        levels[rise, losses is other] = [level for level, line in lines_of(answer) if "changed" in line]
    assert levels == {
        (0.0, False): [], (0.04, False): [], (0.0, True): [logging.INFO], (0.04, True): [logging.WARNING],
    }  # fmt: skip


def test_replay_leaves_out_what_the_run_left_out_once_for_each_time_it_stayed_out(tmp_path: Path) -> None:
    """Law has text for 125 samples, the plan reads 120: with 16 samples left out it cannot rise further at 368.

    The row of what was left out stands twice, as where a kill undid the first recovery.
    """
    run = mixture(tmp_path, {"law": 126 * SEQ_LENGTH, "food": 20000, "music": 20000}, max_epochs=1.0)
    rows: list[dict[str, Any]] = []
    for at, step in ((0, 0.0), (32, 0.1), (352, 1.1), (368, 1.15)):
        if at == 32:
            run = run.skipping(8, 24)
            rows += 2 * [{"kind": "recovery", "iteration": 1, "start_sample": 8, "stop_sample": 24}]
        run, answer = validated(run, {"law": 2.0 + step, "food": 2.0 + step / 2, "music": 2.0}, at=at)
        rows += [{"kind": kind, "iteration": at // 8, **values} for kind, values in rows_of(answer)]
    assert any("law: its share stays" in note for note in answer.groups["zh/web"].notes)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "schedule.json").write_text(run.schedule.to_json())
    (tmp_path / "run.yaml").rename(tmp_path / "run_config.yaml")
    again = replay(tmp_path)
    assert [decision.iteration for decision in again] == [4, 44, 46]
    assert all(decision.is_equal for decision in again), again


def mixture(folder: Path, tokens: Mapping[str, int], *, late: Sequence[Any] = (), **data: Any) -> Mixture:
    """400 samples, 0.9 of them zh web pages in equal parts over three topics of so many tokens. late: of a stage."""
    sources = {("zh", "web", topic): count for topic, count in tokens.items()} | {("en", "web", "math"): 9000}
    manifest = tiny.manifest(folder / "train", sources)
    stage = {"name": "adapt", "tokens": SAMPLES * SEQ_LENGTH, "languages": {"zh": 0.9, "en": 0.1},
             "topics": {"zh": {"web": dict.fromkeys(TOPICS, 1 / 3)}}}  # fmt: skip
    tree = tiny.run_tree(folder, hf=None, mixture={"controller": "syne", "settings": {"ema": 1.0}})
    tree["data"] |= {"stages": [stage], **data}
    folder.mkdir(exist_ok=True)
    return mixture_of(load_config(tiny.write_run(folder, tree)).resolved, [manifest, *late])


def validated(mixture: Mixture, nll: Mapping[str, float], *, at: int) -> tuple[Mixture, Answer]:
    """The mixture after a validation at sample `at` with this loss of each topic, in nats per token."""
    sets = tuple(
        ValidationSet(f"zh/web/{topic}@holdout", "zh", "web", topic, DOCUMENTS * index, DOCUMENTS, 1)
        for index, topic in enumerate(nll)
    )
    sums = [10 * (value + 0.001 * (n % 5)) for value in nll.values() for n in range(DOCUMENTS)]
    losses = DocumentLosses(torch.tensor(sums, dtype=torch.float64), torch.full((len(sums),), 10))
    answer = mixture.answer(sets, losses, None, consumed_samples=at, reweights=True)
    return mixture.after(answer), answer


def read(mixture: Mixture) -> dict[str, int]:
    schedule = mixture.schedule
    return dict(zip([s.name for s in schedule.sources], Sampler(schedule).cursors(schedule.num_samples), strict=True))


@pytest.mark.parametrize(("exhaustion", "max_epochs"), [("repeat", 2.0), ("stop", 4.0)])
def test_a_topic_whose_text_does_not_last_is_not_raised_and_the_log_says_so(
    tmp_path: Path, exhaustion: str, max_epochs: float
) -> None:
    """Law has text for 125 samples, the plan reads 120; food and music have any amount."""
    windows = 125 / (2 if exhaustion == "repeat" else 1)
    law = int((windows + 1) * SEQ_LENGTH)
    run = mixture(tmp_path, {"law": law, "food": 20000, "music": 20000}, exhaustion=exhaustion, max_epochs=max_epochs)
    assert 120 <= run.limits["zh/web/law"] <= 127
    run, first = validated(run, {"law": 2.0, "food": 2.0, "music": 2.0}, at=0)
    assert not first.changes_schedule
    for at in range(32, SAMPLES, 32):  # law and food get worse, music better, again and again
        step = 0.1 * at / 32
        run, answer = validated(run, {"law": 2.0 + step, "food": 2.0 + step, "music": 2.0 - step / 10}, at=at)
        decision = answer.groups.get("zh/web")
        if decision is not None and decision.reweight is not None:
            ratios = dict(decision.reweight.ratios)
            assert sum(ratios.values()) == pytest.approx(1, abs=1e-12)
            assert ratios["food"] >= decision.before["food"]  # what can move does
            if ratios["law"] == decision.before["law"]:
                (note,) = [note for note in decision.notes if note.startswith("law: its share stays at")]
                assert "data.max_epochs" in note
    assert read(run)["zh/web/law"] <= run.limits["zh/web/law"]
    assert sum(r.ratios[TOPICS.index("food")][1] > 1 / 3 for r in run.reweights) >= 3
    assert {topic for topic, _ in run.reweights[-1].ratios} == set(TOPICS)


def test_where_text_abounds_the_same_topic_rises(tmp_path: Path) -> None:
    run = mixture(tmp_path, dict.fromkeys(TOPICS, 20000), max_epochs=2.0)
    run, _ = validated(run, dict.fromkeys(TOPICS, 2.0), at=0)
    run, answer = validated(run, {"law": 2.2, "food": 2.0, "music": 2.0}, at=32)
    (reweight,) = run.reweights
    assert dict(reweight.ratios)["law"] > 1 / 3 + 0.02
    assert answer.changes_schedule


def test_what_was_held_is_remembered_as_decided(tmp_path: Path) -> None:
    """Else the next decision would take the shares in force for a new plan, and its bounds would move with them."""
    run = mixture(tmp_path, {"law": 121 * SEQ_LENGTH, "food": 20000, "music": 20000}, max_epochs=1.0)
    run, _ = validated(run, dict.fromkeys(TOPICS, 2.0), at=0)
    for at, step in ((32, 0.2), (64, 0.4)):
        run, answer = validated(run, {"law": 2.0 + step, "food": 2.0 + step / 2, "music": 2.0}, at=at)
        assert not any("they are the plan now" in note for note in answer.groups["zh/web"].notes)
    planned = dict(run.states["zh/web"].planned)
    assert planned == pytest.approx(dict.fromkeys(TOPICS, 1 / 3), abs=1e-6)


def test_a_topic_whose_buckets_end_before_their_steps_do_stops_no_decision_and_keeps_its_share_and_plan() -> None:
    """Two steps of 400 samples; each bucket of law has text for 100, and 133 are planned: it ends at sample 300."""
    sources = [
        entry(topic, bucket, tokens=windows * SEQ_LENGTH + 1)
        for topic, windows in (("law", 101), ("food", 9000), ("music", 9000))
        for bucket in (0, 1)
    ]
    entries = {source.name: source for source in sources}
    buckets = [source.bucket for source in sources[:2]]
    steps = [
        {name: Fraction(int(source.bucket == bucket), 3) for name, source in entries.items()} for bucket in buckets
    ]
    run = Mixture(
        planned=tuple(PlannedPhase(name=f"{n}", stage="s", num_samples=400, weights=w) for n, w in enumerate(steps)),
        entries=entries,
        seed=1,
        seq_length=SEQ_LENGTH,
        samples_per_iteration=8,
        skips=(),
        limits=window_limits(entries, seq_length=SEQ_LENGTH, max_epochs=1.0),
        renormalizes=True,
        settings=ControllerSettings(name="syne", floor=0.0, ema=1.0, noise_level=0.0, max_shift=0.06),
        groups=("zh/web",),
        stages=None,
        guard_settings=GuardSettings(),
    )
    run, _ = validated(run, dict.fromkeys(TOPICS, 2.0), at=0)
    assert not run._weights_at(320).keys() & set(list(entries)[:2])
    run, ended = validated(run, {"law": 2.0, "food": 2.1, "music": 1.9}, at=320)
    food = dict(run.reweights[0].ratios)["food"]
    assert food == pytest.approx(1 / 3 + 0.04)  # 0.06 of the two thirds that are read
    assert run._weights_at(350)[f"zh/web/food/{buckets[0]}"] / 2**32 == pytest.approx(0.5 + 0.06, abs=1e-9)
    assert run._weights_at(400)[f"zh/web/law/{buckets[1]}"] / 2**32 == pytest.approx(1 / 3, abs=1e-9)
    assert sum(ended.groups["zh/web"].observation.tokens_by_topic.values()) == 320 * SEQ_LENGTH
    run, _ = validated(run, {"law": 2.0, "food": 2.1, "music": 1.9}, at=400)
    state = run.states["zh/web"]
    assert dict(state.planned) == pytest.approx(dict.fromkeys(TOPICS, 1 / 3))
    assert [tokens for tokens, _ in dict(state.topics)["food"].history] == [320 * SEQ_LENGTH, 400 * SEQ_LENGTH]


def test_decisions_among_the_topics_whose_text_lasted_are_followed_and_go_on(tmp_path: Path) -> None:
    """As runs took them until a topic that has ended kept its share: law lasts for 60 samples, here until 200."""
    tokens = dict.fromkeys(TOPICS, 20000) | {"law": 60 * SEQ_LENGTH + 1}
    plan = mixture(tmp_path, tokens, exhaustion="renormalize", max_epochs=1.0)
    started, _ = validated(plan, dict.fromkeys(TOPICS, 2.0), at=0)
    half, ratios = (("food", 0.5), ("music", 0.5)), (("food", 0.53), ("music", 0.47))
    state = replace(started.states["zh/web"], ratios=ratios, planned=half, recent=half, average=half, num_decisions=2)
    decision = {"start_sample": 240, "group": "zh/web", "ratios": ratios}
    content = started.to_dict() | {"reweights": [decision], "states": {"zh/web": asdict(state)}}
    run = restored(plan, content)
    assert run._weights_at(240)["zh/web/food"] / 2**32 == pytest.approx(0.9 * 0.53)
    run, answer = validated(run, {"law": 2.0, "food": 2.3, "music": 1.9}, at=264)
    group = answer.groups["zh/web"]
    assert group.before == pytest.approx({"food": 0.53, "music": 0.47})
    assert not any("they are the plan now" in note for note in group.notes)
    assert dict(group.state.planned) == dict(half)
    assert run._weights_at(280)["zh/web/food"] / 2**32 == pytest.approx(0.9 * 0.56)  # max_shift on


def test_damaged_decisions_of_a_checkpoint_are_refused_by_its_name_with_the_cure(tmp_path: Path) -> None:
    run = mixture(tmp_path, dict.fromkeys(TOPICS, 20000))
    run, _ = validated(run, dict.fromkeys(TOPICS, 2.0), at=0)
    whole = run.to_dict()
    assert restored(run, whole) == run
    state = asdict(run.states["zh/web"])
    for key, value, why in (
        ("states", {"zh/web": state | {"ratios": None}}, "states.ratios is null"),
        ("states", [], "'list' object has no attribute"),
        ("guard", {}, "missing key guard.language"),
        ("reweights", [{}], "missing key reweights.start_sample"),
        ("bad_ranges", [[1]], "not enough values"),
    ):
        with pytest.raises(CheckpointError, match=rf"^run/checkpoints/iter_0000002: .*{why}.* away, and"):
            restored(run, whole | {key: value})
    for key in whole:
        with pytest.raises(CheckpointError, match=rf"iter_0000002: .*\(no '{key}'\)"):
            restored(run, {name: value for name, value in whole.items() if name != key})


def restored(plan: Mixture, content: Mapping[str, Any]) -> Mixture:
    """As a checkpoint brings it back."""
    return plan.restored(json.loads(json.dumps({"mixture": content})), where="run/checkpoints/iter_0000002")
