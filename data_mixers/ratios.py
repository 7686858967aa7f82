"""Nested shares, language > source > topic, in tokens, turned into one exact weight per source.

A level that is not written is divided by the tokens present, so "zh 0.2, en 0.8" alone is a complete mixture.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from data_mixers.errors import ConfigError
from data_mixers.manifest import SourceEntry

WEIGHT_UNIT = 1 << 32
SUM_TOLERANCE = 1e-6  # ours: shares are written by hand with a few decimals


def stage_weights(
    languages: Mapping[str, float],
    sources: Mapping[str, Mapping[str, float]],
    topics: Mapping[str, Mapping[str, Mapping[str, float]]],
    entries: Sequence[SourceEntry],
    *,
    where: str = "stage",
) -> dict[str, Fraction]:
    """The share of tokens of every train source, in the order of `entries`; they sum to exactly 1.

    where: key of the stage, for messages, e.g. "data.stages[0]".
    Errors: ConfigError naming the key if shares do not sum to 1, or if a name has no training data.
    """
    weights = {entry.name: Fraction(0) for entry in entries if entry.role == "train"}

    def split(
        shares: Mapping[str, float], group: Sequence[SourceEntry], label: Callable[[SourceEntry], str], key: str
    ) -> dict[str, tuple[Fraction, list[SourceEntry]]]:
        exact = _shares(shares, group, label, key)
        return {name: (share, [e for e in group if label(e) == name]) for name, share in exact.items()}

    by_language = split(languages, entries, lambda entry: entry.language, f"{where}.languages")
    _check_parents(sources, by_language, f"{where}.sources")
    _check_parents(topics, by_language, f"{where}.topics")
    for language, (language_share, in_language) in by_language.items():
        key = f"{where}.sources.{language}"
        by_source = split(sources.get(language, {}), in_language, lambda entry: entry.source, key)
        of_language = topics.get(language, {})
        _check_parents(of_language, by_source, f"{where}.topics.{language}")
        for source, (source_share, in_source) in by_source.items():
            key = f"{where}.topics.{language}.{source}"
            by_topic = split(of_language.get(source, {}), in_source, lambda entry: entry.topic, key)
            for topic_share, in_topic in by_topic.values():
                for name, share in _by_tokens(in_topic, lambda entry: entry.name).items():
                    weights[name] = language_share * source_share * topic_share * share
    return weights


def quantise(weights: Mapping[str, Fraction]) -> dict[str, int]:
    """Integers over 2**32 that sum to exactly 2**32, by the largest remainder; a positive weight stays at least 1."""
    total = sum(weights.values(), Fraction(0))
    if total <= 0 or any(weight < 0 for weight in weights.values()):
        raise ConfigError(f"weights must be at least 0 and not all 0: {dict(weights)}")
    exact = {name: weight * WEIGHT_UNIT / total for name, weight in weights.items()}
    whole = {name: max(math.floor(value), 1 if value > 0 else 0) for name, value in exact.items()}
    missing = WEIGHT_UNIT - sum(whole.values())
    positive = [name for name, value in exact.items() if value > 0]
    if missing >= 0:
        # sorted is stable, so equal remainders go to the names that come first
        for name in sorted(positive, key=lambda name: whole[name] - exact[name])[:missing]:
            whole[name] += 1
    else:
        # only where tiny weights were lifted to 1: at most one unit each, taken from the largest
        whole[max(positive, key=lambda name: whole[name])] += missing
    return whole


def _shares(
    shares: Mapping[str, float], group: Sequence[SourceEntry], label: Callable[[SourceEntry], str], key: str
) -> dict[str, Fraction]:
    """Exact shares of one level: as written, normalised to 1, or by tokens when none are written."""
    if not shares:
        return _by_tokens(group, label)
    present = sorted(_by_tokens(group, label))
    for name, share in shares.items():
        if not math.isfinite(share) or share < 0:
            raise ConfigError(f"{key}.{name}={share} is not a share: it must lie in [0, 1]")
        if name not in present:
            is_held_out = any(label(e) == name and e.role == "validation" for e in group)
            reason = "only held-out (validation) data" if is_held_out else "no data"
            raise ConfigError(
                f"{key}.{name} has {reason} in the manifests; with training data: {', '.join(present) or 'none'}"
            )
    total = sum(shares.values())
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise ConfigError(f"the shares of {key} sum to {total:g}, not 1: {dict(shares)}")
    # 0.2 is a fifth, not its nearest double
    exact = {name: Fraction(str(float(share))) for name, share in shares.items()}
    exact_total = sum(exact.values(), Fraction(0))
    return {name: share / exact_total for name, share in exact.items()}


def _by_tokens(group: Sequence[SourceEntry], label: Callable[[SourceEntry], str]) -> dict[str, Fraction]:
    """Shares of the training data, by tokens."""
    tokens: dict[str, int] = {}
    for entry in group:
        if entry.role == "train" and entry.num_tokens > 0:
            tokens[label(entry)] = tokens.get(label(entry), 0) + entry.num_tokens
    total = sum(tokens.values())
    return {name: Fraction(count, total) for name, count in tokens.items()}


def _check_parents(children: Mapping[str, object], parents: Mapping[str, object], key: str) -> None:
    for name in children:
        if name not in parents:
            raise ConfigError(
                f"{key}.{name} divides something that has no share in this stage; with one: {', '.join(parents)}"
            )
