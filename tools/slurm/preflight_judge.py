"""From what each rank measured to what is wrong, by name of the node. Arithmetic only: no torch, no files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

MAX_SKEW_SECONDS = 1.0
"""Ours: files written on two nodes are ordered by their times, and leases expire by them."""


@dataclass(frozen=True, kw_only=True)
class RankFacts:
    """One rank. Rates are None where they were not measured on it."""

    rank: int
    node: str
    versions: Mapping[str, str]
    hashes: Mapping[str, str]
    """What must be the same everywhere: file -> hash, or what is wrong with it."""
    clock: float
    """Seconds since 1970, all ranks at the same moment, to some milliseconds."""
    matmul_tflops: float
    memory_gbps: float
    write_mbps: float | None = None
    """With fsync and rename; on the first rank of a node."""
    file_fault: str | None = None
    pairs_gbps: Mapping[str, float] = field(default_factory=dict)
    """All-reduce with one other node alone: node -> rate; on the first rank of a node."""


@dataclass(frozen=True)
class Limits:
    """Below this part of the median a rate is odd. Ours: a healthy node is within a few per cent of its peers."""

    matmul: float = 0.85
    memory: float = 0.85
    network: float = 0.6
    disk: float = 0.2
    """Of a shared file system, which others use too."""


CPU_LIMITS = Limits(matmul=0.4, memory=0.4, network=0.3, disk=0.1)
"""Cores are shared with others, so rates scatter."""


def judge(ranks: Sequence[RankFacts], limits: Limits) -> list[str]:
    """One sentence for each fault, naming node and rank; empty: nothing is wrong."""
    writes = {rank.rank: rank.write_mbps for rank in ranks if rank.write_mbps is not None}
    return [
        *_different("version of", {rank.rank: rank.versions for rank in ranks}, ranks),
        *_different("content of", {rank.rank: rank.hashes for rank in ranks}, ranks),
        *_skewed(ranks),
        *_slow("matmul", "TFLOP/s", {rank.rank: rank.matmul_tflops for rank in ranks}, limits.matmul, ranks),
        *_slow("memory copy", "GB/s", {rank.rank: rank.memory_gbps for rank in ranks}, limits.memory, ranks),
        *_slow("write and fsync", "MB/s", writes, limits.disk, ranks),
        *(f"{rank.node}: {rank.file_fault}" for rank in ranks if rank.file_fault is not None),
        *_slow_nodes(ranks, limits.network),
    ]


def _different(what: str, found: Mapping[int, Mapping[str, str]], ranks: Sequence[RankFacts]) -> list[str]:
    """Who differs from the most, subject by subject; a node is named once."""
    faults = []
    for subject in sorted({name for facts in found.values() for name in facts}):
        values = {rank.rank: found[rank.rank].get(subject, "missing") for rank in ranks}
        counts = Counter(values.values())
        if len(counts) == 1:
            continue
        usual, _ = counts.most_common(1)[0]
        # Of two nodes that differ neither is the usual one: both are named.
        tied = list(counts.values()).count(counts[usual]) > 1
        odd: dict[str, str] = {}
        for rank in ranks:
            if tied or values[rank.rank] != usual:
                odd.setdefault(rank.node, values[rank.rank])
        shown = ", ".join(f"{node} has {value}" for node, value in odd.items())
        faults.append(f"{what} {subject}: {shown}" + ("" if tied else f"; the others have {usual}"))
    return faults


def _skewed(ranks: Sequence[RankFacts]) -> list[str]:
    middle = median(rank.clock for rank in ranks)
    odd = {rank.node: rank.clock - middle for rank in ranks if abs(rank.clock - middle) > MAX_SKEW_SECONDS}
    return [f"{node}: its clock is {skew:+.1f} s off the others'" for node, skew in odd.items()]


def _slow(what: str, unit: str, rates: Mapping[int, float], limit: float, ranks: Sequence[RankFacts]) -> list[str]:
    if not rates:
        return []
    best = median(sorted(rates.values())[len(rates) // 2 :])  # of the better half: with two, the better one
    nodes = {rank.rank: rank.node for rank in ranks}
    return [
        f"{nodes[rank]}, rank {rank}: {what} {rate:.3g} {unit}, the others {best:.3g}"
        for rank, rate in sorted(rates.items())
        if rate < limit * best
    ]


def _slow_nodes(ranks: Sequence[RankFacts], limit: float) -> list[str]:
    """A node all of whose links are slow. One slow link between two healthy nodes is named as a pair."""
    links = {tuple(sorted((rank.node, other))): rate for rank in ranks for other, rate in rank.pairs_gbps.items()}
    if len(links) < 2:
        return []  # nothing to compare with
    usual = median(sorted(links.values())[len(links) // 2 :])
    slow = {pair for pair, rate in links.items() if rate < limit * usual}
    nodes = {node for pair in links for node in pair}
    odd = [n for n in sorted(nodes) if all(pair in slow for pair in links if n in pair)]
    faults = []
    for node in odd:
        rates = ", ".join(f"{links[pair]:.3g}" for pair in sorted(slow) if node in pair)
        faults.append(f"{node}: all-reduce with its neighbours {rates} GB/s, other pairs {usual:.3g}")
    for pair in sorted(slow):
        if not set(pair) & set(odd):
            faults.append(f"{pair[0]} and {pair[1]}: all-reduce {links[pair]:.3g} GB/s, other pairs {usual:.3g}")
    return faults
