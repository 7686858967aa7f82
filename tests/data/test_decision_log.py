"""What is written of an answer to a validation, row by row and line by line, by hand."""

import json
import logging
from pathlib import Path

import pytest
import torch.distributed as dist

from data_mixers.controllers import ControllerState, Observation, TopicLosses
from data_mixers.guard import GuardDecision, GuardObservation, GuardState, ProbeAnswers
from data_mixers.mixture import GuardShift, Reweight
from megatron_synE.config.schema import LoggingSection
from megatron_synE.decision_log import lines_of, report_answer, rows_of
from megatron_synE.metrics import Metrics
from megatron_synE.mixing import Answer, GroupDecision, GuardAnswer

LOSSES = TopicLosses(nll_sums=(6.0, 3.0), tokens=(2, 1))
SHARES = (("food", 0.25), ("law", 0.75))


def answer(*, probe: bool = True, moves: bool = True) -> Answer:
    """Of one group, which read 96 tokens of law and none of food, and of the guard."""
    state = ControllerState(num_decisions=1, ratios=SHARES, planned=SHARES, recent=SHARES, average=SHARES, topics=())
    group = GroupDecision(
        observation=Observation(consumed_tokens=96, losses={"law": LOSSES}, tokens_by_topic={"law": 96, "food": 0}),
        before={"food": 0.5, "law": 0.5},
        state=state,
        reweight=Reweight(start_sample=48, group="zh/web", ratios=SHARES) if moves else None,
        notes=("law is worse",),
    )
    answers = ProbeAnswers(probe="d1", correct=(1, 0, 1, 0, 1)) if probe else None
    guard = GuardAnswer(
        observation=GuardObservation(consumed_tokens=96, losses=LOSSES, answers=answers),
        decision=GuardDecision(
            state=GuardState(language="en", rise=0.04, losses=LOSSES, answers=answers),
            change=0.5, worse=("loss",) if moves else (), notes=("English is worse",),
        ),
        shift=GuardShift(start_sample=48, language="en", rise=0.04) if moves else None,
    )  # fmt: skip
    return Answer(groups={"zh/web": group}, guard=guard)


def test_rows_hold_what_was_seen_and_what_was_decided() -> None:
    losses = {"nll_sums": [6.0, 3.0], "tokens": [2, 1]}
    observation = {
        "group": "zh/web", "consumed_tokens": 96, "losses": {"law": losses}, "tokens_by_topic": {"law": 96, "food": 0},
    }  # fmt: skip
    guard = {
        "set": "en", "consumed_tokens": 96, "losses": losses, "answers": {"probe": "d1", "correct": [1, 0, 1, 0, 1]},
        "probe_accuracy": 0.6, "change": 0.5, "worse": ["loss"], "rise": 0.04, "start_sample": 48,
        "notes": ["English is worse"],
    }  # fmt: skip
    reweight = {
        "start_sample": 48, "group": "zh/web", "ratios": {"food": 0.25, "law": 0.75}, "notes": ["law is worse"],
    }  # fmt: skip
    assert json.loads(json.dumps(list(rows_of(answer())))) == [
        ["observation", observation],
        ["reweight", reweight],
        ["topic_share", {"set": "zh/web/food", "share": 0.25}],
        ["topic_share", {"set": "zh/web/law", "share": 0.75}],
        ["guard", guard],
    ]
    unmoved = guard | {"answers": None, "probe_accuracy": None, "worse": [], "start_sample": None}
    assert json.loads(json.dumps(list(rows_of(answer(probe=False, moves=False))))) == [
        ["observation", observation],
        ["guard", unmoved],
    ]
    assert list(rows_of(Answer(groups={}, guard=None))) == []


def test_lines_say_what_a_person_wants_to_know_and_warn_of_what_is_worse() -> None:
    assert list(lines_of(answer())) == [
        (logging.INFO, "zh/web: law is worse"),
        (logging.INFO, "zh/web from sample 48 on: food 0.5000 -> 0.2500 | law 0.5000 -> 0.7500"),
        (logging.INFO, "probe: 3 of 5 items right"),
        (logging.WARNING, "English is worse"),
        (logging.INFO, "guard: from sample 48 on en has 0.04 above its planned share"),
    ]
    assert list(lines_of(answer(probe=False, moves=False))) == [
        (logging.INFO, "zh/web: law is worse"),
        (logging.INFO, "English is worse"),
    ]
    assert list(lines_of(Answer(groups={}, guard=None))) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_zero_speaks_and_writes(
    tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    caplog.set_level(logging.INFO, logger="megatron_synE.decision_log")
    file = tmp_path / "metrics.jsonl"
    metrics = Metrics(
        LoggingSection(tensorboard=False), path=file, run_name="r", enabled=rank == 0, wandb_id=None, iteration=0
    )
    report_answer(answer(), metrics, 4)
    metrics.close()
    rows = [json.loads(line) for line in file.read_text().splitlines()] if rank == 0 else []
    assert [(row["kind"], row["iteration"]) for row in rows] == (
        [(kind, 4) for kind in ("observation", "reweight", "topic_share", "topic_share", "guard")] if rank == 0 else []
    )
    assert [record.getMessage() for record in caplog.records] == (
        [line for _, line in lines_of(answer())] if rank == 0 else []
    )
