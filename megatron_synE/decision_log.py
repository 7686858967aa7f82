"""What a validation led to, for metrics.jsonl and for the log."""

import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from megatron_synE.metrics import Metrics
from megatron_synE.mixing import Answer

logger = logging.getLogger(__name__)


def report_answer(answer: Answer, metrics: Metrics, iteration: int) -> None:
    """Rows and lines of an answer. Rank 0 speaks."""
    for kind, values in rows_of(answer):
        metrics.row(kind, iteration, **values)
    if dist.get_rank() == 0:
        for level, line in lines_of(answer):
            logger.log(level, "%s", line)


def rows_of(answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, values) for metrics.jsonl: everything that `syne mix replay` needs to decide again."""
    for group, decision in answer.groups.items():
        yield "observation", {"group": group, **asdict(decision.observation)}
        if decision.reweight is not None:
            yield (
                "reweight",
                {**asdict(decision.reweight), "ratios": dict(decision.reweight.ratios), "notes": decision.notes},
            )
            for topic, share in decision.reweight.ratios:
                yield "topic_share", {"set": f"{group}/{topic}", "share": share}
    if answer.guard is not None:
        seen, decided, shift = answer.guard.observation, answer.guard.decision, answer.guard.shift
        right = None if seen.answers is None else seen.answers.correct
        yield (
            "guard",
            {
                "set": decided.state.language,
                **asdict(seen),
                "probe_accuracy": None if right is None else sum(right) / len(right),
                "change": decided.change,
                "worse": decided.worse,
                "rise": decided.state.rise,
                "start_sample": None if shift is None else shift.start_sample,
                "notes": decided.notes,
            },
        )


def lines_of(answer: Answer) -> Iterator[tuple[int, str]]:
    """(level, line) of what a person wants to read of it in the log."""
    for group, decision in answer.groups.items():
        yield from ((logging.INFO, f"{group}: {note}") for note in decision.notes)
        if decision.reweight is not None:
            moves = " | ".join(
                f"{topic} {decision.before[topic]:.4f} -> {share:.4f}" for topic, share in decision.reweight.ratios
            )
            yield logging.INFO, f"{group} from sample {decision.reweight.start_sample} on: {moves}"
    if answer.guard is not None:
        seen, decided, shift = answer.guard.observation, answer.guard.decision, answer.guard.shift
        right = None if seen.answers is None else seen.answers.correct
        if right is not None:
            yield logging.INFO, f"probe: {sum(right)} of {len(right)} items right"
        # with a rise, a new reference takes back what was added for a loss that it does not know
        has_lost = decided.change is None and decided.state.rise > 0
        level = logging.WARNING if decided.worse or has_lost else logging.INFO
        yield from ((level, note) for note in decided.notes)
        if shift is not None:
            where = f"guard: from sample {shift.start_sample} on"
            yield logging.INFO, f"{where} {shift.language} has {shift.rise:g} above its planned share"
