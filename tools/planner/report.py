"""The planner's answer as plain values and as text; each number says its unit and whether it is computed or given."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tools.columns import aligned
from tools.planner.layout import Job
from tools.planner.memory import checkpoint_bytes
from tools.planner.search import OUT_OF_MEMORY, Candidate, Place

GB = 1e9
SHOWN_BEST = 5
EXAMPLES = 2
RESERVE_REASON = "CUDA context, NCCL and fragmentation; assumed, --reserve-gib"


def as_tree(candidate: Candidate, job: Job, place: Place) -> dict[str, Any]:
    """One candidate as plain values; units are in the names."""
    tree: dict[str, Any] = {
        "layout": str(candidate.layout),
        "overrides": candidate.layout.overrides(),
        "status": candidate.status,
        "rule": candidate.rule,
        "reason": candidate.reason,
    }
    if candidate.memory is not None:
        memory = dataclasses.asdict(candidate.memory) | {"total": candidate.memory.total}
        tree["memory_bytes_per_gpu"] = {"kind": "computed", **memory}
    if candidate.speed is not None:
        speed = candidate.speed
        # Of the whole run; without validation, checkpoints, restarts and queues.
        gpu_hours = job.total_tokens / speed.tokens_per_second_per_gpu / 3600
        hours = gpu_hours / place.world_size
        tree["speed"] = {
            "tokens_per_second_per_gpu": round(speed.tokens_per_second_per_gpu, 1),
            "tokens_per_second": round(speed.tokens_per_second_per_gpu * place.world_size, 1),
            "mfu_causal": round(speed.mfu, 4),
            "kind": speed.kind,
            "factors": {name: dataclasses.asdict(factor) for name, factor in speed.factors.items()},
        }
        tree["cost"] = {"hours": round(hours, 2), "gpu_hours": round(gpu_hours, 1), "kind": speed.kind}
    return tree


def checkpoint_tree(job: Job, *, bytes_per_second: float) -> dict[str, Any]:
    """Size of one checkpoint and the time to write it at the stated rate."""
    size = checkpoint_bytes(job)
    return {
        "size_bytes": size,
        "size_kind": "computed",
        "write_bytes_per_second": bytes_per_second,
        "write_rate_kind": "assumed (--save-gb-per-second: your file system's)",
        "write_seconds": round(size / bytes_per_second, 1),
    }


def groups(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Candidates that do not run, by the rule that decided."""
    by_rule: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_rule.setdefault(candidate.rule, []).append(candidate)
    return [
        {
            "rule": rule,
            "count": len(members),
            "examples": [{"layout": str(m.layout), "reason": m.reason} for m in members[:EXAMPLES]],
        }
        for rule, members in by_rule.items()
    ]


MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "total")


def candidate_lines(trees: Sequence[dict[str, Any]]) -> list[str]:
    """A table: memory by part in GB, tokens/s/GPU, hours, GPU-hours, and what the layout costs."""
    head = ["layout", *MEMORY_PARTS, "tok/s/GPU", "MFU", "hours", "GPU-h", "kind", "costs"]
    rows = [head]
    for tree in trees:
        memory, speed, cost = tree["memory_bytes_per_gpu"], tree["speed"], tree["cost"]
        rows.append([
            tree["layout"], *(f"{memory[part] / GB:.1f}" for part in MEMORY_PARTS),
            f"{speed['tokens_per_second_per_gpu']:,.0f}", f"{100 * speed['mfu_causal']:.1f} %",
            f"{cost['hours']:,.0f}", f"{cost['gpu_hours']:,.0f}", speed["kind"], tree["reason"],
        ])  # fmt: skip
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text with aligned columns; the last one is free."""
    return aligned(rows, num_left=1, ends_in_text=True).splitlines()


def place_line(place: Place) -> str:
    """Where, and how much memory counts."""
    card = place.card
    return (
        f"{place.nodes} x {place.gpus_per_node} {card.name} = {place.world_size} GPUs;"
        f" {place.usable_bytes / GB:.1f} GB of {card.memory_bytes / GB:.1f} GB usable"
        f" ({place.reserve_bytes / GB:.1f} GB held back: {RESERVE_REASON})"
    )


def as_text(tree: dict[str, Any], place_text: str, *, shows_all: bool) -> str:
    """The answer for one number of nodes."""
    job = tree["job"]
    lines = [
        f"# --- planner: {place_text}",
        f"model {job['model']}, {job['num_parameters'] / 1e9:.2f} B parameters; {job['total_tokens'] / 1e9:.4g} B"
        f" tokens; {job['global_batch_size']} sequences of {job['seq_length']} tokens a step; {job['dtype']};"
        f" layers {job['layers']}",
        f"arithmetic (computed): {job['flops_per_token'] / 1e9:.2f} GFLOP a token = {job['flops_formula']}",
        *(f"note: {note}" for note in tree["notes"]),
        "",
        "memory in GB a GPU: computed. tok/s/GPU, MFU, hours: as `kind` says (docs/planner.md).",
    ]
    lines += ["", "## as configured", *_one(tree["as_configured"])]
    lines += ["", f"## best of the {tree['num_candidates']} layouts tried"]
    lines += candidate_lines(tree["best"]) if tree["best"] else [_none(tree["refused"])]
    lines += ["", "## refused"]
    if shows_all:
        lines += columns(
            [["layout", "rule", "reason"]] + [[c["layout"], c["rule"], c["reason"]] for c in tree["refused_all"]]
        )
    else:
        for group in tree["refused"]:
            lines.append(f"{group['count']:5d}  {group['rule']}")
            lines += [f"         {example['layout']}: {example['reason']}" for example in group["examples"]]
        lines.append("(--all lists every one)")
    checkpoint = tree["checkpoint"]
    lines += [
        "",
        f"checkpoint: {checkpoint['size_bytes'] / GB:.1f} GB (computed), {checkpoint['write_seconds']:,.0f} s to write"
        f" at {checkpoint['write_bytes_per_second'] / GB:g} GB/s ({checkpoint['write_rate_kind']})",
    ]
    if tree["epochs"] is not None:
        lines += ["", "## how often each source is read, in epochs (computed from the manifests)"]
        lines += [f"{name}: {value:.4g}" for name, value in tree["epochs"].items()]
    return "\n".join(lines) + "\n"


def _none(refused: Sequence[dict[str, Any]]) -> str:
    if any(group["rule"] == OUT_OF_MEMORY for group in refused):
        return "none fits: more nodes, or a card with more memory"
    return "none runs, and not for want of memory: the refusals below say what to change"


def _one(tree: dict[str, Any]) -> list[str]:
    lines = [f"{tree['layout']}: {tree['status']}" + ("" if tree["status"] == "runs" else f" ({tree['reason']})")]
    return lines + (candidate_lines([tree]) if tree["status"] == "runs" else [])


def row_of(tree: dict[str, Any], place: Place) -> list[str]:
    """One line of the table over numbers of nodes."""
    name = [str(place.nodes), str(place.world_size)]
    if not tree["best"]:
        return [*name, "-", "-", "-", "-", "-", _none(tree["refused"]).partition(":")[0].partition(",")[0]]
    best = tree["best"][0]
    return [
        *name,
        f"{best['memory_bytes_per_gpu']['total'] / GB:.1f}",
        f"{best['speed']['tokens_per_second_per_gpu']:,.0f}",
        f"{best['cost']['hours']:,.1f}",
        f"{best['cost']['gpu_hours']:,.0f}",
        best["speed"]["kind"],
        best["layout"],
    ]


ROW_HEAD = ["nodes", "GPUs", "GB/GPU", "tok/s/GPU", "hours", "GPU-hours", "kind", "best layout"]
