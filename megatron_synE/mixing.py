"""The closed loop's side of the trainer: held-out losses in, decisions of the controller and of the guard out.

Rank 0 decides, the others receive; what was decided is part of every checkpoint and is loaded, never recomputed.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from data_mixers.control_settings import ControllerSettings
from data_mixers.controllers import ControllerState, Decision, Observation, TopicLosses, decide, without_rises
from data_mixers.errors import ConfigError
from data_mixers.exhaustion import window_limits
from data_mixers.guard import GuardDecision, GuardObservation, GuardSettings, GuardState, ProbeAnswers
from data_mixers.guard import decide as decide_guard
from data_mixers.manifest import SourceEntry
from data_mixers.mixture import GuardShift, PlannedPhase, Reweight, compose, group_of, ratios_at, topic_ratios
from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule, Skip, ranges_left_out
from data_mixers.strict_json import parse
from megatron_synE.config.derive import controller_settings, guard_settings
from megatron_synE.config.schema import RunConfig
from megatron_synE.data.build_schedule import all_entries, planned_phases
from megatron_synE.exit_codes import CheckpointError, DivergedError

if TYPE_CHECKING:
    from megatron_synE.validation import DocumentLosses, ValidationSet

LEAD_ITERATIONS = 2
"""A decision holds from so many iterations on: a checkpoint in between carries it as pending."""


@dataclass(frozen=True, kw_only=True)
class GroupDecision:
    """What one group of topics saw and decided at one validation."""

    observation: Observation
    before: Mapping[str, float]
    state: ControllerState
    reweight: Reweight | None
    """None at the first observation, and where nothing is left to reweight."""
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GuardAnswer:
    """What the guard saw and decided at one validation."""

    observation: GuardObservation
    decision: GuardDecision
    shift: GuardShift | None
    """None where the share stays."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Everything that follows from one validation."""

    groups: Mapping[str, GroupDecision]
    guard: GuardAnswer | None
    """None where nothing of the guarded language is held out."""

    @property
    def changes_schedule(self) -> bool:
        """Whether other samples are read from LEAD_ITERATIONS later on."""
        has_shift = self.guard is not None and self.guard.shift is not None
        return has_shift or any(decision.reweight is not None for decision in self.groups.values())


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The plan, the controller, the guard, and what they have decided so far."""

    planned: tuple[PlannedPhase, ...]
    entries: Mapping[str, SourceEntry]
    seed: int
    seq_length: int
    samples_per_iteration: int
    skips: tuple[tuple[int, int], ...]
    """Ranges of samples to leave out, in order."""
    limits: Mapping[str, int]
    """Windows that may be read of each source in the whole run."""
    renormalizes: bool
    """Whether a source at its limit gives its share to its kin. If not, a plan that reads beyond one is refused before
    the run (build_schedule), and no decision of guard or controller makes it read beyond one."""
    settings: ControllerSettings
    groups: tuple[str, ...]
    """Groups of topics that trade: those of `mixture.sources` with more than one topic."""
    stages: tuple[str, ...] | None
    """Stages in which the controller decides; None: all. Decisions of one hold on in the next, as in `compose`."""
    guard_settings: GuardSettings
    reweights: tuple[Reweight, ...] = ()
    states: Mapping[str, ControllerState] = field(default_factory=dict)
    shifts: tuple[GuardShift, ...] = ()
    guard: GuardState | None = None
    bad_ranges: tuple[tuple[int, int], ...] = ()
    """Ranges of samples that the run itself leaves out, after a loss spike or NaN; like `skips`."""

    @cached_property
    def schedule(self) -> Schedule:
        """The plan under the decisions so far.

        What is left out stays left out when a later decision begins inside it: the order has gone on behind it already.
        """
        ranges = sorted((*self.skips, *self.bad_ranges))
        skips = tuple(Skip(at_sample=start, num_samples=stop - start) for start, stop in ranges)
        return replace(self._unskipped, skips=skips)

    @property
    def _unskipped(self) -> Schedule:
        return compose(
            self.planned,
            self.reweights,
            self.entries,
            seed=self.seed,
            seq_length=self.seq_length,
            limits=self.limits if self.renormalizes else None,
            shifts=self.shifts,
        )

    def check_new_skips(self, known: Collection[Skip]) -> None:
        """Errors: ConfigError for a range of data.skip_samples that is not among `known` and that makes no sense.

        Whether it touches what is read already is for the digest of the past to say.
        """
        for start, stop in self.skips:
            if Skip(at_sample=start, num_samples=stop - start) not in known:
                try:
                    self._unskipped.skip(start, stop, consumed_samples=0)
                except ConfigError as error:
                    raise ConfigError(f"data.skip_samples: {error}") from error

    def ratios_next(self, group: str, *, consumed_samples: int) -> dict[str, float]:
        """The shares of a group's topics that the next decision will replace; empty if nothing is left or planned."""
        start = consumed_samples + LEAD_ITERATIONS * self.samples_per_iteration
        return ratios_at(self.planned, self.reweights, self.entries, group, start)

    def answer(
        self,
        sets: Sequence["ValidationSet"],
        losses: "DocumentLosses",
        answers: ProbeAnswers | None,
        *,
        consumed_samples: int,
        reweights: bool,
    ) -> Answer:
        """What follows from one validation. No collective: rank 0 asks, and tells the others.

        answers: to the probe. reweights: whether the controller is asked too; the guard always is.
        """
        groups = self._decide(sets, losses, consumed_samples=consumed_samples) if reweights else {}
        of_language = _losses_of((s for s in sets if s.language == self.guard_settings.language), losses)
        if of_language is None and answers is None:
            return Answer(groups=groups, guard=None)
        observation = GuardObservation(
            consumed_tokens=consumed_samples * self.seq_length, losses=of_language, answers=answers
        )
        return Answer(groups=groups, guard=self.after(Answer(groups=groups, guard=None)).guarded(observation))

    def guarded(self, seen: GuardObservation) -> GuardAnswer:
        """The guard's answer to what a validation saw of its language."""
        start = seen.consumed_tokens // self.seq_length + LEAD_ITERATIONS * self.samples_per_iteration
        decision = decide_guard(self.guard_settings, self.guard, seen, can_move=self._can_shift(start))
        before = 0.0 if self.guard is None else self.guard.rise
        if decision.state.rise == before:
            return GuardAnswer(observation=seen, decision=decision, shift=None)
        shift = GuardShift(start_sample=start, language=self.guard_settings.language, rise=decision.state.rise)
        try:
            if beyond := self.beyond(replace(self, shifts=(*self.shifts, shift)).schedule, self.schedule):
                first = next(iter(beyond))
                raise ConfigError(f"{first} would be read more often than data.max_epochs or exhaustion allow")
        except ConfigError as error:  # the language has been read as often as it may: training goes on as it is
            assert self.guard is not None  # at the first nothing moves
            kept = replace(decision, state=replace(decision.state, rise=before, language=self.guard.language))
            kept = replace(kept, notes=(*kept.notes, f"guard: the share cannot be moved: {error}"))
            return GuardAnswer(observation=seen, decision=kept, shift=None)
        return GuardAnswer(observation=seen, decision=decision, shift=shift)

    def beyond(self, followed: Schedule, before: Schedule) -> dict[str, int]:
        """Sources that `followed` reads more often than they may be, and than `before` does: their windows."""
        read = dict(zip((s.name for s in before.sources), Sampler(before).cursors(before.num_samples), strict=True))
        now = zip(followed.sources, Sampler(followed).cursors(followed.num_samples), strict=True)
        return {s.name: count for s, count in now if count > max(self.limits[s.name], read.get(s.name, 0))}

    def _can_shift(self, start: int) -> bool:
        """Whether at sample `start` the guarded language is read, beside others."""
        languages = {self.entries[name].language for name in self._weights_at(start)}
        return self.guard_settings.language in languages and len(languages) > 1

    def _weights_at(self, sample: int) -> dict[str, int]:
        return next((dict(phase.weights) for phase in self.schedule.phases if phase.end_sample > sample), {})

    def _trades_at(self, sample: int) -> bool:
        """Whether the stage of a sample is one in which the controller decides."""
        if self.stages is None:
            return True
        ends = accumulate(phase.num_samples for phase in self.planned)
        stage = next((phase.stage for phase, end in zip(self.planned, ends, strict=True) if end > sample), None)
        return stage in self.stages

    def _decide(
        self, sets: Sequence["ValidationSet"], losses: "DocumentLosses", *, consumed_samples: int
    ) -> dict[str, GroupDecision]:
        """The controller's answer, per group."""
        mixture, schedule = self, self.schedule
        start = consumed_samples + LEAD_ITERATIONS * self.samples_per_iteration
        if start >= schedule.num_samples or not self._trades_at(start):
            return {}
        read = Sampler(schedule).read(consumed_samples)
        decisions = {}
        for group in self.groups:
            ratios = self.ratios_next(group, consumed_samples=consumed_samples)
            if len(ratios) < 2:
                continue  # the stage does not read it
            tokens_by_topic = dict.fromkeys(ratios, 0)
            for source, count in zip(schedule.sources, read, strict=True):
                entry = self.entries[source.name]
                if group_of(entry) == group:
                    tokens_by_topic[entry.topic] = tokens_by_topic.get(entry.topic, 0) + count * self.seq_length
            observation = Observation(
                consumed_tokens=consumed_samples * self.seq_length,
                losses=_losses_by_topic(group, ratios, sets, losses),
                tokens_by_topic=tokens_by_topic,
            )
            decisions[group] = mixture.decided(group, observation)
            mixture = mixture.after(Answer(groups={group: decisions[group]}, guard=None))
        return decisions

    def decided(self, group: str, seen: Observation) -> GroupDecision:
        """The controller's answer to what a validation saw of one group, as far as its text lasts."""
        consumed_samples = seen.consumed_tokens // self.seq_length
        start = consumed_samples + LEAD_ITERATIONS * self.samples_per_iteration
        before, state = self.ratios_next(group, consumed_samples=consumed_samples), self.states.get(group)
        settings = self.settings.of_language(group.partition("/")[0])
        ended = before.keys() - topic_ratios(self._weights_at(start), group, self.entries).keys()
        decision = self._lasting(group, before, decide(settings, before, state, seen, ended=ended), start=start)
        reweight = None
        if state is not None and decision.ratios != before:
            reweight = Reweight(start_sample=start, group=group, ratios=tuple(decision.ratios.items()))
        return GroupDecision(
            observation=seen, before=before, state=decision.state, reweight=reweight, notes=decision.notes
        )

    def _lasting(self, group: str, before: Mapping[str, float], decision: Decision, *, start: int) -> Decision:
        """The decision without the rises of topics whose text would be read more often than it may be."""
        why = "text would be read more often than data.max_epochs or data.exhaustion allow"
        held: set[str] = set()
        lasting = decision
        while lasting.ratios != before:
            reweight = Reweight(start_sample=start, group=group, ratios=tuple(lasting.ratios.items()))
            try:
                beyond = self.beyond(replace(self, reweights=(*self.reweights, reweight)).schedule, self.schedule)
                if not beyond:
                    break
            except ConfigError:  # renormalize finds no kin with text left
                beyond = {}
            topics = {self.entries[name].topic for name in beyond if group_of(self.entries[name]) == group}
            # Nothing new to hold: another split of the samples puts some source one beyond; the group stays as it is.
            held |= (topics - held) or set(before)
            lasting = without_rises(decision, before, held, why)
        return lasting

    def after(self, answer: Answer) -> "Mixture":
        """This mixture with decisions taken."""
        groups, guard = answer.groups, answer.guard
        return replace(
            self,
            reweights=(*self.reweights, *(d.reweight for d in groups.values() if d.reweight is not None)),
            states={**self.states, **{group: decision.state for group, decision in groups.items()}},
            shifts=self.shifts if guard is None or guard.shift is None else (*self.shifts, guard.shift),
            guard=self.guard if guard is None else guard.decision.state,
        )

    def leavable(self, start: int, stop: int) -> range:
        """What of samples start..stop-1 can be left out: what was left out before them has moved all that follows.

        So a range that reaches back before the last one begins with it; what lies before was read well, both times.
        Errors: DivergedError if all of it lies there.
        """
        last = max((first for first, _ in self.bad_ranges), default=0)
        if stop <= last:
            raise DivergedError(
                f"samples {start}:{stop} are bad now and were not when they were read before; that is not the data. "
                "Look for a card or a memory that fails: stability.reexecute=true compares a bad step with itself"
            )
        return range(max(start, last), stop)

    def skipping(self, start: int, stop: int) -> "Mixture":
        """This mixture without the data of samples start..stop-1; as many others are read in their place.

        What the configuration leaves out between them stays out: the order goes on behind it, and it will leave out as
        many others again.
        """
        ranges = (
            (first, end + sum(b - a for a, b in self.skips if first < a < end))
            for first, end in ranges_left_out(self.schedule.phases, start, stop)
        )
        return replace(self, bad_ranges=(*self.bad_ranges, *ranges))

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "reweights": [asdict(reweight) for reweight in self.reweights],
            "states": {group: asdict(state) for group, state in self.states.items()},
            "shifts": [asdict(shift) for shift in self.shifts],
            "guard": None if self.guard is None else asdict(self.guard),
            "bad_ranges": self.bad_ranges,
        }

    def restored(self, schedule: Mapping[str, Any], *, where: str) -> "Mixture":
        """This plan with the decisions in a checkpoint's `schedule`.

        where: of the checkpoint. Errors: CheckpointError naming it for anything `to_dict` does not write.
        """
        try:
            content = schedule["mixture"]
            guard, states = content["guard"], content["states"].items()
            return replace(
                self,
                reweights=tuple(
                    parse(Reweight, one, where="reweights", fault=ConfigError) for one in content["reweights"]
                ),
                states={name: parse(ControllerState, one, where="states", fault=ConfigError) for name, one in states},
                shifts=tuple(parse(GuardShift, one, where="shifts", fault=ConfigError) for one in content["shifts"]),
                guard=None if guard is None else parse(GuardState, guard, where="guard", fault=ConfigError),
                bad_ranges=tuple((int(start), int(stop)) for start, stop in content["bad_ranges"]),
            )
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"no {error}" if isinstance(error, KeyError) else error
            raise CheckpointError(
                f"{where}: what controller and guard decided cannot be read from its state.json ({why}); move it"
                " away, and the run goes on from the one before"
            ) from error


def mixture_of(config: RunConfig, manifests: Sequence[Any]) -> Mixture:
    """The mixture of a run before any decision."""
    training = config.training
    planned = planned_phases(
        config.data.stages, manifests, seq_length=training.seq_length, global_batch_size=training.global_batch_size
    )
    entries = all_entries(manifests)
    topics: dict[str, set[str]] = {}
    for phase in planned:
        for name, weight in phase.weights.items():
            if weight and entries[name].source in config.mixture.sources:
                topics.setdefault(group_of(entries[name]), set()).add(entries[name].topic)
    mixture = Mixture(
        planned=tuple(planned),
        entries=entries,
        seed=config.run.seed,
        seq_length=training.seq_length,
        samples_per_iteration=training.global_batch_size,
        skips=(),
        limits=window_limits(
            entries,
            seq_length=training.seq_length,
            max_epochs=1.0 if config.data.exhaustion == "stop" else config.data.max_epochs,
        ),
        renormalizes=config.data.exhaustion == "renormalize",
        settings=controller_settings(config.mixture),
        stages=config.mixture.stages,
        guard_settings=guard_settings(config.mixture.guard),
        groups=tuple(sorted(group for group, found in topics.items() if len(found) > 1)),
    )
    if not config.data.skip_samples:
        return mixture
    phases = mixture.schedule.phases
    ranges = ((int(start), int(stop)) for start, stop in (text.split(":") for text in config.data.skip_samples))
    return replace(mixture, skips=tuple(part for a, b in ranges for part in ranges_left_out(phases, a, b)))


def _losses_by_topic(
    group: str, topics: Mapping[str, float], sets: Sequence["ValidationSet"], losses: "DocumentLosses"
) -> dict[str, TopicLosses]:
    """Documents of each topic: of the group's own source where there are any, else of the whole language."""
    language, source = group.split("/", 1)
    found = {}
    for topic in topics:
        of_topic = [s for s in sets if s.language == language and s.topic == topic]
        chosen = [s for s in of_topic if s.source == source] or of_topic
        if (of_chosen := _losses_of(chosen, losses)) is not None:
            found[topic] = of_chosen
    return found


def _losses_of(sets: Iterable["ValidationSet"], losses: "DocumentLosses") -> TopicLosses | None:
    """The documents of these sets that have something to score; None if there are none."""
    rows = [row for s in sets for row in range(s.first_document, s.first_document + s.num_documents)]
    rows = [row for row in rows if int(losses.tokens[row]) > 0]
    if not rows:
        return None
    return TopicLosses(
        nll_sums=tuple(round(float(losses.nll_sums[row]), 6) for row in rows),
        tokens=tuple(int(losses.tokens[row]) for row in rows),
    )
