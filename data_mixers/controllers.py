"""One decision of a topic controller: held-out losses of one group of topics in, their new shares out.

    losses ─ EMA ─ noise gate ─ rule (control_rules) ─ limits (control_guards) ─> shares, state, notes

A pure function: equal arguments give equal bits, and the order in which topics are given plays no part.
"""

import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from data_mixers.control_guards import Array, inside_noise, limited
from data_mixers.control_rules import CONTROLLERS, Signals
from data_mixers.control_settings import ControllerSettings
from data_mixers.errors import ConfigError, DataError

PPL_DECIMALS = 6  # ours: far below any noise, above what a different order of summation changes
SUM_TOLERANCE = 1e-6  # as in ratios.py
SUM_ROUNDING = 1e-12
ADO_OLD = 0.9  # the authors' code, of the moving average of shares read
SAME_SHARE = 1e-6  # far below any move that matters, far above rounding in a schedule's integer weights
Shares = tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class TopicLosses:
    """One topic at one validation. Errors: DataError if the two lists do not fit each other."""

    nll_sums: tuple[float, ...]
    """Nats per held-out document."""
    tokens: tuple[int, ...]
    """Scored tokens per document, the same documents at every validation."""

    def __post_init__(self) -> None:
        if len(self.nll_sums) != len(self.tokens):
            raise DataError(f"losses of {len(self.nll_sums)} documents with token counts of {len(self.tokens)}")
        if any(count < 0 for count in self.tokens):
            raise DataError("a held-out document has a negative number of tokens")

    @property
    def ppl(self) -> float:
        """exp of nats per token; NaN if there are no tokens or a loss is not finite or absurdly large."""
        total = sum(self.tokens)
        mean = math.fsum(self.nll_sums) / total if total and all(map(math.isfinite, self.nll_sums)) else math.nan
        return round(math.exp(mean), PPL_DECIMALS) if mean < 700 else math.nan


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one validation saw."""

    consumed_tokens: int
    """Of the whole run; with the settings' seed it seeds the gate's bootstrap."""
    losses: Mapping[str, TopicLosses]
    """Topics with missing data are absent."""
    tokens_by_topic: Mapping[str, int]
    """Training tokens read so far of each topic of the group, also of those that do not trade here."""


@dataclass(frozen=True, kw_only=True)
class TopicMemory:
    """What is remembered of one topic's held-out documents."""

    tokens: tuple[int, ...]
    nll_sums: tuple[float, ...]
    """Moving average, nats per document."""
    counted_nll_sums: tuple[float, ...]
    """The same when the topic's change last counted. A change inside its noise leaves it where it is, so that a slow
    drift adds up until it leaves the noise (ours)."""
    first_ppl: float
    history: tuple[tuple[int, float], ...]
    """(training tokens read so far of all topics, held-out loss in nats per token), once training has begun."""


@dataclass(frozen=True, kw_only=True)
class ControllerState:
    """Everything remembered between decisions, through JSON to the bit; shares and memories are sorted by topic."""

    num_decisions: int
    ratios: Shares
    """As decided last."""
    planned: Shares
    """The plan's, to which floor and ceiling are factors."""
    recent: Shares
    """Moving average of the shares in force, for ado."""
    average: Shares
    """Mean of what ado wanted."""
    topics: tuple[tuple[str, TopicMemory], ...]
    """Topics that had a finite PPL at least once."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """ratios: the same topics, in the order given; they sum to 1 within 1e-12. notes: for the log, a line each."""

    ratios: dict[str, float]
    state: ControllerState
    notes: tuple[str, ...]


def decide(
    settings: ControllerSettings,
    ratios: Mapping[str, float],
    state: ControllerState | None,
    observation: Observation,
    *,
    ended: Collection[str] = (),
) -> Decision:
    """New shares of the topics of one group, which trade among themselves.

    ratios: in force now, as decided last. Where they differ from the last decision a new plan was set from outside: it
    becomes the plan that floor and ceiling refer to. state: None at the first validation, which moves nothing.
    ended: topics that have a share and are not read for now (data.exhaustion): the others trade, at most max_shift of
    what these have, and nothing is remembered of them.
    A topic moves only if its PPL is there now and was before; any other keeps its share to the bit. So does a topic
    with share 0, which the plan does not read. Where no change leaves its noise nothing moves, under any controller.
    Errors: ConfigError if the ratios are negative or do not sum to 1.
    """
    shares = _checked(ratios)
    active = settings.in_force()
    notes = [f"{topic}: does not trade here, ignored" for topic in observation.losses if topic not in shares]
    if state is None:
        notes.append("first validation: nothing moves")
        state = _start(shares)
    elif not _same(dict(state.ratios), shares):
        notes.append("the ratios differ from the last decision: they are the plan now")
        state = replace(_start(shares), num_decisions=state.num_decisions, topics=state.topics)
    state = replace(state, ratios=_sorted(shares))
    before = dict(state.topics)
    notes += [f"{topic}: its text has ended for now, not moved" for topic in sorted(ended)]
    after = _remembered(active, [topic for topic in shares if topic not in ended], before, observation, notes)
    movable = [topic for topic in after if _comparable(before.get(topic), after[topic]) and shares[topic] > 0]
    quiet = {topic for topic in movable if _is_quiet(active, topic, after[topic], observation.consumed_tokens)}
    notes += [f"{topic}: change of PPL inside its noise" for topic in sorted(quiet)]
    decided, average = shares, dict(state.average)
    if len(movable) > 1 and len(quiet) < len(movable):
        max_shift = active.max_shift * (1 - math.fsum(shares[topic] for topic in ended))
        decided, average = _moved(
            active, state, {topic: after[topic] for topic in movable}, quiet, notes, max_shift=max_shift
        )
    counted = {
        topic: memory if topic in quiet else replace(memory, counted_nll_sums=memory.nll_sums)
        for topic, memory in after.items()
    }
    new_state = ControllerState(
        num_decisions=state.num_decisions + 1,
        ratios=_sorted(decided),
        planned=state.planned,
        recent=tuple((topic, ADO_OLD * old + (1 - ADO_OLD) * shares[topic]) for topic, old in state.recent),
        average=_sorted(average),
        topics=tuple(sorted({**before, **counted}.items())),
    )
    return Decision(ratios={topic: decided[topic] for topic in ratios}, state=new_state, notes=tuple(notes))


def without_rises(decision: Decision, before: Mapping[str, float], held: Collection[str], why: str) -> Decision:
    """The decision with the topics in `held` that it raises kept at their share.

    before: shares when it was taken. The topics that it lowers fall by so much less, each in proportion, so the shares
    sum to what they did; every one lies between its old and its decided value, inside whatever limits hold for both.
    why: for the log.
    """
    rises = {topic: share - before[topic] for topic, share in decision.ratios.items() if share > before[topic]}
    kept = {topic for topic in held if topic in rises}
    if not kept:
        return decision
    factor = 1 - math.fsum(rises[topic] for topic in kept) / math.fsum(rises.values())
    ratios = {
        topic: before[topic]
        if topic in kept or rises.keys() == kept
        else share
        if topic in rises
        else before[topic] + factor * (share - before[topic])
        for topic, share in decision.ratios.items()
    }
    notes = tuple(f"{topic}: its share stays at {before[topic]:.4f}: {why}" for topic in sorted(kept))
    state = replace(decision.state, ratios=_sorted(ratios))
    return Decision(ratios=ratios, state=state, notes=(*decision.notes, *notes))


def _checked(ratios: Mapping[str, float]) -> dict[str, float]:
    """The ratios sorted by topic; with a sum of 1 to rounding where they had it to a few decimals."""
    for topic, share in ratios.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"the ratio of topic {topic} is {share}; it must lie in [0, 1]")
    total = math.fsum(ratios.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise ConfigError(f"the ratios of a group's topics sum to {total:g}, not 1: {dict(ratios)}")
    scale = 1.0 if abs(total - 1) < SUM_ROUNDING else total
    return {topic: float(ratios[topic]) / scale for topic in sorted(ratios)}


def _start(shares: Mapping[str, float]) -> ControllerState:
    same = _sorted(shares)
    return ControllerState(num_decisions=0, ratios=same, planned=same, recent=same, average=same, topics=())


def _same(decided: Mapping[str, float], shares: Mapping[str, float]) -> bool:
    return decided.keys() == shares.keys() and all(abs(decided[t] - shares[t]) <= SAME_SHARE for t in shares)


def _remembered(
    settings: ControllerSettings,
    topics: Collection[str],
    before: Mapping[str, TopicMemory],
    observation: Observation,
    notes: list[str],
) -> dict[str, TopicMemory]:
    """The memories, in this order, of the topics whose PPL is there and finite; `notes` says which are not."""
    training_tokens = sum(observation.tokens_by_topic.values())
    after = {}
    for topic in topics:
        losses = observation.losses.get(topic)
        if losses is None or not math.isfinite(losses.ppl):
            notes.append(f"{topic}: PPL {'missing' if losses is None else 'not a number'}, not moved")
            continue
        old = before.get(topic)
        if old is None or old.tokens != losses.tokens:
            if before:
                notes.append(f"{topic}: {'first PPL' if old is None else 'held-out documents changed'}, not moved")
            old = None
        after[topic] = _averaged(old, losses, ema=settings.ema, training_tokens=training_tokens)
    return after


def _averaged(old: TopicMemory | None, losses: TopicLosses, *, ema: float, training_tokens: int) -> TopicMemory:
    nll_sums = losses.nll_sums
    if old is None:
        memory = TopicMemory(
            tokens=losses.tokens, nll_sums=nll_sums, counted_nll_sums=nll_sums, first_ppl=losses.ppl, history=()
        )
    else:
        if ema < 1:
            nll_sums = tuple(ema * new + (1 - ema) * past for new, past in zip(nll_sums, old.nll_sums, strict=True))
        memory = replace(old, nll_sums=nll_sums)
    # no law has a value at 0 tokens, and one point at each count is enough
    if training_tokens > (memory.history[-1][0] if memory.history else 0):
        point = (training_tokens, math.log(_ppl(memory, nll_sums)))
        memory = replace(memory, history=(*memory.history, point))
    return memory


def _comparable(old: TopicMemory | None, new: TopicMemory) -> bool:
    return old is not None and old.tokens == new.tokens


def _is_quiet(settings: ControllerSettings, topic: str, memory: TopicMemory, consumed_tokens: int) -> bool:
    if settings.noise_level == 0:
        return False
    return inside_noise(
        memory.counted_nll_sums,
        memory.nll_sums,
        memory.tokens,
        level=settings.noise_level,
        samples=settings.bootstrap_samples,
        # by topic, so that neither their order nor a missing one changes another's draw
        seed=(settings.seed, consumed_tokens, zlib.crc32(topic.encode())),
    )


def _moved(
    settings: ControllerSettings,
    state: ControllerState,
    memories: Mapping[str, TopicMemory],
    quiet: Collection[str],
    notes: list[str],
    *,
    max_shift: float,
) -> tuple[dict[str, float], dict[str, float]]:
    """(shares, ado's averages) of all topics; only those in `memories` move, and only their own mass."""
    topics = tuple(memories)
    shares, planned, recent, average = (
        np.array([dict(values)[topic] for topic in topics])
        for values in (state.ratios, state.planned, state.recent, state.average)
    )
    before = np.array([_ppl(memory, memory.counted_nll_sums) for memory in memories.values()])
    now = np.array([_ppl(memory, memory.nll_sums) for memory in memories.values()])
    signals = Signals(
        topics=topics,
        shares=shares / shares.sum(),
        planned=planned / planned.sum(),
        ppl=np.where([topic in quiet for topic in topics], before, now),
        previous_ppl=before,
        first_ppl=np.array([memory.first_ppl for memory in memories.values()]),
        histories=tuple(memory.history for memory in memories.values()),
        recent_shares=recent / recent.sum(),
        average_shares=average / average.sum(),
        num_decisions=state.num_decisions,
    )
    proposal = CONTROLLERS[settings.name](settings, signals)
    if proposal.note:
        notes.append(proposal.note)
    decided, averages = dict(state.ratios), dict(state.average)
    if proposal.average_shares is not None:
        averages |= zip(topics, (proposal.average_shares * average.sum()).tolist(), strict=True)
    if proposal.wanted is not None:
        reached = _inside_limits(settings, proposal.wanted, shares, planned, notes, max_shift=max_shift)
        decided |= zip(topics, reached.tolist(), strict=True)
    return decided, averages


def _inside_limits(
    settings: ControllerSettings, wanted: Array, shares: Array, planned: Array, notes: list[str], *, max_shift: float
) -> Array:
    # rounding may have left a share a last bit outside; the bounds must contain it (control_guards.limited)
    low = np.minimum(settings.floor * planned, shares)
    high = np.maximum(np.minimum(settings.ceiling * planned, shares.sum()), shares)
    reached = limited(wanted, shares, low=low, high=high, max_shift=max_shift)
    if np.abs(reached - shares).sum() / 2 >= max_shift * (1 - 1e-9):
        notes.append(f"the move is cut to mixture.settings.max_shift={settings.max_shift:g}")
    return reached


def _ppl(memory: TopicMemory, nll_sums: tuple[float, ...]) -> float:
    return TopicLosses(nll_sums=nll_sums, tokens=memory.tokens).ppl


def _sorted(shares: Mapping[str, float]) -> Shares:
    return tuple(sorted(shares.items()))
