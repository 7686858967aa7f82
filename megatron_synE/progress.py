"""How far a run is: what a checkpoint says of it besides tensors and schedule."""

from dataclasses import dataclass
from typing import Any

from megatron_synE.checkpoint.layout import CommonState
from megatron_synE.config.derive import RunPlan
from megatron_synE.config.schema import RunConfig
from megatron_synE.mixing import Mixture


@dataclass
class Progress:
    """How far the run is. All of it is in the checkpoint."""

    iteration: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    last_validated_iteration: int | None = None
    last_validation: dict[str, Any] | None = None
    recent_losses: tuple[float, ...] = ()
    """Of the last steps of this stage, as many as stability.spike_window, where spikes are looked for."""

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
            recent_losses=tuple(state.recent_losses or ()),
        )


def state_to_save(
    progress: Progress,
    config: RunConfig,
    plan: RunPlan,
    mixture: Mixture,
    *,
    adam_step: int,
    tokenizer_digest: str,
    wandb_id: str | None,
) -> CommonState:
    """state.json of a run that stands at `progress` and follows `mixture`."""
    schedule = mixture.schedule
    return CommonState(
        iteration=progress.iteration,
        consumed_samples=progress.consumed_samples,
        consumed_tokens=progress.consumed_tokens,
        adam_step=adam_step,
        has_optimizer=True,
        weights_dtype="bfloat16" if plan.dtype == "bf16" else "float32",
        tied=plan.architecture.tied,
        vocab_size=plan.architecture.vocab_size,
        schedule={"json": schedule.to_json(), "mixture": mixture.to_dict()},
        schedule_hash=schedule.digest(),
        tokenizer_digest=tokenizer_digest,
        last_validation=progress.last_validation,
        wandb_id=wandb_id,
        recent_losses=progress.recent_losses or None,
        layout={
            "world_size": plan.world_size,
            "tensor_model_parallel_size": config.parallel.tensor_model_parallel_size,
            "pipeline_model_parallel_size": config.parallel.pipeline_model_parallel_size,
        },
    )
