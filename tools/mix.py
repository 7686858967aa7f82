"""`syne mix`: what a run will read, what two schedules differ in, and a run's decisions taken again."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_mixers.controllers import Observation, TopicLosses
from data_mixers.errors import DataError, UserError
from data_mixers.guard import GuardObservation, ProbeAnswers
from data_mixers.manifest import SourceEntry
from data_mixers.mixture import GuardShift, Reweight
from data_mixers.sampling import Sampler
from data_mixers.schedule import read_schedule
from megatron_synE.config.examine import examine
from megatron_synE.config.fault import require
from megatron_synE.config.load import load_config
from megatron_synE.mixing import Mixture, mixture_of

SAME_SHARE = 1e-9  # decisions are written in full; this only forgives another libm


@dataclass(frozen=True)
class ReadPart:
    """What one phase reads of one source."""

    phase: str
    start_sample: int
    source: str
    share: float
    tokens: int
    epochs: float
    """Read of this source at the end of the phase, since the start of the run; what was left out counts too."""
    quantiles: str
    """Range of PPL quantiles of the source's topic that its bucket holds; "" without buckets."""


def planned_reads(config: Path, overrides: Sequence[str]) -> tuple[list[ReadPart], dict[str, tuple[int, int]]]:
    """(what each phase reads, source -> (tokens read, tokens there)) of the plan, before any decision.

    Errors: ConfigError with every fault of the data, its shares and what decides on them.
    """
    loaded = load_config(config, overrides)
    examination = examine(loaded.resolved, world_size=1)
    decides = ("data.", "mixture.", "validation.")
    require([fault for fault in examination.faults if fault.key.startswith(decides)], where=str(config))
    sys.stderr.writelines(f"caution: {line}\n" for line in examination.cautions)
    mixture = mixture_of(loaded.resolved, examination.manifests)
    return reads(mixture)


def reads(mixture: Mixture) -> tuple[list[ReadPart], dict[str, tuple[int, int]]]:
    """The same for a plan with its decisions."""
    schedule = mixture.schedule
    sampler = Sampler(schedule)
    quantiles = _bucket_quantiles(mixture)
    parts: list[ReadPart] = []
    before = sampler.read(0)
    for phase in schedule.phases:
        after, epochs = sampler.read(phase.end_sample), sampler.epochs_read(phase.end_sample)
        for source, old, new in zip(schedule.sources, before, after, strict=True):
            if new > old:
                parts.append(
                    ReadPart(
                        phase=phase.name,
                        start_sample=phase.start_sample,
                        source=source.name,
                        share=(new - old) / phase.num_samples,
                        tokens=(new - old) * schedule.seq_length,
                        epochs=epochs[source.name],
                        quantiles=quantiles.get(source.name, ""),
                    )
                )
        before = after
    read = {s.name: count * schedule.seq_length for s, count in zip(schedule.sources, before, strict=True)}
    return parts, {
        name: (read.get(name, 0), entry.num_tokens) for name, entry in mixture.entries.items() if entry.role == "train"
    }


def _bucket_quantiles(mixture: Mixture) -> dict[str, str]:
    """Source -> the shares of its topic's tokens between which its bucket lies in the order of difficulty."""
    topics: dict[tuple[str, str, str], list[SourceEntry]] = {}
    for entry in mixture.entries.values():
        if entry.bucket is not None and entry.role == "train":
            topics.setdefault((entry.language, entry.source, entry.topic), []).append(entry)
    quantiles = {}
    for entries in topics.values():
        total = sum(entry.num_tokens for entry in entries)
        before = 0
        for entry in sorted(entries, key=lambda entry: entry.bucket or ""):
            after = before + entry.num_tokens
            quantiles[entry.name] = f"{before / total:.2f}-{after / total:.2f}"
            before = after
    return quantiles


@dataclass(frozen=True)
class Replayed:
    """One decision of a run, and the same taken again from what the run saw."""

    iteration: int
    group: str
    """A controller's, or "guard": its language and that one's rise stand for topic and share."""
    recorded: dict[str, float]
    again: dict[str, float]

    @property
    def is_equal(self) -> bool:
        return self.recorded.keys() == self.again.keys() and all(
            abs(self.recorded[topic] - self.again[topic]) <= SAME_SHARE for topic in self.recorded
        )


def replay(run: Path, overrides: Sequence[str] = ()) -> list[Replayed]:
    """Take every decision of a run again, from the losses it recorded, under its own settings or changed ones.

    overrides: e.g. mixture.controller=ado: what another controller would have decided at the losses this run saw.
    Errors: DataError naming the file if the run has no record.
    """
    rows = _rows(run / "metrics.jsonl")
    loaded = load_config(run / "run_config.yaml", overrides)
    examination = examine(loaded.resolved, world_size=1)
    require([fault for fault in examination.faults if fault.key.startswith("data.")], where=str(run))
    mixture = mixture_of(loaded.resolved, examination.manifests)
    recorded = {(row["iteration"], row["group"]): row for _, row in rows if row["kind"] == "reweight"}
    replayed = []
    for number, row in rows:
        try:
            if row["kind"] == "observation":
                mixture, again = _reweighted(mixture, row, recorded.get((row["iteration"], row["group"])))
            elif row["kind"] == "guard" and row["set"] == mixture.guard_settings.language:
                mixture, again = _guarded(mixture, row)
            elif row["kind"] == "recovery":
                mixture, again = _without(mixture, row, run), None
            else:
                continue
        # What a line that no run wrote can be wrong in: a key, a type, a number, a decision that fits no plan.
        except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
            raise DataError(
                f"{run / 'metrics.jsonl'}, line {number}: cannot be taken again ({type(error).__name__}: {error}); "
                "restore the file as the run wrote it"
            ) from error
        if again is not None:
            replayed.append(again)
    return replayed


def _rows(metrics: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, row). Errors: DataError naming file and line for anything that is no row."""
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{metrics} cannot be read: {error}; name the folder of a run") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not {"kind", "iteration"} <= row.keys() or (row["kind"] == "reweight" and "group" not in row):
                raise ValueError("a row has a kind and an iteration")
        except (ValueError, AttributeError) as error:
            raise DataError(
                f"{metrics}, line {number}: no row of a run ({error}); a run that was killed mends its file when it is "
                "resumed, else restore it"
            ) from error
        rows.append((number, row))
    return rows


def _reweighted(mixture: Mixture, row: dict[str, Any], taken: dict[str, Any] | None) -> tuple[Mixture, Replayed | None]:
    """(the mixture after what the run decided, the decision taken again); None at the first validation."""
    group = row["group"]
    # `before` is what the run had in force then: under changed settings too, since its losses came from it.
    observation = Observation(
        consumed_tokens=row["consumed_tokens"],
        losses={topic: _losses(losses) for topic, losses in row["losses"].items()},
        tokens_by_topic=row["tokens_by_topic"],
    )
    decision = mixture.decided(group, observation)
    in_force = dict(taken["ratios"] if taken is not None else decision.before)
    state = replace(decision.state, ratios=tuple(sorted(in_force.items())))
    mixture = replace(mixture, states={**mixture.states, group: state})
    if taken is not None:
        kept = Reweight(start_sample=taken["start_sample"], group=group, ratios=tuple(taken["ratios"].items()))
        mixture = replace(mixture, reweights=(*mixture.reweights, kept))
    if row["iteration"] == 0:
        return mixture, None
    again = dict(decision.before if decision.reweight is None else decision.reweight.ratios)
    return mixture, Replayed(row["iteration"], group, in_force, again)


def _without(mixture: Mixture, row: dict[str, Any], run: Path) -> Mixture:
    """The mixture without what the run left out; as it is for a row whose step a kill undid, so that it came again."""
    without = mixture.skipping(row["start_sample"], row["stop_sample"])
    return without if Counter(without.schedule.skips) <= Counter(read_schedule(run).skips) else mixture


def _guarded(mixture: Mixture, row: dict[str, Any]) -> tuple[Mixture, Replayed | None]:
    """The same of the guard; None at the first validation, and for a guard that only warns."""
    is_first = mixture.guard is None
    asked = row["answers"]
    answer = mixture.guarded(
        GuardObservation(
            consumed_tokens=row["consumed_tokens"],
            losses=None if row["losses"] is None else _losses(row["losses"]),
            answers=None if asked is None else ProbeAnswers(probe=asked["probe"], correct=tuple(asked["correct"])),
        )
    )
    mixture = replace(mixture, guard=replace(answer.decision.state, rise=row["rise"]))
    if row["start_sample"] is not None:
        kept = GuardShift(start_sample=row["start_sample"], language=row["set"], rise=row["rise"])
        mixture = replace(mixture, shifts=(*mixture.shifts, kept))
    if is_first or mixture.guard_settings.action == "warn":
        return mixture, None
    again = Replayed(row["iteration"], "guard", {row["set"]: row["rise"]}, {row["set"]: answer.decision.state.rise})
    return mixture, again


def _losses(row: dict[str, Any]) -> TopicLosses:
    return TopicLosses(nll_sums=tuple(row["nll_sums"]), tokens=tuple(row["tokens"]))


def print_reads(parts: Sequence[ReadPart], totals: dict[str, tuple[int, int]]) -> None:
    console = Console(width=max(Console().width, 130), highlight=False)
    table = Table("phase", "from sample", "source", "share", "tokens", "epochs so far", "PPL quantiles")
    for part in parts:
        table.add_row(
            part.phase, f"{part.start_sample:,}", part.source, f"{part.share:.4f}", f"{part.tokens:,}",
            f"{part.epochs:.3f}", part.quantiles,
        )  # fmt: skip
    console.print(table)
    unread = Table("source", "tokens read", "tokens there", "left unread")
    for name, (read, there) in sorted(totals.items()):
        unread.add_row(name, f"{read:,}", f"{there:,}", f"{max(0, there - read):,}")
    console.print(unread)


def print_replayed(replayed: Sequence[Replayed]) -> bool:
    """A table on stdout; whether every decision came out as recorded."""
    console = Console(width=max(Console().width, 130), highlight=False)
    if not replayed:
        console.print("this run has taken no decision")
        return True
    table = Table("iteration", "group", "topic or language", "recorded", "again", "")
    for decision in replayed:
        for topic, share in decision.recorded.items():
            again = decision.again.get(topic)
            differs = again is None or abs(again - share) > SAME_SHARE
            shown = "missing" if again is None else f"{again:.6f}"
            table.add_row(
                str(decision.iteration), decision.group, topic, f"{share:.6f}", shown, "differs" if differs else ""
            )
    console.print(table)
    equal = sum(decision.is_equal for decision in replayed)
    console.print(f"{equal} of {len(replayed)} decisions as recorded")
    return equal == len(replayed)
