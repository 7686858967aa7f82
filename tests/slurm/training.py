"""A tiny run as a job of two nodes: its script, its log, and the same run without Slurm to compare with."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint.chunk_reader import ChunkReader
from tests import tiny
from tests.slurm.cluster import NODES, Cluster
from tools.slurm.after_step import newest_iteration

ROOT = Path(__file__).parents[2]
RANK = "megatron_synE.train"
"""Part of the command line of a rank, and of srun that starts it."""
COMPARED = ("iteration", "consumed_samples", "consumed_tokens", "lm_loss", "loss_tokens", "grad_norm", "learning_rate")
EXACT = ("iteration", "consumed_samples", "consumed_tokens", "loss_tokens", "learning_rate")
ITERATIONS, TOKENS_PER_ITERATION = 60, 8 * 32

RESOURCES = (
    "--nodes", "2", "--gpus-per-node", "1", "--cpus-per-task", "1", "--python", sys.executable,
    "--env", f"PYTHONPATH={ROOT}", "--env", "SLURM_WAIT=5",
)  # fmt: skip
"""Of `syne slurm render` and `submit`: a rank on each node, and a short wait for what is left of a broken step."""


def prepare(root: Path) -> Path:
    """A run of 60 iterations of some 30 ms that saves at every tenth; its YAML file."""
    return tiny.prepared(
        root,
        data={
            "stages": [
                {"name": "adapt", "tokens": ITERATIONS * TOKENS_PER_ITERATION, "languages": {"zh": 0.2, "en": 0.8}}
            ]
        },
        checkpoint={"interval_tokens": 10 * TOKENS_PER_ITERATION, "keep_last": None, "async_save": False},
        validation={"manifests": [str(root / "held")], "interval_tokens": 20 * TOKENS_PER_ITERATION},
    )


@dataclass
class Job:
    """A submitted job of one run."""

    cluster: Cluster
    run: Path
    script: Path
    id: str = ""
    held: float = 0.0

    def submit(self, *options: str, env: dict[str, str] | None = None) -> "Job":
        submitted = self.cluster.run("sbatch", "--parsable", *options, self.script, cwd=self.run.parent, env=env)
        self.id = submitted.stdout.strip()
        return self

    @property
    def log(self) -> str:
        """What the job script said, over all its restarts."""
        found = sorted(self.run.parent.glob(f"*-{self.id}.out"))
        return found[0].read_text() if found else ""

    @property
    def state(self) -> str:
        """RUNNING, PENDING, COMPLETED, ... as squeue says."""
        lines = self.cluster.jobs("--states=all", f"--jobs={self.id}")
        return lines[0].split()[1]

    @property
    def exit_code(self) -> int:
        shown = self.cluster.run("scontrol", "show", "job", self.id).stdout
        return int(shown.split("ExitCode=")[1].split(":")[0])

    def wait(self, what: str, holds: Callable[[], object], seconds: float = 300, *, pause: float = 0.3) -> None:
        """As Cluster.wait, with the job's own logs where it fails. Most conditions start a client: not too often."""
        try:
            self.cluster.wait(what, holds, seconds, pause=pause)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.everything()}") from None

    def finished(self, code: int = 0, seconds: float = 300) -> None:
        """Wait until the job is over, and assert its exit code."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait("the end of the job", lambda: self.state in over, seconds)
        assert self.exit_code == code, self.everything()

    def everything(self) -> str:
        logs = [f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted((self.run / "slurm").glob("*.log"))]
        return "\n".join([f"{self.state}\n{self.log}", *logs])

    def ranks(self) -> list[tuple[str, int]]:
        """(node, pid there) of the ranks; not of srun and slurmstepd, whose command lines also name the module."""
        found = []
        for node in NODES:
            if node in self.cluster._inits:
                lines = (line.split(None, 1) for line in self.cluster.on(node, "ps", "-eo", "pid=,args=").splitlines())
                found += [(node, int(pid)) for pid, args in lines if args.startswith(f"{sys.executable} -m {RANK} ")]
        return found

    def wait_for_restart(self, number: int) -> None:
        """Until the job has begun for the (number + 1)-th time; prints how long after `hold` that was."""
        self.wait(f"restart {number}", lambda: f"syne: restart {number} " in self.log)
        if number:
            print(f"begins again {time.monotonic() - self.held:.0f} s after the fault")

    def hold(self, iteration: int, *, node: str | None = None) -> int:
        """Stop the ranks (SIGSTOP), those of one node, once this iteration is logged; the last one logged then."""
        self.wait(f"iteration {iteration}", lambda: last_iteration(self.run) >= iteration, pause=0.02)
        # From here: on a busy machine a program in the node would not be started before this run is over.
        for place, pid in self.cluster.outside(f"{sys.executable} -m {RANK} "):
            if node in (None, place):
                os.kill(pid, signal.SIGSTOP)
        self.held = time.monotonic()
        return last_iteration(self.run)

    def release(self, node: str | None = None) -> None:
        """Let the ranks go on; those of one node."""
        for rank in self.ranks():
            if node in (None, rank[0]):
                self.cluster.kill(*rank, signal.SIGCONT)

    def iteration(self) -> int:
        """The last one logged."""
        return last_iteration(self.run)

    def newest(self) -> int:
        """Iteration of the newest complete checkpoint."""
        return newest_iteration(self.run)


def last_iteration(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    if not metrics.exists():
        return 0
    found = 0
    for line in metrics.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["kind"] == "train":
            found = row["iteration"]
    return found


def job(cluster: Cluster, config: Path, run: Path, *options: str, overrides: tuple[str, ...] = ()) -> Job:
    """The job of a run in the folder `run`, rendered and not yet submitted."""
    run.parent.mkdir(parents=True, exist_ok=True)
    script = run.parent / f"{run.name}.sbatch"
    rendered = tiny.syne(
        "slurm", "render", "--config", config, *RESOURCES, "--no-preflight", "--lead", 15, "--out", script, *options,
        f"run.dir={run}", *overrides,
    )  # fmt: skip
    assert rendered.returncode == 0, rendered.stderr
    return Job(cluster, run, script)


def assert_same_run(found: Path, expected: Path) -> None:
    """Every step once, with the same numbers; the last checkpoint's tensors bit-equal."""

    def training(run: Path) -> list[dict[str, object]]:
        return [{key: row[key] for key in COMPARED} for row in tiny.rows(run, "train")]

    assert [row["iteration"] for row in training(found)] == list(range(1, ITERATIONS + 1))
    assert training(found) == training(expected)
    scores = [
        [(row["iteration"], row["set"], row["nll"]) for row in tiny.rows(run, "validation")]
        for run in (found, expected)
    ]
    assert scores[0] == scores[1]
    name = f"checkpoints/iter_{ITERATIONS:07d}"
    left, right = ChunkReader(found / name), ChunkReader(expected / name)
    assert set(left.keys) == set(right.keys)
    for key in right.keys:
        whole = ((0,) * len(right.shape(key)), right.shape(key))
        assert torch.equal(left.read(key, *whole), right.read(key, *whole)), key


def assert_same_run_but_for_rounding(found: Path, expected: Path) -> None:
    """Every step once, over the same samples; the numbers to what sums of gradients in another order change."""
    rows, others = tiny.rows(found, "train"), tiny.rows(expected, "train")
    assert [row["iteration"] for row in rows] == list(range(1, ITERATIONS + 1))
    for row, other in zip(rows, others, strict=True):
        assert [row[key] for key in EXACT] == [other[key] for key in EXACT]
        assert abs(row["lm_loss"] - other["lm_loss"]) <= 1e-5, (row, other)
    name = f"checkpoints/iter_{ITERATIONS:07d}"
    state, other_state = layout.read_state(found / name), layout.read_state(expected / name)
    assert (state.consumed_samples, state.schedule) == (other_state.consumed_samples, other_state.schedule)
    left, right = ChunkReader(found / name), ChunkReader(expected / name)
    assert set(left.keys) == set(right.keys)
    for key in right.keys:
        whole = ((0,) * len(right.shape(key)), right.shape(key))
        # A tenth of what Adam moves a weight by in one step (lr 1e-3); a step over other data moves more.
        torch.testing.assert_close(left.read(key, *whole), right.read(key, *whole), rtol=0, atol=1e-4, msg=key)
