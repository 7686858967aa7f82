"""Every change of the phase with its reason, and what went wrong: data left out, slow ranks, restarts."""

import datetime
from collections.abc import Sequence

from data_mixers.ratios import WEIGHT_UNIT
from data_mixers.schedule import Phase, Schedule
from tools.report.content import Block, Section, Table, Text
from tools.report.metrics_file import Row, number, words
from tools.report.numbers import duration, fixed, percent, short
from tools.report.reads import bucket_of, topic_of
from tools.report.run_record import RunRecord, stage_of

MOST_MOVES = 4
"""Changes of share told of a phase; the largest."""
MOST_PHASES = 400


def phases(runs: Sequence[RunRecord]) -> Section:
    """A table per run: from where on, what changes, and why."""
    blocks: list[Block] = []
    for run in runs:
        if run.schedule is None or not run.schedule.phases:
            blocks.append(Text(f"{run.name}: no schedule, so no phase is known."))
            continue
        rows = phase_rows(run, run.schedule)
        shown = rows[:MOST_PHASES]
        header = ["kind", "phase", "reason", "largest changes of share", "from iteration", "from token"]
        blocks.append(Text(f"{run.name}: {len(rows)} phases and entries of its schedule."))
        blocks.append(Table(header=header, rows=shown, num_text_columns=4))
        if len(rows) > len(shown):
            blocks.append(Text(f"The other {len(rows) - len(shown)} are in schedule.json."))
    return Section("Phases and decisions", blocks)


def phase_rows(run: RunRecord, schedule: Schedule) -> list[list[str]]:
    """A row per phase and per range left out, in the order of samples."""
    found = []
    for before, phase in zip((None, *schedule.phases), schedule.phases, strict=False):
        found.append((phase.start_sample, [*phase_told(run, before, phase), *_where(run, phase.start_sample)]))
    for skip in schedule.skips:
        why = _why_left_out(run, skip.at_sample)
        row = ["left out", "–", why, f"{skip.num_samples:,} samples"]
        found.append((skip.at_sample, [*row, *_where(run, skip.at_sample)]))
    return [row for _, row in sorted(found, key=lambda item: item[0])]


def phase_told(run: RunRecord, before: Phase | None, phase: Phase) -> list[str]:
    """Kind, name, reason and the largest changes of share of a phase."""
    return [phase.kind, phase.name, reason(run, before, phase), moves(before, phase)]


def reason(run: RunRecord, before: Phase | None, phase: Phase) -> str:
    """Why a phase begins, in the words of who decided it where they are known."""
    if phase.kind == "exhaustion":
        return "a source has been read as often as it may be; its share goes to its kin"
    if phase.kind == "stage":
        if before is None:
            return "the run begins"
        is_step = stage_of(before.name) == stage_of(phase.name)
        return "the curriculum turns to harder or other buckets" if is_step else "the plan's next stage begins"
    decided = [row for row in run.metrics.rows[phase.kind] if number(row, "start_sample") == phase.start_sample]
    who = {"reweight": "the controller moves topics", "guard": "the forgetting guard moves the language's share"}
    told = [note for row in decided for note in [_decided(row), *words(row, "notes")] if note]
    return "; ".join([who[phase.kind], *dict.fromkeys(told)])


def moves(before: Phase | None, phase: Phase) -> str:
    """The largest changes of topics' shares; of the first phase, its largest shares."""
    now, was = _shares(phase), _shares(before) if before is not None else {}
    if before is None:
        largest = sorted(now.items(), key=lambda item: -item[1])[:MOST_MOVES]
        return ", ".join(f"{topic} {percent(share, 2)}" for topic, share in largest)
    changes = {topic: now.get(topic, 0.0) - was.get(topic, 0.0) for topic in {**was, **now}}
    largest = sorted(changes.items(), key=lambda item: -abs(item[1]))[:MOST_MOVES]
    told = [f"{t} {percent(was.get(t, 0), 2)} → {percent(now.get(t, 0), 2)}" for t, c in largest if abs(c) > 5e-5]
    if told:
        return ", ".join(told)
    buckets = [sorted({b for name, _ in p.weights if (b := bucket_of(name))}) for p in (before, phase)]
    if buckets[0] != buckets[1]:
        return f"buckets {', '.join(buckets[0]) or '–'} → {', '.join(buckets[1]) or '–'}"
    return "none of 0.01 %"


def _shares(phase: Phase) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, weight in phase.weights:
        found[topic_of(name)] = found.get(topic_of(name), 0.0) + weight / WEIGHT_UNIT
    return found


def _decided(row: Row) -> str:
    if isinstance(row.get("group"), str):
        return f"{row['group']}, decided at iteration {fixed(number(row, 'iteration'))}"
    worse = words(row, "worse")
    change = fixed(number(row, "change"), 4, sign=True)
    state = f"worse in {' and '.join(worse)}" if worse else "no longer worse"
    return f"{row.get('set')} {state} ({change} nats per token since the first validation)"


def _where(run: RunRecord, sample: int) -> tuple[str, str]:
    batch, tokens = run.global_batch_size, run.tokens_at_sample(sample)
    return (f"{sample // batch + 1:,}" if batch else "–"), ("–" if tokens is None else short(tokens))


def _why_left_out(run: RunRecord, sample: int) -> str:
    for row in run.metrics.rows["recovery"]:
        start, stop = number(row, "start_sample"), number(row, "stop_sample")
        if start is not None and stop is not None and start <= sample < stop:
            return f"{row.get('anomaly')} at iteration {fixed(number(row, 'bad_iteration'))}, {row.get('action')}"
    return "data.skip_samples of the configuration, or an anomaly whose row is no longer there"


def troubles(runs: Sequence[RunRecord]) -> Section:
    """Anomalies, faults of hardware, slow ranks, hangs, and every start."""
    blocks: list[Block] = []
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        blocks += _anomalies(run, prefix)
        blocks += _ranks(run, prefix)
        blocks += _starts(run, prefix)
    return Section("Anomalies and restarts", blocks or [Text("Nothing to report.")])


def _anomalies(run: RunRecord, prefix: str) -> list[Block]:
    recoveries = run.metrics.rows["recovery"]
    if not recoveries:
        return [Text(f"{prefix}no anomaly: no data was left out.")]
    rows = []
    for row in recoveries:
        left = [number(row, "start_sample"), number(row, "stop_sample")]
        rows.append(
            [
                str(row.get("anomaly")), str(row.get("action")), fixed(number(row, "bad_iteration")),
                fixed(number(row, "iteration")), _loss(row, "lm_loss"), _loss(row, "bound"), _loss(row, "grad_norm"),
                f"{fixed(left[0])}:{fixed(left[1])}",
            ]
        )  # fmt: skip
    steps, losses = ["bad iteration", "went on from"], ["loss", "allowed", "gradient norm"]
    header = [f"{prefix}anomaly", "action", *steps, *losses, "samples left out"]
    return [Table(header=header, rows=rows, num_text_columns=2)]


def _loss(row: Row, key: str) -> str:
    """A loss that is not finite is written as a word."""
    value = row.get(key)
    return value if isinstance(value, str) else fixed(number(row, key), 4)


def _ranks(run: RunRecord, prefix: str) -> list[Block]:
    blocks: list[Block] = []
    for row in run.metrics.rows["hardware"]:
        ranks = row.get("ranks")
        named = ", ".join(map(str, ranks)) if isinstance(ranks, list) else "?"
        where = fixed(number(row, "iteration"))
        blocks.append(Text(f"{prefix}hardware: rank {named} gave two losses for one step after iteration {where}."))
    slow = run.metrics.slowness
    if slow.num_comparisons:
        worst = ", ".join(f"{rank} ({times} of them)" for rank, times in slow.times_slow.most_common(8))
        told = f"slow: rank {worst}" if worst else "none was slow"
        blocks.append(
            Text(
                f"{prefix}{slow.num_ranks} ranks were compared {slow.num_comparisons:,} times; {told}; the slowest "
                f"took {slow.worst_ratio:.2f} times the median rank's own time in a step."
            )
        )
    stacks = sorted(path.name for path in run.folder.glob("stacks-*") if path.is_dir())
    if stacks:
        blocks.append(Text(f"{prefix}hangs: stacks of the ranks are in {', '.join(stacks)}."))
    return blocks


def _starts(run: RunRecord, prefix: str) -> list[Block]:
    if not run.attempts:
        return []
    rows, hosts = [], _hosts(run)
    ended: float | None = None
    for index, attempt in enumerate(run.attempts):
        waited = None if ended is None else max(0.0, attempt.began - ended)
        rows.append(
            [
                str(index + 1), _date(attempt.began), attempt.job or "–",
                hosts[index] if index < len(hosts) else "–", f"{attempt.first_iteration:,}",
                duration(attempt.last_seen - attempt.began), duration(waited),
            ]
        )  # fmt: skip
        ended = attempt.last_seen
    header = [f"{prefix}start", "began (UTC)", "Slurm job", "host", "after iteration", "lasted", "after waiting"]
    return [Table(header=header, rows=rows, num_text_columns=4)]


def _date(seconds: float) -> str:
    try:
        return f"{datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # a damaged attempts.json
        return "–"


def _hosts(run: RunRecord) -> list[str]:
    """Of each start, as far as manifest.json has kept as many."""
    earlier = run.manifest.get("attempts")
    all_starts = [*(earlier if isinstance(earlier, list) else []), run.manifest.get("attempt")]
    hosts = [str(start["host"]) for start in all_starts if isinstance(start, dict) and "host" in start]
    return hosts if len(hosts) == len(run.attempts) else []
