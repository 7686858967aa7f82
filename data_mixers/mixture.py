"""The plan of a run (stages, curriculum) and the decisions taken, composed into one schedule.

    planned phases (what the configuration says) + reweights (of a controller) + shifts (of the guard) = Schedule

Composing is a pure function, so a resumed run loads its decisions and never recomputes them, and a later stage can be
edited while the decisions taken stay.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

from data_mixers.errors import ConfigError
from data_mixers.exhaustion import first_exhausted, without
from data_mixers.manifest import SourceEntry
from data_mixers.ratios import quantise
from data_mixers.schedule import Phase, PhaseKind, Schedule, scheduled_source

Decided = Mapping[str, Mapping[str, float]]
"""Group -> topic -> share."""


@dataclass(frozen=True, kw_only=True)
class PlannedPhase:
    """A stage, or a stretch of one, as the configuration plans it."""

    name: str
    stage: str
    num_samples: int
    weights: Mapping[str, Fraction]
    """Source name -> share of tokens; they sum to 1."""
    written_groups: frozenset[str] = frozenset()
    """Groups whose topics this stage's configuration names: decisions of earlier stages end here for them."""


@dataclass(frozen=True, kw_only=True)
class Reweight:
    """A decision: from `start_sample` on, the topics of `group` share its tokens by `ratios`."""

    start_sample: int
    group: str
    """"<language>/<source>": topics trade inside it alone, so neither the language's share nor the source's moves."""
    ratios: tuple[tuple[str, float], ...]
    """(topic, share inside the group); they sum to 1."""


@dataclass(frozen=True, kw_only=True)
class GuardShift:
    """A decision: from `start_sample` on `language` has `rise` more than its planned share of tokens."""

    start_sample: int
    language: str
    rise: float
    """Taken from the other languages in proportion; inside every language nothing moves. A phase that does not read the
    language, or nothing else, stays as it is planned."""


def group_of(entry: SourceEntry) -> str:
    """The group a source's topic trades in."""
    return f"{entry.language}/{entry.source}"


def compose(
    planned: Sequence[PlannedPhase],
    reweights: Sequence[Reweight],
    entries: Mapping[str, SourceEntry],
    *,
    seed: int,
    seq_length: int,
    limits: Mapping[str, int] | None = None,
    shifts: Sequence[GuardShift] = (),
) -> Schedule:
    """The schedule of the plan under these decisions. entries: every train source by name.

    limits: windows that may be read of each source (exhaustion.window_limits); a source that has reached its own gives
    its share to its kin from that sample on. None: sources are read again and again.

    Decisions only scale what the plan reads already, so sources rank alike under any of them: a later decision never
    changes an earlier sample.
    Errors: ConfigError if a decision names a group or topic that the plan does not read there, or a rise leaves the
    other languages nothing.
    """
    schedule, gone = Schedule(seed=seed, seq_length=seq_length, sources=()), frozenset[str]()
    stretches = list(_stretches(planned, reweights, shifts, entries))
    while True:
        whole, fault = _followed_by(schedule, stretches, gone, entries)
        goes_on = whole.num_samples > schedule.num_samples
        ended = first_exhausted(whole, limits) if limits is not None and goes_on else None
        if ended is None:
            if fault is not None:
                raise fault
            return whole
        sample, sources = ended
        schedule, gone = _read_until(whole, sample), gone | sources
        while sample >= stretches[0].end_sample:
            del stretches[0]
        stretches[0] = replace(stretches[0], kind="exhaustion")


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    """Samples up to `end_sample` between which no decision begins."""

    name: str
    kind: PhaseKind
    end_sample: int
    reads: frozenset[str]
    weights_without: Callable[[frozenset[str]], Mapping[str, int]]
    """Weights over 2**32 when these of `reads` have ended."""


def _stretches(
    planned: Sequence[PlannedPhase],
    reweights: Sequence[Reweight],
    shifts: Sequence[GuardShift],
    entries: Mapping[str, SourceEntry],
) -> Iterator[_Stretch]:
    decided = {r.start_sample for r in reweights} | {s.start_sample for s in shifts}
    starts, written = dict[str, int](), dict[str, int]()
    begin = 0
    for phase in planned:
        first, end = starts.setdefault(phase.stage, begin), begin + phase.num_samples
        written |= dict.fromkeys(phase.written_groups, first)
        cuts = sorted({begin, end, *(sample for sample in decided if begin < sample < end)})
        for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
            active = _active(reweights, start, written)
            shift = max((s for s in shifts if s.start_sample <= start), key=lambda s: s.start_sample, default=None)

            @cache
            def weights_without(
                gone: frozenset[str],
                active: Decided = active,
                phase: PlannedPhase = phase,
                shift: GuardShift | None = shift,
            ) -> Mapping[str, int]:
                weights = _reweighted(without(phase.weights, gone, entries), active, entries)
                return quantise(weights if shift is None else _raised(weights, shift, entries, phase.name))

            kind: PhaseKind = "stage"
            if start > first and start in decided:  # a step of a curriculum may begin there too
                kind = "guard" if shift is not None and shift.start_sample == start else "reweight"
            reads = frozenset(name for name, weight in phase.weights.items() if weight)
            yield _Stretch(name=phase.name, kind=kind, end_sample=stop, reads=reads, weights_without=weights_without)
        begin = end


def _followed_by(
    schedule: Schedule, stretches: Sequence[_Stretch], gone: frozenset[str], entries: Mapping[str, SourceEntry]
) -> tuple[Schedule, ConfigError | None]:
    """The schedule with these stretches, without the sources that have ended. At once: each append checks all of it.

    With an error it ends before the stretch at fault, which may be none once a source has ended before it.
    """
    sources, phases = {source.name: source for source in schedule.sources}, list(schedule.phases)
    start, fault = schedule.num_samples, None
    for stretch in stretches:
        try:
            weights = stretch.weights_without(gone & stretch.reads)
        except ConfigError as error:
            fault = error
            break
        for name in sorted(name for name, weight in weights.items() if weight and name not in sources):
            sources[name] = scheduled_source(entries[name])
        ordered = tuple((name, weights[name]) for name in sources if weights.get(name))
        num_samples = stretch.end_sample - start
        phases.append(
            Phase(name=stretch.name, start_sample=start, num_samples=num_samples, weights=ordered, kind=stretch.kind)
        )
        start = stretch.end_sample
    return replace(schedule, sources=tuple(sources.values()), phases=tuple(phases)), fault


def _read_until(whole: Schedule, sample: int) -> Schedule:
    """The first samples, and the sources that they read alone: ranks follow from the past."""
    kept = whole.until(sample)
    read = {name for phase in kept.phases for name, _ in phase.weights}
    return replace(kept, sources=tuple(source for source in kept.sources if source.name in read))


def ratios_at(
    planned: Sequence[PlannedPhase],
    reweights: Sequence[Reweight],
    entries: Mapping[str, SourceEntry],
    group: str,
    sample: int,
) -> dict[str, float]:
    """Topic -> share inside the group as planned and decided for a sample, whether or not its text has ended by then.

    Empty if the plan does not read the group there, or ends before. Errors: as compose.
    """
    begin, starts, written = 0, dict[str, int](), dict[str, int]()
    for phase in planned:
        written |= dict.fromkeys(phase.written_groups, starts.setdefault(phase.stage, begin))
        begin += phase.num_samples
        if sample < begin:
            decided = _active(reweights, sample, written).get(group)
            of_group = {name: weight for name, weight in phase.weights.items() if group_of(entries[name]) == group}
            if decided is None:
                return topic_ratios(of_group, group, entries)
            # Runs once decided among the topics whose text lasted: one that had ended by then has no share to trade.
            known = {name: weight for name, weight in of_group.items() if entries[name].topic in decided}
            return topic_ratios(_reweighted(known, {group: decided}, entries), group, entries)
    return {}


def topic_ratios(
    weights: Mapping[str, Fraction | int], group: str, entries: Mapping[str, SourceEntry]
) -> dict[str, float]:
    """Topic -> share inside the group under these weights; empty if they do not read it."""
    topics: dict[str, Fraction] = {}
    for name, weight in weights.items():
        if weight and group_of(entries[name]) == group:
            topics[entries[name].topic] = topics.get(entries[name].topic, Fraction(0)) + weight
    total = sum(topics.values(), Fraction(0))
    return {topic: float(weight / total) for topic, weight in topics.items()}


def _active(reweights: Sequence[Reweight], sample: int, written: Mapping[str, int]) -> dict[str, Mapping[str, float]]:
    """The last decision of each group that holds at a sample. written: where the last stage that names it begins."""
    return {
        reweight.group: dict(reweight.ratios)
        for reweight in sorted(reweights, key=lambda r: r.start_sample)
        if written.get(reweight.group, 0) <= reweight.start_sample <= sample
    }


def _reweighted(
    weights: Mapping[str, Fraction], active: Mapping[str, Mapping[str, float]], entries: Mapping[str, SourceEntry]
) -> dict[str, Fraction]:
    """`weights` with the topics of each decided group scaled to its ratios; inside a topic nothing moves."""
    changed = dict(weights)
    for group, ratios in active.items():
        members = [name for name, weight in weights.items() if weight and group_of(entries[name]) == group]
        if not members:
            continue  # a stage that does not read this group at all
        topics: dict[str, Fraction] = {}
        for name in members:
            topics[entries[name].topic] = topics.get(entries[name].topic, Fraction(0)) + weights[name]
        exact = {topic: Fraction(ratios[topic]) for topic in topics if topic in ratios}
        if missing := sorted(topics.keys() - exact.keys()):
            raise ConfigError(
                f"the controller's decisions for {group} know nothing of {', '.join(missing)}; give that stage its own "
                "topics, or start a new run"
            )
        group_weight, total = sum(topics.values(), Fraction(0)), sum(exact.values(), Fraction(0))
        for name in members:
            topic = entries[name].topic
            changed[name] = weights[name] / topics[topic] * group_weight * exact[topic] / total
    return changed


def _raised(
    weights: Mapping[str, Fraction], shift: GuardShift, entries: Mapping[str, SourceEntry], phase: str
) -> dict[str, Fraction]:
    """`weights` with the language's share raised and the others' lowered, each in proportion."""
    share = sum((w for name, w in weights.items() if entries[name].language == shift.language), Fraction(0))
    total = sum(weights.values(), Fraction(0))
    if not 0 < share < total:
        return dict(weights)
    raised = share + Fraction(shift.rise) * total
    if raised >= total:
        raise ConfigError(
            f"phase {phase} gives {shift.language} {float(share / total):.4f} of its tokens, and the guard has raised "
            f"that by {shift.rise:g}: nothing is left for the other languages; lower the planned share"
        )
    factor, rest = raised / share, (total - raised) / (total - share)
    return {name: w * (factor if entries[name].language == shift.language else rest) for name, w in weights.items()}
