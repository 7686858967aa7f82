"""What was read: the mixture over time, stacked, and where the curriculum stands."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_mixers.ratios import WEIGHT_UNIT
from tools.report.content import Block, Figure, Missing, Section, Table, Text
from tools.report.figures import GREY, Line, area_colour_of, edges_between, lines, stack
from tools.report.metrics_file import Numbers
from tools.report.numbers import percent, short
from tools.report.run_record import RunRecord
from tools.report.thinning import Curve

LEAST_STRETCHES, MOST_STRETCHES = 8, 120
"""Of a stack: what a figure can show, and what keeps forty topics small."""
SAMPLES_PER_STRETCH = 50
"""At least, beyond the fewest stretches: a share of so many is told to 2 %."""
MOST_AREAS = 12


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
    edges, by_source = _read(run)
    read_until = float(edges[-1]) if len(edges) else 0.0
    planned_edges, planned = _planned(run, read_until)
    if not len(edges) and not len(planned_edges):
        return None
    names = list(dict.fromkeys([*by_source, *planned]))
    num_read, num_planned = max(0, len(edges) - 1), max(0, len(planned_edges) - 1)
    joined = {
        name: np.concatenate((by_source.get(name, np.zeros(num_read)), planned.get(name, np.zeros(num_planned))))
        for name in names
    }
    whole = np.concatenate((edges, planned_edges[1:])) if len(edges) and len(planned_edges) else edges
    return Shares(whole if len(whole) else planned_edges, joined, read_until)


def _read(run: RunRecord) -> tuple[Numbers, dict[str, Numbers]]:
    readings = run.metrics.readings.all()
    if not readings:
        return np.zeros(0), {}
    tokens, counts = zip(*[(run.tokens_before, {}), *readings], strict=True)
    # Cumulative, so leaving some out changes no share between the others.
    num = int(min(max(sum(counts[-1].values()) / SAMPLES_PER_STRETCH, LEAST_STRETCHES), MOST_STRETCHES))
    kept = np.unique(np.linspace(0, len(tokens) - 1, num + 1).round().astype(int)).tolist()
    names = list(dict.fromkeys(name for index in kept for name in counts[index]))
    cumulative = {name: np.array([counts[index].get(name, 0.0) for index in kept]) for name in names}
    edges, shares = edges_between(np.array([tokens[index] for index in kept]), cumulative)
    return (edges, shares) if len(edges) > 1 else (np.zeros(0), {})


def _planned(run: RunRecord, read_until: float) -> tuple[Numbers, dict[str, Numbers]]:
    """What the schedule says of the tokens beyond `read_until`."""
    if run.schedule is None:
        return np.zeros(0), {}
    edges: list[float] = []
    rows: list[dict[str, float]] = []
    for phase in run.schedule.phases:
        begin, end = run.tokens_at_sample(phase.start_sample), run.tokens_at_sample(phase.end_sample)
        if begin is None or end is None or end <= read_until:
            continue
        edges = edges or [max(begin, read_until)]
        edges.append(end)
        rows.append({name: weight / WEIGHT_UNIT for name, weight in phase.weights})
    names = list(dict.fromkeys(name for row in rows for name in row))
    return np.array(edges), {name: np.array([row.get(name, 0.0) for row in rows]) for name in names}


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
