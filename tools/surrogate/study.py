"""study.yaml: the question, the grid of settings, the seeds, and what is measured; every fault in one message."""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from data_mixers.errors import ConfigError
from data_mixers.file_version import check_version
from megatron_synE.config.explain import explain_error
from megatron_synE.config.fault import listed
from megatron_synE.config.load import plain_faults, read_yaml
from tools.data.yaml_file import STRICT
from tools.synthesis.options import CHANGE_KINDS, ChangeKind

SCHEMA_VERSION: Literal[1] = 1
Level = str | int | float
Inside = Annotated[float, Field(gt=0.0, lt=1.0)]
ORDERS = ("low_to_high", "high_to_low", "random", "by_topic")
RECIPE_FACTORS = ("synthetic_share", "corruption", "order", "controller")
"""Names of the grid that stand for more than one key of a run."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Outcome:
    """What the question is answered by: held-out loss, nats per token, each set of a group counted alike."""

    groups: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]
    """Name -> globs over the names of held-out sets, e.g. synthetic/*."""
    primary: str
    """The group that the question is about; all others are shown beside it."""
    matters: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    """The smallest difference that would change a decision, in nats per token."""
    power: Inside = 0.8
    """The chance to find a difference of that size."""
    level: Inside = 0.95
    """Of every interval; comparisons share its error between them (Bonferroni)."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Corruption:
    """Pairs of which the factor `corruption` makes a share wrong, and how they become token files."""

    input: str
    """File, folder or glob of clean pairs."""
    tokenizer: Path
    source: str
    topic: str | None = None
    topic_key: str | None = None
    language: str = "synthetic"
    """Of the token files."""
    word_language: Literal["zh", "en"] | None = None
    """Whose nouns and adjectives are swapped, where a pair does not say."""
    keys: tuple[str, ...] = ("text",)
    """Texts that are changed; the first is the one that is tokenised."""
    kinds: Annotated[tuple[ChangeKind, ...], Field(min_length=1)] = CHANGE_KINDS
    seed: int = 0


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Ordered:
    """What the factor `order` puts in order."""

    languages: tuple[str, ...] = ("synthetic",)
    stage: Annotated[int, Field(ge=0)] = 0
    topics: tuple[str, ...] | None = None
    """Order of by_topic; None: by name."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Synthetic:
    """Whose share the factor `synthetic_share` sets; the other languages shrink in proportion."""

    language: str = "synthetic"
    stage: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Study:
    """A grid over settings of one run, with seeds."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    question: str
    base: Path
    """The run's YAML file that every arm changes; run.name, run.dir and run.seed are set by the study."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=2)]
    """The same for every arm, so that arms are compared inside a seed."""
    grid: Annotated[dict[str, list[Level] | dict[str, dict[str, Any]]], Field(min_length=1)]
    """Factor -> its levels: values of a recipe factor or of a key such as optimizer.lr, or names with the keys each
    sets. Every combination is an arm."""
    outcome: Outcome
    reference: tuple[str, ...] = ()
    """Arms that the others are compared with; none: the first."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Keys that differ from the base in every arm."""
    pilot_seeds: Annotated[int, Field(ge=2)] = 3
    """Of the first reference and of the last arm, run first to see how much seeds differ."""
    spread: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """Standard deviation of a paired difference in nats, where it is known; None: the pilot measures it."""
    synthetic: Synthetic = Field(default_factory=Synthetic)
    corruption: Corruption | None = None
    order: Ordered = Field(default_factory=Ordered)
    nproc: Annotated[int, Field(gt=0)] | None = None
    """Processes of an arm on its machine; None: one per GPU, or one."""
    schema_version: Literal[1] = SCHEMA_VERSION
    """Of this file."""
    keep_checkpoints: bool = False
    """Of finished arms, for `syne export` and evaluation; else only what they measured stays."""


def read_study(path: Path) -> Study:
    """Errors: ConfigError with a line for every fault, each naming its key."""
    tree = read_yaml(path, what="study")
    if faults := plain_faults(tree):
        raise ConfigError(listed(faults, where=str(path)))
    cure = "use the version of the program that it was written for, or write it as docs/surrogate.md says"
    check_version(tree, understood=SCHEMA_VERSION, file=path, cure=cure, fault=ConfigError, absent=1)
    try:
        study: Study = TypeAdapter(Study).validate_json(json.dumps(tree))
    except ValidationError as error:
        faults = list(dict.fromkeys(explain_error(fault, Study) for fault in error.errors(include_url=False)))
        raise ConfigError(listed(faults, where=str(path))) from error
    if faults := list(_rules(study)):
        raise ConfigError(listed(faults, where=str(path)))
    return study


def _rules(study: Study) -> Iterator[str]:
    """What one field alone cannot say."""
    if study.outcome.primary not in study.outcome.groups:
        named = ", ".join(study.outcome.groups) or "none"
        yield f"outcome.primary: {study.outcome.primary!r} is not one of outcome.groups ({named})"
    if len(set(study.seeds)) < len(study.seeds):
        yield f"seeds: {list(study.seeds)} holds one twice; each must be another"
    if study.pilot_seeds > len(study.seeds):
        yield f"pilot_seeds: {study.pilot_seeds} is more than the {len(study.seeds)} seeds; lower it"
    if not study.base.is_file():
        yield f"base: {study.base} is not a file; give the run's YAML file, from the current folder"
    for factor, levels in study.grid.items():
        yield from _factor_faults(study, factor, levels)
    for key in study.set:
        if key.split(".")[0] == "run":
            yield f"set.{key}: the study sets run.name, run.dir and run.seed itself; leave it out"


def _factor_faults(study: Study, factor: str, levels: list[Level] | dict[str, dict[str, Any]]) -> Iterator[str]:
    where = f"grid.{factor}"
    if not levels:
        yield f"{where}: has no level; give at least one"
    if isinstance(levels, dict):
        if factor in ("synthetic_share", "corruption", "order"):
            yield f"{where}: its levels are a list of values; names that set keys need a factor of another name"
        if any(key.split(".")[0] == "run" for keys in levels.values() for key in keys):
            yield f"{where}: the study sets run.name, run.dir and run.seed itself; leave them out"
        return
    shown = [shown_level(level) for level in levels]
    if twice := sorted({name for name in shown if shown.count(name) > 1}):
        yield f"{where}: holds level {twice[0]} twice (levels are told apart by six digits)"
    if factor in ("synthetic_share", "corruption"):
        for level in levels:
            if not isinstance(level, int | float) or not 0 <= level < 1:
                yield f"{where}: {level!r} is not a share of at least 0 and below 1, e.g. 0.2"
    elif factor == "order":
        yield from (f"{where}: {level!r} is none of {', '.join(ORDERS)}" for level in levels if level not in ORDERS)
    elif factor not in RECIPE_FACTORS and "." not in factor:
        near = difflib.get_close_matches(factor, RECIPE_FACTORS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(RECIPE_FACTORS)}"
        yield (
            f"{where}: no recipe factor and no section.key; {hint} "
            "Levels that set several keys are names: {a: {key.sub: value}, b: {...}}"
        )
    if factor == "corruption" and study.corruption is None:
        yield "corruption: missing; it says which pairs the factor of the grid makes wrong (input, tokenizer, source)"


def shown_level(level: Level) -> str:
    """As an arm's name has it."""
    return f"{level:g}" if isinstance(level, float) else str(level)
