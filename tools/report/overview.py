"""The first section: what each run is, how far it is and how it stands."""

from collections.abc import Sequence

import numpy as np

from megatron_synE.config.schema import InitSection
from tools.report.content import Block, Missing, Section, Table, Text
from tools.report.held_out import last_validation_ppl
from tools.report.metrics_file import Numbers
from tools.report.numbers import fixed, percent, short
from tools.report.run_record import RunRecord


def overview(runs: Sequence[RunRecord]) -> Section:
    """A column per run, then what is missing of each."""
    facts = [facts_of(run) for run in runs]
    rows = [[label, *(fact[label] for fact in facts)] for label in facts[0]]
    blocks: list[Block] = [Table(header=["", *(run.name for run in runs)], rows=rows, num_text_columns=1)]
    for run in runs:
        blocks += [Missing(f"{run.name}: {text}" if len(runs) > 1 else text) for text in run.missing]
    if any(run.missing for run in runs):
        blocks.append(Text("What could be read is shown below."))
    return Section("Overview", blocks)


def facts_of(run: RunRecord) -> dict[str, str]:
    """What a person asks first, by label."""
    metrics, config = run.metrics, run.config
    losses = metrics.column("lm_loss")
    losses = losses[np.isfinite(losses)]
    planned = run.num_iterations
    loss = f"{losses[0]:.4f} → {losses[-max(1, len(losses) // 20) :].mean():.4f}" if len(losses) else "–"
    return {
        "state": _state(run),
        "iteration": f"{run.iteration:,} of {planned:,}" if planned is not None else f"{run.iteration:,}",
        "tokens read": short(metrics.last("consumed_tokens") or 0.0),
        "stage": current_stage(run) or "–",
        "begun from": _begun_from(config.init) if config is not None else "–",
        "training loss, first → mean of last 5 %": loss,
        "held-out PPL, first → last": last_validation_ppl(run),
        "learning rate": fixed_rate(metrics.last("learning_rate")),
        "tokens per second, median": fixed(median(metrics.column("tokens_per_second"))),
        "MFU, median": percent(median(metrics.column("mfu"))),
        "goodput": percent(metrics.last("goodput")),
        "starts": str(len(run.attempts)) if run.attempts else "–",
        "data left out after anomalies": f"{len(metrics.rows['recovery'])} times",
        "sequences per step × length": f"{config.training.global_batch_size:,} × {config.training.seq_length:,}"
        if config is not None
        else "–",
        "seed": str(config.run.seed) if config is not None else "–",
    }


def fixed_rate(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.3g}"


def current_stage(run: RunRecord) -> str | None:
    """The name of the phase in which the next sample lies; None if it is not known."""
    samples = run.metrics.last("consumed_samples")
    if run.schedule is None or samples is None:
        return None
    for phase in run.schedule.phases:
        if samples < phase.end_sample:
            return phase.name
    return f"{run.schedule.phases[-1].name} (ended)" if run.schedule.phases else None


def _begun_from(init: InitSection) -> str:
    is_random = init.source == "random"  # then a path beside it is not read
    return "random weights" if is_random or init.path is None else str(init.path)


def _state(run: RunRecord) -> str:
    if run.is_finished:
        return "finished"
    if run.holder is not None and (run.folder / f".alive-{run.holder.token}").exists():
        return f"held by {run.holder}"
    return "begun, held by nobody" if run.metrics.num_steps else "not begun"


def median(values: Numbers) -> float | None:
    """Of those that are finite; None if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None
