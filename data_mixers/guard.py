"""The forgetting guard: has a language become worse than at the run's first validation, and how far may its share rise.

    losses of its held-out documents ─ paired bootstrap ─┐
    answers to a probe's items ─────── sign test ────────┴─ worse? ─ yes: one step up, no: one step down ─> rise

A pure function. The rise is what the language's share has above its planned one; compose (mixture.py) applies it.
"""

import math
import zlib
from dataclasses import dataclass, replace
from typing import Literal, get_args

from data_mixers.control_guards import inside_noise
from data_mixers.controllers import TopicLosses
from data_mixers.errors import ConfigError

GuardAction = Literal["warn", "raise"]
BOOTSTRAP_SAMPLES = 1000  # as the noise gate of the controllers
RISE_DECIMALS = 12  # so that as many steps down as up end at exactly 0


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """All numbers are ours. Errors: ConfigError naming `guard.<field>` for a value that makes no sense."""

    language: str = "en"
    action: GuardAction = "warn"
    """warn: nothing moves."""
    step: float = 0.02
    """Largest change of the language's share by one decision, below the 0.03 from which YuLan-Mini (2412.17743) saw
    shifts of the mixture spike the loss."""
    max_rise: float = 0.1
    """Largest share above the plan's."""
    noise_level: float = 0.95
    """Level of the two-sided interval; a change for the worse counts when it lies outside."""

    def __post_init__(self) -> None:
        if self.action not in get_args(GuardAction):
            known = ", ".join(get_args(GuardAction))
            raise ConfigError(f"mixture.guard.action={self.action!r} is unknown; use one of {known}")
        if not self.language:
            raise ConfigError("mixture.guard.language is empty; name the language that must not be forgotten, e.g. en")
        if not 0 < self.max_rise < 1:
            raise ConfigError(f"mixture.guard.max_rise={self.max_rise} must lie between 0 and 1: a share grows by it")
        if not 0 < self.step <= self.max_rise:
            raise ConfigError(f"mixture.guard.step={self.step} must lie in (0, mixture.guard.max_rise={self.max_rise}]")
        if not 0 < self.noise_level < 1:
            raise ConfigError(f"mixture.guard.noise_level={self.noise_level} must lie between 0 and 1, e.g. 0.95")


@dataclass(frozen=True, kw_only=True)
class ProbeAnswers:
    """What the model answered to a probe."""

    probe: str
    """Digest of the items: answers to others can not be compared."""
    correct: tuple[int, ...]
    """1 or 0 per item."""


@dataclass(frozen=True, kw_only=True)
class GuardObservation:
    """What one validation saw of the language."""

    consumed_tokens: int
    """Of the whole run; it seeds the bootstrap."""
    losses: TopicLosses | None
    """Of all held-out documents of the language; None: there are none."""
    answers: ProbeAnswers | None
    """None: no probe."""


@dataclass(frozen=True, kw_only=True)
class GuardState:
    """What is remembered between decisions, through JSON to the bit."""

    language: str
    rise: float
    """As decided last."""
    losses: TopicLosses | None
    """At the first validation: what later ones are compared with."""
    answers: ProbeAnswers | None


@dataclass(frozen=True, kw_only=True)
class GuardDecision:
    """What follows from one validation."""

    state: GuardState
    change: float | None
    """Held-out loss less that of the first validation, nats per token; None at the first, or without documents."""
    worse: tuple[str, ...]
    """What has become worse beyond its noise: "loss", "probe"."""
    notes: tuple[str, ...]
    """For the log, a line each."""


def decide(
    settings: GuardSettings, state: GuardState | None, seen: GuardObservation, *, can_move: bool = True
) -> GuardDecision:
    """The language's rise after one validation: towards max_rise while it is worse, towards 0 while it is not.

    The first validation is the reference of all later ones, and moves nothing. Other documents, or items of another
    probe, are not compared: they take the reference's place. Another language begins at its planned share, and the one
    before goes back to its own, at once.
    can_move: whether the schedule lets the share move at all where this decision would hold.
    """
    notes: list[str] = []
    if state is None or state.language != settings.language:
        if state is not None and state.rise > 0:
            notes.append(f"guard: guard.language was {state.language}, whose share goes back to the planned one")
        state = GuardState(language=settings.language, rise=0.0, losses=None, answers=None)
        notes.append(f"guard: this validation is what {settings.language} is compared with from now on")
    elif not _comparable(state, seen):
        notes.append(f"guard: the held-out documents or the probe of {settings.language} changed: compared from now on")
    change = _change(state, seen)
    worse = []
    if change is not None and change > 0 and not _is_noise(settings, state, seen):
        worse.append("loss")
        notes.append(
            f"guard: held-out loss of {settings.language} is {change:.4f} nats per token above the first validation's, "
            "more than its noise"
        )
    lost, won = _answers(state, seen)
    if lost > won and sign_test(lost, won) <= (1 - settings.noise_level) / 2:
        worse.append("probe")
        notes.append(f"guard: the probe lost {lost} of its right answers and won {won}, more than chance explains")
    rise = state.rise
    has_looked = change is not None or _same_items(state, seen)
    if settings.action == "raise" and can_move and has_looked:
        rise = _towards(settings, rise, settings.max_rise if worse else 0.0)
        if worse and rise == state.rise:
            notes.append(f"guard: the share of {settings.language} has risen by guard.max_rise already")
    after = replace(
        state,
        rise=rise,
        losses=state.losses if change is not None or seen.losses is None else seen.losses,
        answers=state.answers if _same_items(state, seen) or seen.answers is None else seen.answers,
    )
    return GuardDecision(state=after, change=change, worse=tuple(worse), notes=tuple(notes))


def sign_test(lost: int, won: int) -> float:
    """P(at least `lost` heads in lost + won tosses of a fair coin): items that did not change say nothing (McNemar)."""
    tosses = lost + won
    ways = sum(math.comb(tosses, heads) for heads in range(lost, tosses + 1))
    return ways / (1 << tosses)


def _towards(settings: GuardSettings, rise: float, target: float) -> float:
    return round(rise + min(max(target - rise, -settings.step), settings.step), RISE_DECIMALS)


def _comparable(state: GuardState, seen: GuardObservation) -> bool:
    same_documents = seen.losses is None or (state.losses is not None and state.losses.tokens == seen.losses.tokens)
    return same_documents and (seen.answers is None or _same_items(state, seen))


def _same_items(state: GuardState, seen: GuardObservation) -> bool:
    return state.answers is not None and seen.answers is not None and state.answers.probe == seen.answers.probe


def _change(state: GuardState, seen: GuardObservation) -> float | None:
    if state.losses is None or seen.losses is None or state.losses.tokens != seen.losses.tokens:
        return None
    change = (math.fsum(seen.losses.nll_sums) - math.fsum(state.losses.nll_sums)) / sum(seen.losses.tokens)
    return change if math.isfinite(change) else None


def _is_noise(settings: GuardSettings, state: GuardState, seen: GuardObservation) -> bool:
    assert state.losses is not None and seen.losses is not None
    return inside_noise(
        state.losses.nll_sums,
        seen.losses.nll_sums,
        seen.losses.tokens,
        level=settings.noise_level,
        samples=BOOTSTRAP_SAMPLES,
        seed=(seen.consumed_tokens, zlib.crc32(settings.language.encode())),
    )


def _answers(state: GuardState, seen: GuardObservation) -> tuple[int, int]:
    """(items right at first and wrong now, the other way round)."""
    if state.answers is None or seen.answers is None or not _same_items(state, seen):
        return 0, 0
    pairs = list(zip(state.answers.correct, seen.answers.correct, strict=True))
    return pairs.count((1, 0)), pairs.count((0, 1))
