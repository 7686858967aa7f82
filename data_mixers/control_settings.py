"""What a topic controller may do: its rule, its step and its guards, refused by name where they make no sense."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

from data_mixers.errors import ConfigError

ControllerName = Literal["static", "stratified", "syne_paper", "syne", "exponentiated_gradient", "ado", "velocitune"]
Normaliser = Literal["sum_abs", "max_abs", "relative", "log_ppl"]

GUARDS_OFF: dict[str, float] = {"floor": 0.0, "ceiling": math.inf, "max_shift": 1.0, "ema": 1.0, "noise_level": 0.0}

_GUARDED = frozenset({"syne", "exponentiated_gradient", "ado", "velocitune"})
_SYNE = frozenset({"syne", "syne_paper"})
_READ_BY: dict[str, frozenset[str]] = {
    "alpha": _SYNE,
    "normaliser": _SYNE,
    "importance": _SYNE | {"exponentiated_gradient"},
    "step_size": frozenset({"exponentiated_gradient"}),
    "targets": frozenset({"velocitune"}),
    "target_drop": frozenset({"velocitune"}),
    "max_shift": _GUARDED | {"stratified"},
}
"""Setting -> the controllers that look at it; the others are of the guards (`ControllerSettings.in_force`)."""


def idle_settings(controller: str, names: Iterable[str]) -> list[str]:
    """Which of these settings change nothing under this controller, sorted."""
    return sorted(name for name in names if controller not in _READ_BY.get(name, _GUARDED))


@dataclass(frozen=True, kw_only=True)
class ControllerSettings:
    """All numbers are ours unless a source is named: the paper (arXiv 2407.18743) publishes none of them.

    Errors: ConfigError naming the key of the run file for a value that makes no sense, for an alpha that could turn a
    factor negative, and for a guard asked of syne_paper, which is the published rule without guards.
    """

    name: str = "static"
    alpha: float = 0.3
    """Step of syne and syne_paper. alpha * largest importance < 1, since |delta| <= 1 under every normaliser."""
    importance: Mapping[str, float] = field(default_factory=dict)
    """w_i by topic, or by zh/topic for one language's, at least 0; a topic that is not named has 1. Of syne, syne_paper
    and exponentiated_gradient."""
    normaliser: Normaliser = "sum_abs"
    """Of syne and syne_paper. sum_abs and max_abs fix the size of the largest step whatever the size of the changes;
    relative and log_ppl take the changes as they are (1 % of PPL times alpha 0.3 is 0.3 % of the share)."""
    floor: float = 0.25
    """Smallest share, as a factor of the topic's planned share. A factor, not a share, because the plan then always
    lies inside the bounds, they can always be met (floor <= 1 <= ceiling) and one setting fits 3 topics or 60."""
    ceiling: float = 4.0
    """Largest share, as a factor of the planned share; .inf is none."""
    max_shift: float = 0.03
    """Largest 1/2 sum |change of share| between two phases; YuLan-Mini (2412.17743) saw larger ones spike the loss."""
    ema: float = 0.5
    """Weight of the new value in the moving average of each held-out document's loss; 1 is no average."""
    noise_level: float = 0.95
    """Level of the bootstrap interval that a change must leave to count; 0 is no gate."""
    bootstrap_samples: int = 1000
    seed: int = 0
    step_size: float = 3.0
    """Of exponentiated_gradient: log PPL up by 0.01 gives a factor of 1.03, what alpha 0.3 gives one of eleven topics
    that change alike."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """Of velocitune: the loss that each topic (zh/law: of one language) should reach, nats per held-out token; the
    paper extrapolates it with a scaling law from a run on a part of the data."""
    target_drop: float = 0.1
    """Of velocitune, for topics without a target: the target lies this many nats under the first validation."""

    def __post_init__(self) -> None:
        if self.name not in get_args(ControllerName):
            raise ConfigError(
                f"mixture.controller={self.name!r} is unknown; use one of {', '.join(get_args(ControllerName))}"
            )
        if self.normaliser not in get_args(Normaliser):
            raise ConfigError(
                f"mixture.settings.normaliser={self.normaliser!r} is unknown; use one of "
                f"{', '.join(get_args(Normaliser))}"
            )
        for name in ("importance", "targets"):
            self._check_mapping(name)
        for name in ("alpha", "floor", "ceiling", "max_shift", "ema", "noise_level", "step_size", "target_drop"):
            self._check_number(name, _is_number(getattr(self, name)), "a number")
        self._check_number("alpha", self.alpha > 0, "positive; what moves nothing is mixture.controller=static")
        self._check_number("floor", 0 <= self.floor <= 1, "in [0, 1]: it is a factor of the planned share")
        self._check_number("ceiling", self.ceiling >= 1, "at least 1: it is a factor of the planned share")
        self._check_number("max_shift", 0 < self.max_shift <= 1, "in (0, 1]")
        self._check_number("ema", 0 < self.ema <= 1, "in (0, 1]; 1 is no average")
        self._check_number("noise_level", 0 <= self.noise_level < 1, "in [0, 1); 0 is no gate")
        self._check_number("step_size", 0 < self.step_size < math.inf, "positive")
        self._check_number("target_drop", 0 < self.target_drop < math.inf, "positive")
        self._check_integer("bootstrap_samples", 100)
        # held in memory at once, [samples, documents]
        self._check_number("bootstrap_samples", self.bootstrap_samples <= 100_000, "at most 100000")
        self._check_integer("seed", 0)
        self._check_factor_stays_positive()
        if self.name == "syne_paper":
            self._check_guards_are_not_asked_for()

    def of_language(self, language: str) -> "ControllerSettings":
        """These settings for the topics of one language: zh/law is law there, before a law of all languages."""
        named = (self.importance, self.targets)
        importance, targets = (
            {topic: value for topic, value in values.items() if "/" not in topic}
            | {key.partition("/")[2]: value for key, value in values.items() if key.startswith(f"{language}/")}
            for values in named
        )
        return replace(self, importance=importance, targets=targets)

    def in_force(self) -> "ControllerSettings":
        """These settings with the guards off that this controller does not have.

        syne_paper and static have none. stratified heads for fixed shares, so noise and bounds round the plan say
        nothing about it; it keeps max_shift.
        """
        if self.name in ("static", "syne_paper"):
            return replace(self, **GUARDS_OFF)  # type: ignore[arg-type]
        if self.name == "stratified":
            return replace(self, **{**GUARDS_OFF, "max_shift": self.max_shift})  # type: ignore[arg-type]
        return self

    def _check_mapping(self, name: str) -> None:
        values = getattr(self, name)
        if not isinstance(values, Mapping):
            raise ConfigError(f"mixture.settings.{name}={values!r} must give a number for each topic")
        for topic, value in values.items():
            if not _is_number(value) or not 0 <= value < math.inf:
                raise ConfigError(f"mixture.settings.{name}.{topic}={value!r} must be a number of at least 0")

    def _check_number(self, name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise ConfigError(f"mixture.settings.{name}={getattr(self, name)!r} must be {wanted}")

    def _check_integer(self, name: str, smallest: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
            raise ConfigError(f"mixture.settings.{name}={value!r} must be an integer of at least {smallest}")

    def _check_factor_stays_positive(self) -> None:
        largest = max(1.0, *self.importance.values()) if self.importance else 1.0
        if self.alpha * largest >= 1:
            raise ConfigError(
                f"mixture.settings.alpha={self.alpha} times the largest importance {largest:g} is "
                f"{self.alpha * largest:g}: a factor 1 + alpha * delta * w could turn negative; "
                f"use mixture.settings.alpha below {1 / largest:g}"
            )

    def _check_guards_are_not_asked_for(self) -> None:
        defaults = {item.name: item.default for item in fields(self)}
        for name, off in GUARDS_OFF.items():
            if getattr(self, name) not in (off, defaults[name]):
                raise ConfigError(
                    f"mixture.settings.{name}={getattr(self, name)!r} is a guard, and syne_paper is the published rule "
                    f"without guards; leave mixture.settings.{name} out, or use mixture.controller=syne"
                )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
