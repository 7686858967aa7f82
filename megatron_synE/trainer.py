"""The whole loop: fit() and train_step(). Read train.py before and build.py after."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from data_mixers.sampling import Sampler
from megatron_synE import exit_codes
from megatron_synE.attempts import Attempts
from megatron_synE.build import Model, sync_parameters
from megatron_synE.checkpoint.load import load_training_state
from megatron_synE.checkpoint.save import Saver
from megatron_synE.checkpoint.training_state import adam_step, check_masters, chunks_to_save
from megatron_synE.config.derive import RunPlan
from megatron_synE.config.schema import RunConfig
from megatron_synE.data.batch import MicroBatch, collate
from megatron_synE.data.loader import micro_batches_of_samples
from megatron_synE.data.scheduled_dataset import Sample, ScheduledDataset
from megatron_synE.decision_log import report_answer
from megatron_synE.events import Events
from megatron_synE.exit_codes import DivergedError, LeaseLostError
from megatron_synE.metrics import Metrics
from megatron_synE.mixing import Mixture
from megatron_synE.optim.lr_schedule import LrSchedule
from megatron_synE.progress import Progress, state_to_save
from megatron_synE.runtime.control import Agreement, Decision, StopRequest, agreed, from_rank_zero, ranks_where
from megatron_synE.runtime.device import Device
from megatron_synE.runtime.distributed import context_part, sum_of_last_stages
from megatron_synE.runtime.mcore import parallel_state
from megatron_synE.runtime.run_dir import RunDir
from megatron_synE.runtime.step_timer import StepTimer
from megatron_synE.runtime.watchdog import Watchdog
from megatron_synE.stability import Anomaly, Stability, find_anomaly
from megatron_synE.start import checkpoint_before
from megatron_synE.step_log import StepLog, StepResult, ValidationLog
from megatron_synE.validation import HIGHEST_NLL, DocumentLosses, Validator

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Everything fit() uses; made by assemble.py."""

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
    step_log: StepLog
    validation_log: ValidationLog
    stop_request: StopRequest
    agreement: Agreement
    watchdog: Watchdog
    events: Events
    attempts: Attempts | None
    """On rank 0."""
    hf_config: dict[str, Any]
    tokenizer_digest: str
    lineage: dict[str, Any] = field(default_factory=dict)
    """Facts copied into every checkpoint's manifest."""
    _saved_iteration: int | None = None

    def __post_init__(self) -> None:
        self._sampler = Sampler(self.dataset.schedule)
        self.stability = Stability(self.config.stability)
        self._timer = StepTimer(self.device)
        self.model.config.finalize_model_grads_func = self._timer.before(self.model.config.finalize_model_grads_func)

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
            if stopping and self.progress.iteration < self.plan.train_iters:
                return self._leave(exit_codes.PREEMPTED)
            self._save_if_due(decision)
            if self.dataset.schedule is not followed:
                samples, followed = self.samples(), self.dataset.schedule  # readers start again from here
        interrupted = self._validation_is_due() and not self._validate()
        return self._leave(exit_codes.PREEMPTED if interrupted else exit_codes.FINISHED)

    def iterate(self, samples: Iterator[list[Sample]]) -> Decision:
        """One iteration, counted and logged or its data left out, and what all ranks agreed on meanwhile.

        Collective: every rank. Errors: DivergedError, on every rank alike.
        """
        started = time.perf_counter()
        self._begin_agreement()
        result = self.train_step(samples)
        decision = self._agreed()
        if result.anomaly is not None:
            self._recover(result.anomaly)
            self.watchdog.beat()
            return decision
        self._advance(result)
        seconds = time.perf_counter() - started
        self.watchdog.step(self.progress.iteration, seconds)
        self.step_log.report(self.progress, result, seconds, self._timer, self._samples_by_source)
        return decision

    def train_step(self, samples: Iterator[list[Sample]]) -> StepResult:
        """Forward and backward over one global batch, clipped AdamW step at the rate of the tokens consumed so far.

        Where the result holds an anomaly, no optimizer step was taken.
        """
        self._timer.start()  # before the data is there: a rank whose storage is slow is a slow rank
        batches = [self.collate(next(samples)) for _ in range(self.plan.num_microbatches)]
        result, losses = self._gradients(batches)
        if result.anomaly is not None and self.config.stability.reexecute:
            result = self._computed_again(batches, result, losses)
        if result.anomaly is None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr_schedule.at(self.progress.consumed_tokens)
            self.optimizer.step_with_ready_grads()
        return result

    def _gradients(self, batches: list[MicroBatch]) -> tuple[StepResult, list[torch.Tensor]]:
        """Clipped gradients of one global batch, ready for the optimizer; and this rank's own losses."""
        for module in self.model.ddp:
            module.zero_grad_buffer()
        self.optimizer.zero_grad()
        losses = self._forward_backward(batches)
        totals = sum_of_last_stages(losses, self.device.torch_device)
        self.optimizer.prepare_grads()
        clip = self.config.training.clip_grad
        # The one synchronisation of a step: after it the totals are here too.
        grad_norm = float(self.optimizer.clip_grad_norm(clip) if clip > 0 else self.optimizer.get_grad_norm())
        nll_sum, tokens = totals.tolist()
        lm_loss = nll_sum / max(tokens, 1.0)
        anomaly = find_anomaly(self.config.stability, self.progress.recent_losses, lm_loss=lm_loss, grad_norm=grad_norm)
        return StepResult(lm_loss=lm_loss, tokens=int(tokens), grad_norm=grad_norm, anomaly=anomaly), losses

    def _forward_backward(self, batches: list[MicroBatch]) -> list[torch.Tensor]:
        """The pipeline schedule over these micro-batches; [nll sum, tokens] of each, on the last stage."""
        # Micro-batches are flattened into one row, so the pipeline sends [seq * micro, 1, h].
        row = self.config.training.seq_length * self.config.training.micro_batch_size
        return [loss["nll_and_tokens"] for loss in self.model.run(forward_step, batches, row=row)]

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
            part=context_part(),
        )

    def _advance(self, result: StepResult) -> None:
        progress = self.progress
        progress.iteration += 1
        progress.consumed_samples += self.config.training.global_batch_size
        progress.consumed_tokens += self.plan.tokens_per_iteration
        ends_stage = progress.consumed_samples in self.plan.stage_end_samples
        progress.recent_losses = self.stability.losses_after(
            progress.recent_losses, result.lm_loss, ends_stage=ends_stage
        )
        self.stability.good(progress.iteration)

    def _computed_again(self, batches: list[MicroBatch], first: StepResult, losses: list[torch.Tensor]) -> StepResult:
        """The same step once more, which counts. Other losses to the bit: not the data, but a card or its memory."""
        result, again = self._gradients(batches)
        same = all(torch.equal(a.view(torch.int64), b.view(torch.int64)) for a, b in zip(losses, again, strict=True))
        if ranks := ranks_where(self.control_group, not same):
            self.step_log.hardware(self.progress.iteration, first, result, ranks)
        return result

    def _recover(self, anomaly: Anomaly) -> None:
        """Leave out the data of a bad step, after going back where that is asked for. Collective: every rank.

        Errors: DivergedError, on every rank alike, if the run is to stop, or has left out as much as it may.
        """
        bad = self.progress.iteration + 1
        self.step_log.anomaly(anomaly, iteration=bad, action=self.stability.action(anomaly))
        remedy = self.stability.remedy(anomaly, iteration=bad)
        if remedy.action == "rollback":
            self._go_back_before(remedy.first, anomaly)
        batch = self.config.training.global_batch_size
        samples = self.mixture.leavable((remedy.first - 1) * batch, remedy.last * batch)
        self._follow(self.mixture.skipping(samples.start, samples.stop))
        self._saved_iteration = None  # the checkpoint of this iteration does not know what is left out
        self.step_log.recovery(anomaly, remedy, samples, now_at=self.progress.iteration)

    def _go_back_before(self, iteration: int, anomaly: Anomaly) -> None:
        """Load the newest checkpoint before `iteration`. Errors: DivergedError if there is none."""
        sync_parameters(self.model, self.plan)
        with self.watchdog.patient():
            self.saver.finish()
            self._report_saves()  # before their rows are dropped with the others
            folder, state = checkpoint_before(iteration, self.config, self.run_dir, self.control_group, anomaly)
            load_training_state(self.model, self.optimizer, folder, state)
            agreed(self.control_group, partial(check_masters, self.model, self.optimizer))
        assert state.schedule is not None
        # The checkpoint may be older than what was left out since: that stays out.
        bad_ranges = self.mixture.bad_ranges
        self.mixture = replace(self.mixture.restored(state.schedule, where=str(folder)), bad_ranges=bad_ranges)
        self.progress = Progress.after(state, "resume")
        self.metrics.go_back_to(self.progress.iteration, validated=self.progress.last_validated_iteration)
        self.step_log.go_back()

    def _follow(self, mixture: Mixture) -> None:
        """Read what `mixture` says from here on."""
        self.mixture = mixture
        self.dataset = self.dataset.with_schedule(mixture.schedule)
        self._sampler = Sampler(self.dataset.schedule)
        if dist.get_rank() == 0:
            self.run_dir.write("schedule.json", self.dataset.schedule.to_json() + "\n")

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
        if broken := [result.name for result in results if not result.nll < HIGHEST_NLL]:  # NaN too
            raise DivergedError(
                f"the validation loss of {', '.join(broken)} is above {HIGHEST_NLL:g} nats per token, or none, at "
                f"iteration {self.progress.iteration}; "
                "lower optimizer.lr, and start again from the last checkpoint"
            )
        iteration = self.progress.iteration
        self.validation_log.report(results, iteration, self.progress.consumed_tokens, time.perf_counter() - started)
        self.progress.last_validated_iteration = iteration
        self.progress.last_validation = {
            "iteration": iteration,
            "sets": {result.name: {"nll_sum": result.nll_sum, "tokens": result.tokens} for result in results},
        }
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
        report_answer(answer, self.metrics, self.progress.iteration)
        if answer.changes_schedule:
            self._follow(self.mixture)

    def _stop_is_agreed(self) -> bool:
        self.watchdog.beat()
        self._begin_agreement()
        return self._agreed().stop

    def _begin_agreement(self) -> None:
        self.agreement.begin(
            stop=self.stop_request.received is not None,
            save_failed=self.saver.has_failed,
            lease_lost=self.run_dir.is_lost,
        )

    def _agreed(self) -> Decision:
        """Errors: LeaseLostError on every rank alike."""
        decision = self.agreement.result()
        if decision.lease_lost:
            raise LeaseLostError(
                f"{self.run_dir.root}: another process holds this run now; this one writes nothing more"
            )
        return decision

    def _samples_by_source(self) -> dict[str, int]:
        """Samples read from each source since the start of the run: arithmetic on the schedule, not a counter."""
        schedule = self.dataset.schedule
        counts = self._sampler.read(self.progress.consumed_samples)
        return {source.name: int(count) for source, count in zip(schedule.sources, counts, strict=True)}

    def _save_if_due(self, decision: Decision) -> None:
        if decision.save_failed:
            self.saver.finish()  # raises on every rank: the failure was agreed
        self._report_saves()
        iteration, interval = self.progress.iteration, self.plan.checkpoint_interval_iterations
        if interval is None or iteration % interval or iteration in (self.plan.train_iters, self._saved_iteration):
            return
        self._save(in_background=self.config.checkpoint.async_save)

    def _save(self, *, in_background: bool) -> None:
        sync_parameters(self.model, self.plan)
        state = state_to_save(
            self.progress, self.config, self.plan, self.mixture, adam_step=adam_step(self.optimizer),
            tokenizer_digest=self.tokenizer_digest, wandb_id=self.metrics.wandb_id,
        )  # fmt: skip
        with self.watchdog.patient():
            chunks = chunks_to_save(self.model, self.optimizer)
            self.saver.start(chunks, state, self.hf_config, self.lineage, in_background=in_background)
        self._report_saves()
        self._saved_iteration = self.progress.iteration

    def _report_saves(self) -> None:
        """Say what the saves cost that have ended."""
        for report in self.saver.reports():
            self.metrics.row("checkpoint", **asdict(report))
            if self.attempts is not None:
                self.attempts.note()

    def _leave(self, code: int) -> int:
        """Save what is not saved yet, wait for it, and hand back the exit code."""
        if self._saved_iteration != self.progress.iteration:
            self._save(in_background=False)
        with self.watchdog.patient():
            self.saver.finish()
        self._report_saves()
        return code


def forward_step(iterator: Iterator[MicroBatch], chunk: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
    """megatron-core's forward_step_func: run one model chunk on the next micro-batch."""
    batch = next(iterator)
    output = chunk(
        batch.input_ids, None, None, labels=batch.labels, loss_mask=batch.loss_mask, packed_seq_params=batch.row
    )
    return output, partial(_loss, batch)


def _loss(batch: MicroBatch, nll: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """nll [1, t], 0 where a token does not count -> (sum, number of tokens that count, what is logged)."""
    total = nll.sum()
    tokens = batch.loss_mask.sum()
    # Schedules divide what is returned in place (schedules.py, forward_step_calc_loss): log a copy (trap S4).
    logged = torch.stack((total.detach().double(), tokens.double()))
    return total, tokens.to(torch.int32), {"nll_and_tokens": logged}
