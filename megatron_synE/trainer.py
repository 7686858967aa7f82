"""The whole loop: fit() and train_step(). Read train.py before and build.py after."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from data_mixers.sampling import Sampler
from megatron_synE import exit_codes
from megatron_synE.build import Model, sync_parameters
from megatron_synE.checkpoint.layout import CommonState
from megatron_synE.checkpoint.save import Saver
from megatron_synE.checkpoint.training_state import adam_step, chunks_to_save
from megatron_synE.config.derive import RunPlan
from megatron_synE.config.schema import RunConfig
from megatron_synE.data.batch import MicroBatch, collate
from megatron_synE.data.loader import micro_batches_of_samples
from megatron_synE.data.scheduled_dataset import Sample, ScheduledDataset
from megatron_synE.decision_log import lines_of, rows_of
from megatron_synE.exit_codes import DivergedError
from megatron_synE.metrics import Metrics, console_line
from megatron_synE.mixing import Mixture
from megatron_synE.model.flops import peak_tflops, training_flops_per_token
from megatron_synE.optim.lr_schedule import LrSchedule
from megatron_synE.runtime.control import Agreement, Decision, StopRequest, from_rank_zero
from megatron_synE.runtime.device import Device
from megatron_synE.runtime.distributed import broadcast_from_last_stage, sum_over_data_parallel
from megatron_synE.runtime.mcore import parallel_state
from megatron_synE.runtime.run_dir import RunDir
from megatron_synE.validation import DocumentLosses, Validator

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far the run is. All of it is in the checkpoint."""

    iteration: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    last_validated_iteration: int | None = None
    last_validation: dict[str, Any] | None = None

    @classmethod
    def after(cls, state: CommonState, mode: str) -> "Progress":
        """Where a run stands that resumes `state`, or branches from it: a branch counts its own samples from zero."""
        if mode == "branch":
            return cls(consumed_tokens=state.consumed_tokens)
        validation = dict(state.last_validation) if state.last_validation else None
        return cls(
            iteration=state.iteration,
            consumed_samples=state.consumed_samples,
            consumed_tokens=state.consumed_tokens,
            last_validated_iteration=None if validation is None else validation["iteration"],
            last_validation=validation,
        )


@dataclass
class StepResult:
    """One optimizer step, reduced over all ranks."""

    nll_sum: torch.Tensor
    """Scalar fp64: summed loss of this rank's micro-batches, not yet reduced (reduced when logged)."""
    tokens: torch.Tensor
    grad_norm: float


@dataclass
class Trainer:
    """Everything fit() uses; made by train.py."""

    config: RunConfig
    plan: RunPlan
    device: Device
    model: Model
    optimizer: Any
    mixture: Mixture
    run_dir: RunDir
    control_group: dist.ProcessGroup
    dataset: ScheduledDataset
    eos_id: int
    validator: Validator | None
    lr_schedule: LrSchedule
    progress: Progress
    saver: Saver
    metrics: Metrics
    stop_request: StopRequest
    agreement: Agreement
    hf_config: dict[str, Any]
    tokenizer_digest: str
    lineage: dict[str, Any] = field(default_factory=dict)
    """Facts copied into every checkpoint's manifest."""
    _saved_iteration: int | None = None

    def __post_init__(self) -> None:
        self._sampler = Sampler(self.dataset.schedule)
        self._began, self._validation_seconds = time.perf_counter(), 0.0

    def fit(self) -> int:
        """Train to the end of the schedule or until asked to stop. Returns an exit code. Collective: every rank."""
        first_iteration = self.progress.iteration
        self._saved_iteration = first_iteration or None
        if self._validation_is_due() and not self._validate():
            return self._leave(exit_codes.PREEMPTED)
        samples, followed = self.samples(), self.dataset.schedule
        while self.progress.iteration < self.plan.train_iters:
            decision = self.iterate(samples)
            stopping = decision.stop or self._slice_is_over(first_iteration)
            if self._validation_is_due() and not stopping:
                stopping = not self._validate()
                if self.dataset.schedule is not followed:
                    samples, followed = self.samples(), self.dataset.schedule  # readers start again from here
            if stopping and self.progress.iteration < self.plan.train_iters:
                return self._leave(exit_codes.PREEMPTED)
            self._save_if_due(decision)
        interrupted = self._validation_is_due() and not self._validate()
        return self._leave(exit_codes.PREEMPTED if interrupted else exit_codes.FINISHED)

    def iterate(self, samples: Iterator[list[Sample]]) -> Decision:
        """One iteration, counted and logged, and what all ranks agreed on meanwhile. Collective: every rank."""
        started = time.perf_counter()
        self.agreement.begin(
            stop=self.stop_request.received is not None,
            save_failed=self.saver.has_failed,
            save_running=self.saver.is_running,
        )
        result = self.train_step(samples)
        self._advance()
        decision = self.agreement.result()
        self._log(result, time.perf_counter() - started)
        return decision

    def train_step(self, samples: Iterator[list[Sample]]) -> StepResult:
        """Forward and backward over one global batch, clipped AdamW step at the rate of the tokens consumed so far.

        Errors: DivergedError, on every rank alike, if the gradient norm is not finite; weights are then untouched.
        """
        for module in self.model.ddp:
            module.zero_grad_buffer()
        self.optimizer.zero_grad()
        batches = [self.collate(next(samples)) for _ in range(self.plan.num_microbatches)]
        losses = self._forward_backward(batches)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_schedule.at(self.progress.consumed_tokens)
        self.optimizer.prepare_grads()
        clip = self.config.training.clip_grad
        grad_norm = float(self.optimizer.clip_grad_norm(clip) if clip > 0 else self.optimizer.get_grad_norm())
        if not math.isfinite(grad_norm):
            raise DivergedError(
                f"gradient norm is {grad_norm} at iteration {self.progress.iteration + 1}; the weights are untouched. "
                "Lower optimizer.lr, look at the samples of this iteration, and start again from the last checkpoint"
            )
        self.optimizer.step_with_ready_grads()
        total = torch.zeros(2, dtype=torch.float64, device=self.device.torch_device)
        for loss in losses:
            total += loss["nll_and_tokens"]
        return StepResult(nll_sum=total[0], tokens=total[1], grad_norm=grad_norm)

    def _forward_backward(self, batches: list[MicroBatch]) -> list[dict[str, torch.Tensor]]:
        """The pipeline schedule over these micro-batches; what loss() returned, on the last stage."""
        iterators, single = [iter(batches) for _ in self.model.ddp], len(self.model.ddp) == 1
        return self.model.forward_backward(  # type: ignore[no-any-return]
            forward_step_func=forward_step,
            data_iterator=iterators[0] if single else iterators,
            model=self.model.ddp[0] if single else list(self.model.ddp),
            num_microbatches=self.plan.num_microbatches,
            # Micro-batches are flattened into one row, so the pipeline sends [seq * micro, 1, h].
            seq_length=self.config.training.seq_length * self.config.training.micro_batch_size,
            micro_batch_size=1,
            forward_only=False,
        )

    def samples(self) -> Iterator[list[Sample]]:
        """This rank's micro-batches of samples from where the run stands to its end."""
        return micro_batches_of_samples(
            self.dataset,
            self.config,
            self.plan,
            consumed_samples=self.progress.consumed_samples,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
        )

    def collate(self, samples: list[Sample]) -> MicroBatch:
        """One packed micro-batch on the device."""
        return collate(
            samples,
            document_masking=self.config.data.document_masking,
            eod_mask_loss=self.config.data.eod_mask_loss,
            eos_id=self.eos_id,
            device=self.device.torch_device,
        )

    def _advance(self) -> None:
        self.progress.iteration += 1
        self.progress.consumed_samples += self.config.training.global_batch_size
        self.progress.consumed_tokens += self.plan.tokens_per_iteration

    def _slice_is_over(self, first_iteration: int) -> bool:
        limit = self.config.training.stop_after_iterations
        return limit is not None and self.progress.iteration - first_iteration >= limit

    def _validation_is_due(self) -> bool:
        """Before the first step, at each interval, and after the last; once for each iteration."""
        iteration = self.progress.iteration
        if self.validator is None or self.progress.last_validated_iteration == iteration:
            return False
        interval = self.plan.validation_interval_iterations
        at_interval = interval is not None and iteration % interval == 0
        return iteration in (0, self.plan.train_iters) or at_interval

    def _validate(self) -> bool:
        """Score the held-out sets. False if a stop was agreed in between; then nothing is recorded and it is redone."""
        assert self.validator is not None
        sync_parameters(self.model, self.plan)
        started = time.perf_counter()
        losses = self.validator.run(self.model, self._stop_is_agreed)
        if losses is None:
            logger.info("validation interrupted; it will be redone after the restart")
            return False
        results = self.validator.per_set(losses)
        if broken := [result.name for result in results if not math.isfinite(result.nll_sum)]:
            raise DivergedError(
                f"the validation loss of {', '.join(broken)} is not finite at iteration {self.progress.iteration}; "
                "lower optimizer.lr, and start again from the last checkpoint"
            )
        seconds = time.perf_counter() - started
        iteration, consumed = self.progress.iteration, self.progress.consumed_tokens
        for result in results:
            self.metrics.row("validation", iteration, consumed_tokens=consumed, **result.row)
        self._validation_seconds += seconds
        share = self._validation_seconds / (time.perf_counter() - self._began)
        self.metrics.row(
            "validation_time", iteration, consumed_tokens=consumed, seconds=seconds, share_of_job_time=share
        )
        self.progress.last_validated_iteration = iteration
        self.progress.last_validation = {
            "iteration": iteration,
            "sets": {result.name: {"nll_sum": result.nll_sum, "tokens": result.tokens} for result in results},
        }
        shown = " | ".join(f"{result.name} {result.ppl:.3f}" for result in results)
        logger.info("validation PPL at iteration %d (%.1f s): %s", self.progress.iteration, seconds, shown)
        self._answer(self.validator, losses)
        return True

    def _answer(self, validator: Validator, losses: DocumentLosses) -> None:
        """Let controller and guard answer; the schedule changes LEAD_ITERATIONS later. Collective: every rank."""
        # The first validation of a run only gives them their start.
        interval = self.plan.reweight_interval_iterations
        reweights = interval is not None and self.progress.iteration % interval == 0
        answer = from_rank_zero(
            self.control_group,
            lambda: self.mixture.answer(
                validator.sets,
                losses,
                validator.answers(losses),
                consumed_samples=self.progress.consumed_samples,
                reweights=reweights,
            ),
        )
        self.mixture = self.mixture.after(answer)
        for kind, values in rows_of(answer):
            self.metrics.row(kind, self.progress.iteration, **values)
        if dist.get_rank() == 0:
            for level, line in lines_of(answer):
                logger.log(level, "%s", line)
        if answer.changes_schedule:
            self.dataset = self.dataset.with_schedule(self.mixture.schedule)
            self._sampler = Sampler(self.dataset.schedule)
            if dist.get_rank() == 0:
                self.run_dir.write("schedule.json", self.dataset.schedule.to_json() + "\n")

    def _stop_is_agreed(self) -> bool:
        self.agreement.begin(stop=self.stop_request.received is not None, save_failed=False, save_running=False)
        return self.agreement.result().stop

    def _log(self, result: StepResult, seconds: float) -> None:
        iteration, interval = self.progress.iteration, self.config.logging.interval_iterations
        if iteration % interval and iteration != self.plan.train_iters:
            return
        sums = torch.stack((result.nll_sum, result.tokens))
        if parallel_state.is_pipeline_last_stage(ignore_virtual=True):
            sum_over_data_parallel(sums)
        broadcast_from_last_stage(sums)
        nll_sum, tokens = sums.tolist()
        tokens_per_second = self.plan.tokens_per_iteration / seconds
        flops = training_flops_per_token(self.plan.architecture, seq_length=self.config.training.seq_length)
        tflops = flops * tokens_per_second / self.plan.world_size / 1e12
        mfu = None if (peak := peak_tflops(self.device.name)) is None else tflops / peak
        learning_rate = self.lr_schedule.at(self.progress.consumed_tokens - self.plan.tokens_per_iteration)
        if dist.get_rank() != 0:
            return
        self.metrics.row(
            "train",
            iteration,
            consumed_samples=self.progress.consumed_samples,
            consumed_tokens=self.progress.consumed_tokens,
            lm_loss=nll_sum / max(tokens, 1.0),
            loss_tokens=int(tokens),
            grad_norm=result.grad_norm,
            learning_rate=learning_rate,
            step_seconds=seconds,
            tokens_per_second=tokens_per_second,
            tflops_per_device=tflops,
            mfu=mfu,
            peak_memory_bytes=self.device.peak_memory_bytes(),
            samples_by_source=self._samples_by_source(),
        )
        line = console_line(
            iteration=iteration,
            train_iters=self.plan.train_iters,
            consumed_samples=self.progress.consumed_samples,
            step_seconds=seconds,
            tflops_per_device=tflops,
            mfu=mfu,
            tokens_per_second=tokens_per_second,
            learning_rate=learning_rate,
            global_batch_size=self.config.training.global_batch_size,
            lm_loss=nll_sum / max(tokens, 1.0),
            grad_norm=result.grad_norm,
        )
        logger.info("%s", line)

    def _samples_by_source(self) -> dict[str, int]:
        """Samples read from each source since the start of the run: arithmetic on the schedule, not a counter."""
        schedule = self.dataset.schedule
        counts = self._sampler.cursors(self.progress.consumed_samples)
        return {source.name: int(count) for source, count in zip(schedule.sources, counts, strict=True)}

    def _save_if_due(self, decision: Decision) -> None:
        if decision.save_failed:
            self.saver.finish()  # raises on every rank: the failure was agreed
        interval = self.plan.checkpoint_interval_iterations
        if interval is None or self.progress.iteration % interval or self.progress.iteration == self.plan.train_iters:
            return
        self._save(in_background=self.config.checkpoint.async_save)

    def _save(self, *, in_background: bool) -> None:
        sync_parameters(self.model, self.plan)
        self.saver.start(
            chunks_to_save(self.model, self.optimizer),
            self._common_state(),
            self.hf_config,
            self.lineage,
            in_background=in_background,
        )
        self._saved_iteration = self.progress.iteration

    def _leave(self, code: int) -> int:
        """Save what is not saved yet, wait for it, and hand back the exit code."""
        if self._saved_iteration != self.progress.iteration:
            self._save(in_background=False)
        self.saver.finish()
        return code

    def _common_state(self) -> CommonState:
        schedule = self.dataset.schedule
        return CommonState(
            iteration=self.progress.iteration,
            consumed_samples=self.progress.consumed_samples,
            consumed_tokens=self.progress.consumed_tokens,
            adam_step=adam_step(self.optimizer),
            has_optimizer=True,
            weights_dtype="bfloat16" if self.plan.dtype == "bf16" else "float32",
            tied=self.plan.architecture.tied,
            vocab_size=self.plan.architecture.vocab_size,
            schedule={"json": schedule.to_json(), "mixture": self.mixture.to_dict()},
            schedule_hash=schedule.digest(),
            tokenizer_digest=self.tokenizer_digest,
            last_validation=self.progress.last_validation,
            wandb_id=self.metrics.wandb_id,
            layout={
                "world_size": self.plan.world_size,
                "tensor_model_parallel_size": self.config.parallel.tensor_model_parallel_size,
                "pipeline_model_parallel_size": self.config.parallel.pipeline_model_parallel_size,
            },
        )


def forward_step(iterator: Iterator[MicroBatch], chunk: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
    """megatron-core's forward_step_func: run one model chunk on the next micro-batch."""
    batch = next(iterator)
    output = chunk(batch.input_ids, None, None, labels=batch.labels, packed_seq_params=batch.row)
    return output, partial(_loss, batch)


def _loss(batch: MicroBatch, nll: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """nll [1, t] -> (sum over counted tokens, their number, what is logged)."""
    total = (nll.float() * batch.loss_mask).sum()
    tokens = batch.loss_mask.sum()
    # Schedules divide what is returned in place (schedules.py, forward_step_calc_loss): log a copy (trap S4).
    logged = torch.stack((total.detach().double(), tokens.double()))
    return total, tokens.to(torch.int32), {"nll_and_tokens": logged}
