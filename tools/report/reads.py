"""What was read: the mixture over time, stacked, and where the curriculum stands."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_mixers.ratios import WEIGHT_UNIT
from tools.report.content import Block, Figure, Missing, Section, Table, Text
from tools.report.figures import GREY, Line, area_colour_of, lines, stack
from tools.report.metrics_file import Numbers
from tools.report.numbers import percent, short
from tools.report.run_record import RunRecord
from tools.report.thinning import Curve

LEAST_STRETCHES, MOST_STRETCHES = 8, 120
"""Of a stack: what a figure can show, and what keeps forty topics small."""
SAMPLES_PER_STRETCH = 50
"""At least, beyond the fewest stretches: a share of so many is told to 2 %."""
MOST_AREAS = 12
Stretch = tuple[float, float, dict[str, float]]
"""(first token, token after the last, share of each source)."""


@dataclass(frozen=True)
class Shares:
    """Share of the tokens of each source in stretches between edges; what lies beyond `read_until` is planned."""

    edges: Numbers
    by_source: dict[str, Numbers]
    read_until: float


def reads(runs: Sequence[RunRecord]) -> Section:
    """Two stacks per run, its curriculum, and a table of all sources."""
    blocks: list[Block] = []
    is_planned = False
    for run in runs:
        shares = shares_of(run)
        if shares is None:
            blocks.append(Missing(f"{run.name}: neither metrics.jsonl nor schedule.json say what was read"))
            continue
        is_planned |= bool(shares.edges[-1] > shares.read_until)
        suffix = f", {run.name}" if len(runs) > 1 else ""
        by_language = grouped(shares.by_source, lambda name: name.split("/", 1)[0])
        by_topic = _largest(grouped(shares.by_source, topic_of))
        for title, groups in (("Mixture by language", by_language), ("Mixture by topic", by_topic)):
            areas = [
                (name, GREY if name.startswith("other (") else area_colour_of(index), values)
                for index, (name, values) in enumerate(groups.items())
            ]
            begins, planned = run.stage_begins, shares.read_until
            blocks += stack(title + suffix, shares.edges, areas, stages=begins, planned_from=planned)
        blocks += _curriculum(run, shares, suffix)
        blocks += _table(run, suffix)
    if is_planned:
        blocks.append(Text("The paler part of a stack, on its right, is planned and not read yet."))
    return Section("What was read", blocks)


def shares_of(run: RunRecord) -> Shares | None:
    """From the steps' counts as far as they go, from the schedule beyond; None if there is neither."""
    read = _read(run)
    read_until = read[-1][1] if read else 0.0
    rows = [*read, *_planned(run, read_until)]
    if not rows:
        return None
    edges = np.array([rows[0][0], *(end for _, end, _ in rows)])
    names = dict.fromkeys(name for _, _, shares in rows for name in shares)
    return Shares(edges, {name: np.array([row[2].get(name, 0.0) for row in rows]) for name in names}, read_until)


def _read(run: RunRecord) -> list[Stretch]:
    readings = run.metrics.readings.all()
    if not readings:
        return []
    whole: list[tuple[float, dict[str, float]]] = [(run.tokens_before, {}), *readings]
    # Cumulative, so leaving some out changes no share between the others.
    num = int(min(max(sum(readings[-1][1].values()) / SAMPLES_PER_STRETCH, LEAST_STRETCHES), MOST_STRETCHES))
    kept = np.unique(np.linspace(0, len(whole) - 1, num + 1).round().astype(int)).tolist()
    return stretches([whole[index] for index in kept])


def stretches(readings: Sequence[tuple[float, Mapping[str, float]]]) -> list[Stretch]:
    """Between cumulative counts at ascending numbers of tokens, without those in which nothing was read."""
    found = []
    begin, before = readings[0]
    for end, counts in readings[1:]:
        steps = {name: max(0.0, count - before.get(name, 0.0)) for name, count in counts.items()}
        total = sum(steps.values())
        if total > 0 and end > begin:
            found.append((begin, end, {name: step / total for name, step in steps.items()}))
            begin, before = end, counts
    return found


def _planned(run: RunRecord, read_until: float) -> list[Stretch]:
    """What the schedule says of the tokens beyond `read_until`."""
    found = []
    for phase in run.schedule.phases if run.schedule is not None else ():
        begin, end = run.tokens_at_sample(phase.start_sample), run.tokens_at_sample(phase.end_sample)
        if begin is not None and end is not None and end > read_until:
            shares = {name: weight / WEIGHT_UNIT for name, weight in phase.weights}
            found.append((max(begin, read_until), end, shares))
    return found


def topic_of(source: str) -> str:
    """language/source/topic of a source's name, without its difficulty bucket."""
    return "/".join(source.split("/")[:3])


def bucket_of(source: str) -> str | None:
    parts = source.split("/")
    return parts[3] if len(parts) == 4 else None


def grouped(by_source: Mapping[str, Numbers], key: Callable[[str], str]) -> dict[str, Numbers]:
    """Sums over the sources with equal keys, sorted by key."""
    groups: dict[str, Numbers] = {}
    for name in sorted(by_source):
        groups[key(name)] = groups.get(key(name), np.zeros(len(by_source[name]))) + by_source[name]
    return groups


def _largest(groups: dict[str, Numbers]) -> dict[str, Numbers]:
    """The largest groups in their order, the rest as one."""
    if len(groups) <= MOST_AREAS:
        return groups
    kept = set(sorted(groups, key=lambda name: -float(groups[name].sum()))[: MOST_AREAS - 1])
    rest = sum((values for name, values in groups.items() if name not in kept), np.zeros(1))
    return {name: values for name, values in groups.items() if name in kept} | {
        f"other ({len(groups) - len(kept)} topics)": rest
    }


def _curriculum(run: RunRecord, shares: Shares, suffix: str) -> list[Figure]:
    """Mean difficulty of what each paced language read; nothing for a run without buckets."""
    drawn = []
    languages = sorted({name.split("/", 1)[0] for name in shares.by_source if bucket_of(name) is not None})
    for index, language in enumerate(languages):
        mine = {name: values for name, values in shares.by_source.items()
                if bucket_of(name) is not None and name.startswith(f"{language}/")}  # fmt: skip
        curve = difficulty(shares.edges, mine)
        drawn.append(Line(label=language, curve=curve, stroke=index))
    label = "difficulty quantile read (0 easy, 1 hard)"
    return lines(f"Curriculum position{suffix}", drawn, y_label=label, stages=run.stage_begins, may_be_log=False)


def difficulty(edges: Numbers, by_source: Mapping[str, Numbers]) -> Curve:
    """Mean quantile of difficulty in each stretch; the band spans the buckets that were read in it."""
    buckets = sorted({bucket_of(name) or "" for name in by_source})
    of_bucket = np.zeros((len(buckets), len(edges) - 1))
    for name, values in by_source.items():
        of_bucket[buckets.index(bucket_of(name) or "")] += values
    total = of_bucket.sum(axis=0)
    read = total > 0
    middles = (np.arange(len(buckets)) + 0.5) / len(buckets)
    is_read = of_bucket[:, read] > 0
    x = ((edges[:-1] + edges[1:]) / 2)[read]
    low = is_read.argmax(axis=0) / len(buckets)
    high = 1 - is_read[::-1].argmax(axis=0) / len(buckets)
    return Curve(x, middles @ (of_bucket[:, read] / total[read]), low, high)


def _table(run: RunRecord, suffix: str) -> list[Block]:
    readings = run.metrics.readings.all()
    if not readings or run.seq_length is None:
        return []
    _, counts = readings[-1]
    topics: dict[str, float] = {}
    for name, count in counts.items():
        topics[topic_of(name)] = topics.get(topic_of(name), 0.0) + count
    total = sum(topics.values()) or 1.0
    rows = [
        [topic, short(count * run.seq_length), percent(count / total, 2)] for topic, count in sorted(topics.items())
    ]
    return [Table(header=[f"topic{suffix}", "tokens read", "share"], rows=rows)]
