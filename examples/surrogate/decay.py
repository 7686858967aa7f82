"""python -m examples.surrogate.decay: a decay branched from a stable run against averages of its last checkpoints.

    stable run, a checkpoint every tenth ─┬─ at its end
                                          ├─ mean of its last 2, 3 or 5
                                          └─ branched at four fifths, the last fifth decayed (1 - sqrt)
All end after the same tokens; losses are on the same held-out text, paired by seed.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from examples.quickstart.steps import exit_code_of, syne
from examples.surrogate.__main__ import OUT, SMALL
from examples.surrogate.prepare import prepare
from tools.surrogate.noise import compare

SEEDS = (1, 2, 3)
TOKENS, STEP = 61_440, 6_144
BRANCHED = TOKENS - 2 * STEP
AVERAGES = (2, 3, 5)
ITERATION = 1_024  # tokens


def run() -> None:
    """All seeds; a table on stdout and below runs/surrogate."""
    prepare(OUT)
    losses = [one_seed(seed, OUT / "decay" / f"seed{seed}") for seed in SEEDS]
    lines = ["| weights | loss | less the stable run's end |", "|---|---:|---:|"]
    for name in losses[0]:
        found = compare([row[name] - row["stable"] for row in losses], level=0.95, comparisons=len(losses[0]) - 1)
        difference = "–" if name == "stable" else f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        lines.append(f"| {name} | {statistics.fmean(row[name] for row in losses):.4f} | {difference} |")
    (OUT / "decay" / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def one_seed(seed: int, out: Path) -> dict[str, float]:
    """Mean held-out loss of each way to end, all sets alike."""
    stable, decayed = out / "stable", out / "decayed"
    base = ("train", "--config", SMALL / "base.yaml", "--nproc", 1, f"run.seed={seed}", "checkpoint.keep_last=null")
    syne(*base, f"run.dir={stable}", f"checkpoint.interval_tokens={STEP}")
    found = {"stable": loss_of(stable)}
    for last in AVERAGES:
        averaged, scored = out / f"mean{last}", out / f"scored{last}"
        if not averaged.exists():
            syne("average", stable, "--last", last, "--out", averaged)
        # A run's first validation is that of its start.
        syne(*base, f"run.dir={scored}", f"init.path={averaged}", "training.stop_after_iterations=1", allowed=(0, 75))
        found[f"mean of the last {last}"] = loss_of(scored, first=True)
    syne(
        *base, f"run.dir={decayed}", f"init.path={stable}/checkpoints/iter_{BRANCHED // ITERATION:07d}",
        "init.mode=branch", f"data.stages.0.tokens={TOKENS - BRANCHED}",
        f"lr_schedule.decay_tokens={TOKENS - BRANCHED}",
    )  # fmt: skip
    found["decayed"] = loss_of(decayed)
    return found


def loss_of(run: Path, *, first: bool = False) -> float:
    """Of the last validation, or the first."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    rows = [row for row in rows if row["kind"] == "validation"]
    chosen = (min if first else max)(row["iteration"] for row in rows)
    return statistics.fmean(row["nll"] for row in rows if row["iteration"] == chosen)


def main() -> int:
    argparse.ArgumentParser(prog="python -m examples.surrogate.decay", description=__doc__.splitlines()[0]).parse_args()
    return exit_code_of(run)


if __name__ == "__main__":
    sys.exit(main())
