"""What happens when a source has been read as often as it may: its share goes to its nearest kin.

The sample at which that happens follows from the schedule so far, so it is the same for everyone who computes it.
"""

from bisect import bisect_left
from collections.abc import Collection, Mapping
from fractions import Fraction

from data_mixers.errors import ConfigError
from data_mixers.manifest import SourceEntry
from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule
from data_mixers.windows import windows_in_shard


def window_limits(entries: Mapping[str, SourceEntry], *, seq_length: int, max_epochs: float) -> dict[str, int]:
    """Train source -> how many windows of it may be read in the whole run."""
    return {
        name: int(
            max_epochs
            * sum(
                windows_in_shard(shard.num_tokens, seq_length=seq_length, is_packed=entry.packed_seq_length is not None)
                for shard in entry.shards
            )
        )
        for name, entry in entries.items()
        if entry.role == "train"
    }


def first_exhausted(schedule: Schedule, limits: Mapping[str, int]) -> tuple[int, frozenset[str]] | None:
    """(first sample that would read beyond a limit, the sources at their limit there); None: the schedule fits.

    Cost: a sampler, and a bisection over the samples, some 25 look-ups.
    """
    sampler = Sampler(schedule)
    names = [source.name for source in schedule.sources]

    def beyond(sample: int) -> bool:
        return any(count > limits[name] for name, count in zip(names, sampler.cursors(sample), strict=True))

    if not beyond(schedule.num_samples):
        return None
    low = bisect_left(range(1, schedule.num_samples), True, key=beyond)
    counts = dict(zip(names, sampler.cursors(low + 1), strict=True))
    return low, frozenset(name for name, count in counts.items() if count > limits[name])


def without(
    weights: Mapping[str, Fraction], gone: Collection[str], entries: Mapping[str, SourceEntry]
) -> dict[str, Fraction]:
    """`weights` with the share of exhausted sources given to their nearest kin, in proportion to what these have.

    Nearest: other buckets of the topic, then other topics of the source, then other sources of the language; the
    language's share never moves.
    Errors: ConfigError if a language has nothing left.
    """
    changed = {name: weight for name, weight in weights.items() if name not in gone}
    for name in sorted(gone):
        weight = weights.get(name, Fraction(0))
        if not weight:
            continue
        entry = entries[name]
        for level in (3, 2, 1):
            kin = [n for n in changed if _place(entries[n])[:level] == _place(entry)[:level]]
            total = sum((weights[n] for n in kin), Fraction(0))
            if total:
                for n in kin:
                    changed[n] += weight * weights[n] / total
                break
        else:
            raise ConfigError(
                f"every source of language {entry.language} has been read as often as data.max_epochs allows; "
                "add data, lower the language's share or the stage's tokens, or raise data.max_epochs"
            )
    return changed


def _place(entry: SourceEntry) -> tuple[str, str, str]:
    return entry.language, entry.source, entry.topic
