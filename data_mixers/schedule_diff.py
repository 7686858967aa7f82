"""What differs between two schedules, as lines a person reads, and from which sample on the data differs."""

from bisect import bisect_left
from dataclasses import fields

from data_mixers.ratios import WEIGHT_UNIT
from data_mixers.schedule import Phase, Schedule, ScheduledSource, Skip


def diff(a: Schedule, b: Schedule) -> list[str]:
    """Lines that say how b differs from a; empty exactly when they are equal.

    The first line says from which sample on other data is read, if any is.
    """
    if a == b:
        return []
    lines = [_first_line(a, b)]
    for key in ("seed", "seq_length"):
        if getattr(a, key) != getattr(b, key):
            lines.append(f"{key}: {getattr(a, key)} -> {getattr(b, key)}")
    lines += _sources(a, b)
    for number in range(max(len(a.phases), len(b.phases))):
        lines += _phase(number, *(s.phases[number] if number < len(s.phases) else None for s in (a, b)))
    lines += [f"skip no longer there: {_skip(skip)}" for skip in a.skips if skip not in b.skips]
    lines += [f"new skip: {_skip(skip)}" for skip in b.skips if skip not in a.skips]
    return lines


def first_difference(a: Schedule, b: Schedule) -> int | None:
    """The first sample whose past, itself included, differs; None if one schedule is a beginning of the other.

    Cost: log2(samples) digests.
    """
    common = min(a.num_samples, b.num_samples)
    if a.past_digest(common) == b.past_digest(common):
        return None
    # The shortest past that differs is one sample longer than what both have; seeds differ before the first sample.
    differing = bisect_left(range(common), True, key=lambda past: a.past_digest(past) != b.past_digest(past))
    return max(0, differing - 1)


def _first_line(a: Schedule, b: Schedule) -> str:
    sample = first_difference(a, b)
    if sample is not None:
        return f"other data from sample {sample} on"
    if a.num_samples == b.num_samples:
        return "the same data in every sample"
    return (
        f"the same data in the {min(a.num_samples, b.num_samples)} samples both have; {a.num_samples} samples before, "
        f"{b.num_samples} now"
    )


def _sources(a: Schedule, b: Schedule) -> list[str]:
    before, after = ({source.name: source for source in s.sources} for s in (a, b))
    old_ranks, new_ranks = list(before), list(after)
    lines = [f"source {name} is no longer there" for name in before if name not in after]
    lines += [f"new source {name}" for name in after if name not in before]
    for name in before:
        if name in after:
            old, new = old_ranks.index(name), new_ranks.index(name)
            if old != new:
                lines.append(f"source {name}: rank {old} -> {new}")
            lines += _source(before[name], after[name])
    return lines


def _source(before: ScheduledSource, after: ScheduledSource) -> list[str]:
    lines = []
    for key in (field.name for field in fields(ScheduledSource) if field.name != "name"):
        old, new = getattr(before, key), getattr(after, key)
        if old != new:
            shown = "other token files" if key == "shards" else f"{old} -> {new}"
            lines.append(f"source {before.name}: {key}: {shown}")
    return lines


def _phase(number: int, before: Phase | None, after: Phase | None) -> list[str]:
    if before == after:
        return []
    if before is None or after is None:
        phase, verb = (after, "is new") if before is None else (before, "is no longer there")
        assert phase is not None
        return [f"phase {number} ({phase.kind} {phase.name}, samples {phase.start_sample}:{phase.end_sample}) {verb}"]
    lines = []
    for key in ("name", "kind", "start_sample", "num_samples"):
        old, new = getattr(before, key), getattr(after, key)
        if old != new:
            lines.append(f"phase {number} ({after.name}): {key}: {old} -> {new}")
    old_weights, new_weights = dict(before.weights), dict(after.weights)
    for name in {**old_weights, **new_weights}:
        old, new = old_weights.get(name, 0), new_weights.get(name, 0)
        if old != new:
            shares = f"{100 * old / WEIGHT_UNIT:.4f} % -> {100 * new / WEIGHT_UNIT:.4f} %"
            lines.append(f"phase {number} ({after.name}): weight of {name}: {shares}")
    return lines


def _skip(skip: Skip) -> str:
    return f"{skip.num_samples} samples of data left out at sample {skip.at_sample}"
