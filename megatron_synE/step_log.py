"""What is said of steps and validations: rows of metrics.jsonl, Megatron's console line, and who is slow."""

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_synE.attempts import Attempts
from megatron_synE.config.derive import RunPlan
from megatron_synE.config.schema import RunConfig
from megatron_synE.events import Events
from megatron_synE.metrics import Metrics, last_row
from megatron_synE.model.flops import peak_tflops, training_flops_per_token
from megatron_synE.optim.lr_schedule import LrSchedule
from megatron_synE.progress import Progress
from megatron_synE.runtime.device import Device
from megatron_synE.runtime.step_timer import StepTimer
from megatron_synE.stability import Anomaly, Remedy
from megatron_synE.validation import SetResult

logger = logging.getLogger(__name__)

LEAST_STEPS = 10
"""Ours: ranks are compared over at least so many steps, so that one file read late slows nobody."""


@dataclass(frozen=True)
class StepResult:
    """One step, the same on every rank."""

    lm_loss: float
    """Mean NLL in nats per target token of the global batch."""
    tokens: int
    """Target tokens."""
    grad_norm: float
    anomaly: Anomaly | None = None
    """Then no optimizer step was taken."""


@dataclass(kw_only=True)
class StepLog:
    """Reports the steps of one run."""

    config: RunConfig
    plan: RunPlan
    device: Device
    metrics: Metrics
    lr_schedule: LrSchedule
    control_group: dist.ProcessGroup
    events: Events
    attempts: Attempts | None
    """On rank 0."""
    metrics_path: Path
    _productive_seconds: float = field(init=False)
    _unlogged: list[float] = field(init=False)
    """Seconds of the steps since the last row."""

    def __post_init__(self) -> None:
        self.go_back()

    def go_back(self) -> None:
        """Count from what metrics.jsonl holds: steps that were lost were not productive."""
        row = last_row(self.metrics_path, "train") if dist.get_rank() == 0 else None
        self._productive_seconds = 0.0 if row is None else row.get("productive_seconds", 0.0)
        self._unlogged = []

    def report(
        self,
        progress: Progress,
        result: StepResult,
        seconds: float,
        timer: StepTimer,
        samples_by_source: Callable[[], Mapping[str, int]],
    ) -> None:
        """The step just counted in `progress`, if it is one to be logged. Rank 0 speaks. Collective: every rank.

        Times and rates are means over the steps since the last row, as Megatron's; loss and norm are this step's.
        """
        iteration, interval = progress.iteration, self.config.logging.interval_iterations
        self._productive_seconds += seconds
        self._unlogged.append(seconds)
        if iteration % interval and iteration != self.plan.train_iters:
            return
        seconds, self._unlogged = statistics.fmean(self._unlogged), []
        self._compare_ranks(iteration, timer)
        if dist.get_rank() != 0:
            return
        tokens_per_second = self.plan.tokens_per_iteration / seconds
        flops = training_flops_per_token(self.plan.architecture, seq_length=self.config.training.seq_length)
        tflops = flops * tokens_per_second / self.plan.world_size / 1e12
        mfu = None if (peak := peak_tflops(self.device.name)) is None else tflops / peak
        learning_rate = self.lr_schedule.at(progress.consumed_tokens - self.plan.tokens_per_iteration)
        self.metrics.row(
            "train",
            iteration,
            consumed_samples=progress.consumed_samples,
            consumed_tokens=progress.consumed_tokens,
            lm_loss=result.lm_loss,
            loss_tokens=result.tokens,
            grad_norm=result.grad_norm,
            learning_rate=learning_rate,
            step_seconds=seconds,
            tokens_per_second=tokens_per_second,
            tflops_per_device=tflops,
            mfu=mfu,
            peak_memory_bytes=self.device.peak_memory_bytes(),
            samples_by_source=samples_by_source(),
            productive_seconds=self._productive_seconds,
            goodput=self._goodput(),
        )
        utilisation = "" if mfu is None else f" MFU: {100 * mfu:.1f}% |"
        # Megatron-LM's line, with the same separators and names, so that existing parsers go on working.
        logger.info(
            "%s",
            f" iteration {iteration:8d}/{self.plan.train_iters:8d} |"
            f" consumed samples: {progress.consumed_samples:12d} |"
            f" elapsed time per iteration (ms): {seconds * 1000:.1f} |"
            f" throughput per GPU (TFLOP/s/GPU): {tflops:.2f} |{utilisation}"
            f" tokens per second: {tokens_per_second:.1f} | learning rate: {learning_rate:.6E} |"
            f" global batch size: {self.config.training.global_batch_size:5d} |"
            f" lm loss: {result.lm_loss:.6E} | grad norm: {result.grad_norm:.3f} |",
        )

    def anomaly(self, anomaly: Anomaly, *, iteration: int, action: str) -> None:
        """A bad step, before anything is done about it. Rank 0 tells."""
        if dist.get_rank() == 0:
            self.events.tell(anomaly.kind, iteration=iteration, action=action, **anomaly.facts())

    def recovery(self, anomaly: Anomaly, remedy: Remedy, samples: range, *, now_at: int) -> None:
        """What was left out after a bad step. Rank 0 speaks."""
        if dist.get_rank() != 0:
            return
        back = f"back at iteration {now_at}, " if remedy.action == "rollback" else ""
        logger.warning(
            "%s at iteration %d: %sthe data of samples %d to %d is left out",
            anomaly, remedy.last, back, samples.start, samples.stop - 1,
        )  # fmt: skip
        self.metrics.row(
            "recovery", now_at, bad_iteration=remedy.last, action=remedy.action, start_sample=samples.start,
            stop_sample=samples.stop, **anomaly.facts(),
        )  # fmt: skip

    def hardware(self, iteration: int, first: StepResult, again: StepResult, ranks: Sequence[int]) -> None:
        """A step that was computed twice gave two losses on these ranks. Rank 0 speaks."""
        if dist.get_rank() != 0:
            return
        logger.error(
            "the same step gave another loss when it was computed again on rank %s (%.17g, then %.17g over all): a "
            "fault of the hardware, not of the data; test those cards, or leave their nodes out",
            ", ".join(map(str, ranks)), first.lm_loss, again.lm_loss,
        )  # fmt: skip
        self.metrics.row("hardware", iteration, ranks=list(ranks))
        self.events.tell("hardware", iteration=iteration, ranks=list(ranks))

    def finish(self) -> None:
        """Say how much of the run's allocated time counted. Rank 0 speaks."""
        if (goodput := self._goodput(at_once=True)) is not None:
            logger.info("goodput: %.1f %% of the allocated time were training steps of this run", 100 * goodput)

    def _goodput(self, *, at_once: bool = False) -> float | None:
        if self.attempts is None:
            return None
        self.attempts.note(at_once=at_once)
        return self.attempts.goodput(self._productive_seconds)

    def _compare_ranks(self, iteration: int, timer: StepTimer) -> None:
        """Name a rank whose own part of the steps since the last time takes much longer than that of the others."""
        factor = self.config.operations.straggler_factor
        if factor is None or self.plan.world_size == 1 or timer.num_steps < LEAST_STEPS:
            return
        mine = timer.mean_seconds()
        seconds = torch.zeros(self.plan.world_size, dtype=torch.float64)
        dist.all_gather_into_tensor(seconds, torch.tensor([mine], dtype=torch.float64), group=self.control_group)
        if dist.get_rank() != 0:
            return
        by_rank = seconds.tolist()
        median = statistics.median_low(by_rank)
        slow = [rank for rank, value in enumerate(by_rank) if value > factor * median]
        self.metrics.row("ranks", iteration, compute_seconds=by_rank, slow_ranks=slow)
        if slow:
            worst = max(slow, key=lambda rank: by_rank[rank])
            logger.warning(
                "rank %d is slow: %.3f s of its own in a step, the median rank %.3f s (slow ranks: %s)",
                worst, by_rank[worst], median, ", ".join(map(str, slow)),
            )  # fmt: skip
            self.events.tell("straggler", iteration=iteration, ranks=slow, seconds=by_rank[worst], median=median)


class ValidationLog:
    """Reports the validations of one job."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began, self._seconds = time.perf_counter(), 0.0

    def report(self, results: Sequence[SetResult], iteration: int, consumed_tokens: int, seconds: float) -> None:
        """One validation. Rank 0 speaks."""
        for result in results:
            self._metrics.row("validation", iteration, consumed_tokens=consumed_tokens, **result.row)
        self._seconds += seconds
        share = self._seconds / (time.perf_counter() - self._began)
        self._metrics.row(
            "validation_time", iteration, consumed_tokens=consumed_tokens, seconds=seconds, share_of_job_time=share
        )
        shown = " | ".join(f"{result.name} {result.ppl:.3f}" for result in results)
        logger.info("validation PPL at iteration %d (%.1f s): %s", iteration, seconds, shown)
