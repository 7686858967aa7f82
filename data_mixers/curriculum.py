"""Easy to hard as a pacing of weights over difficulty buckets, by the tokens a language has consumed in a stage.

A sort cuts every topic into the same number of buckets of equally many tokens, bucket 0 the easiest; bucket b of B then
holds the quantiles [b/B, (b+1)/B] of its topic. Every topic of a language stands at the same bucket at the same time,
so a controller that moves topics does not pull their difficulties apart; and every quantile gets the same share of the
stage, so that a topic with more text than the stage reads is thinned evenly and the stage still reaches its hard end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from data_mixers.errors import ConfigError
from data_mixers.manifest import SourceEntry

Pacing = Literal["low_to_high", "high_to_low", "random", "warmup_then_random"]


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """pacing: the order of buckets; warmup_share: see `bucket_shares`, for warmup_then_random alone."""

    pacing: Pacing = "low_to_high"
    languages: tuple[str, ...] = ("zh",)
    """Languages whose sources with buckets are paced; the recipe's text says Chinese."""
    warmup_share: float = 0.1


def bucket_shares(curriculum: Curriculum, num_buckets: int, begin: Fraction, end: Fraction) -> list[Fraction]:
    """The share of tokens of each bucket while the language's progress in the stage goes from `begin` to `end`.

    0 <= begin < end <= 1. The shares sum to 1; over the whole stage each bucket gets 1 / num_buckets.
    warmup_then_random: the first `warmup_share` of the stage reads the easiest `warmup_share` of the text in ascending
    order (rounded to whole buckets), the rest reads all other buckets at once, in equal parts.
    """
    if curriculum.pacing == "random":
        return [Fraction(1, num_buckets)] * num_buckets
    easy = _num_in_turn(curriculum, num_buckets)
    read = []
    for bucket in range(num_buckets):
        if bucket < easy:
            low, high = Fraction(bucket, num_buckets), Fraction(bucket + 1, num_buckets)
            read.append(max(Fraction(0), min(end, high) - max(begin, low)))
        else:
            spread = max(Fraction(0), end - max(begin, Fraction(easy, num_buckets)))
            read.append(spread / (num_buckets - easy))
    total = sum(read, Fraction(0))
    shares = [part / total for part in read]
    return shares[::-1] if curriculum.pacing == "high_to_low" else shares


def steps(curriculum: Curriculum, num_buckets: int) -> list[Fraction]:
    """Ends of the stretches of a stage inside which the shares do not change; the last is 1."""
    if curriculum.pacing == "random":
        return [Fraction(1)]
    easy = _num_in_turn(curriculum, num_buckets)
    ends = [Fraction(bucket + 1, num_buckets) for bucket in range(easy)]
    return ends if easy == num_buckets else [*ends, Fraction(1)]


def _num_in_turn(curriculum: Curriculum, num_buckets: int) -> int:
    """Buckets that are read one after the other; the rest is read at once."""
    if curriculum.pacing != "warmup_then_random":
        return num_buckets
    return min(max(round(curriculum.warmup_share * num_buckets), 1), num_buckets)


def buckets_of(curriculum: Curriculum, entries: Sequence[SourceEntry], *, where: str) -> int:
    """How many buckets the paced languages have, the same in all their topics.

    Sources of those languages without buckets (books, code) are read as they are.
    Errors: ConfigError naming `syne data sort` if no source of a language has buckets, or topics differ in theirs.
    """
    topics: dict[tuple[str, str, str], list[str]] = {}
    for entry in entries:
        if entry.role == "train" and entry.language in curriculum.languages and entry.bucket is not None:
            topics.setdefault((entry.language, entry.source, entry.topic), []).append(entry.bucket)
    sorted_languages = {language for language, _, _ in topics}
    if not topics or sorted_languages < set(curriculum.languages):
        unsorted = [language for language in curriculum.languages if language not in sorted_languages]
        raise ConfigError(
            f"{where}.languages={list(curriculum.languages)}: no source of {', '.join(unsorted) or 'them'} is sorted by"
            " difficulty; run `syne data sort` on one, or leave the language or the curriculum out"
        )
    first, wanted = next((topic, sorted(buckets)) for topic, buckets in topics.items())
    for topic, buckets in topics.items():
        if sorted(buckets) != wanted:
            raise ConfigError(
                f"{where}: {'/'.join(topic)} has buckets {sorted(buckets)}, {'/'.join(first)} has {wanted}; "
                "run `syne data sort` on them with one number of buckets"
            )
    return len(wanted)


def paced(
    curriculum: Curriculum,
    weights: Mapping[str, Fraction],
    shares: Sequence[Fraction],
    entries: Mapping[str, SourceEntry],
) -> dict[str, Fraction]:
    """`weights` with each paced topic's tokens divided over its buckets by `shares`; the topic's sum stays.

    Buckets rank by name ("00" before "01"), as `syne data sort` names them.
    """
    topics: dict[tuple[str, str, str], list[str]] = {}
    for name in weights:
        entry = entries[name]
        if entry.language in curriculum.languages and entry.bucket is not None:
            topics.setdefault((entry.language, entry.source, entry.topic), []).append(name)
    changed = dict(weights)
    for names in topics.values():
        total = sum((weights[name] for name in names), Fraction(0))
        for name, share in zip(sorted(names, key=lambda name: entries[name].bucket or ""), shares, strict=True):
            changed[name] = total * share
    return changed
