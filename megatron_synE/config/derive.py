"""Values that follow from the configuration, the architecture and the world size; frozen, and never written back."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from data_mixers.control_settings import ControllerSettings
from data_mixers.errors import ConfigError
from data_mixers.guard import GuardSettings
from megatron_synE.checkpoint.layout import resolve_checkpoint
from megatron_synE.config.schema import GuardSection, MixtureSection, ParallelSection, RunConfig
from megatron_synE.model.llama import LlamaArchitecture, architecture_from_hf, hf_config_of, read_hf_config
from megatron_synE.model.presets import ARCHITECTURES
from megatron_synE.runtime.cpu_features import cpu_has_bf16

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage in samples of the whole run."""

    name: str
    start_sample: int
    end_sample: int
    """Exclusive."""
    tokens: int
    """What is read: the asked-for tokens rounded up to whole global batches."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything that is computed once from (config, architecture, world size)."""

    architecture: LlamaArchitecture
    num_parameters: int
    padded_vocab_size: int
    """Rows of the embedding over all TP ranks."""
    world_size: int
    data_parallel_size: int
    num_microbatches: int
    """Micro-batches per data-parallel rank and iteration."""
    tokens_per_iteration: int
    train_iters: int
    total_samples: int
    total_tokens: int
    stages: tuple[StagePlan, ...]
    warmup_tokens: int
    decay_tokens: int
    """wsd: as configured; cosine: everything after warm-up; constant: 0."""
    decay_start_tokens: int
    validation_interval_iterations: int | None
    """None: before the first step and after the last only."""
    reweight_interval_iterations: int | None
    """None: topics keep their planned shares."""
    checkpoint_interval_iterations: int | None
    """None: at the end and when asked to stop only."""
    device: Device
    dtype: Literal["bf16", "fp32"]
    overlap_grad_reduce: bool
    overlap_param_gather: bool
    zero_stage: Literal[1, 2, 3]
    """As configured; 1 where one data-parallel rank without context parallelism has nobody to share with."""

    @property
    def stage_end_samples(self) -> tuple[int, ...]:
        return tuple(stage.end_sample for stage in self.stages)


def derive(
    config: RunConfig, architecture: LlamaArchitecture, world_size: int, *, device: Device | None = None
) -> RunPlan:
    """The plan of a run on `world_size` ranks.

    device: what the run will use, where the caller knows; None: config.device, and for auto what this machine has.
    Errors: ConfigError where the batch or the world cannot be divided (validate() says the same with all other faults).
    """
    parallel, training = config.parallel, config.training
    replica = ranks_of_replica(parallel)
    if world_size % replica:
        raise ConfigError(
            f"world size {world_size} is not a multiple of parallel.tensor_model_parallel_size"
            f" * parallel.context_parallel_size * parallel.pipeline_model_parallel_size = {replica}"
        )
    data_parallel_size = world_size // replica
    sequences_per_pass = training.micro_batch_size * data_parallel_size
    if training.global_batch_size % sequences_per_pass:
        raise ConfigError(
            f"training.global_batch_size={training.global_batch_size} is not a multiple of"
            f" training.micro_batch_size * data parallel size = {sequences_per_pass}"
        )
    tokens_per_iteration = training.global_batch_size * training.seq_length
    stages = _stages(config)
    total_samples = stages[-1].end_sample if stages else 0
    total_tokens = total_samples * training.seq_length
    decay_tokens = _decay_tokens(config, total_tokens=total_tokens)
    device = device or resolve_device(config.device)
    on_cuda = device == "cuda"
    validation_interval = iterations_of(config.validation.interval_tokens, tokens_per_iteration)
    return RunPlan(
        architecture=architecture,
        num_parameters=architecture.num_parameters,
        padded_vocab_size=architecture.padded_vocab_size(
            divisible_by=config.model.make_vocab_size_divisible_by,
            tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        ),
        world_size=world_size,
        data_parallel_size=data_parallel_size,
        num_microbatches=training.global_batch_size // sequences_per_pass,
        tokens_per_iteration=tokens_per_iteration,
        train_iters=total_samples // training.global_batch_size,
        total_samples=total_samples,
        total_tokens=total_tokens,
        stages=stages,
        warmup_tokens=config.lr_schedule.warmup_tokens,
        decay_tokens=decay_tokens,
        decay_start_tokens=total_tokens - decay_tokens,
        validation_interval_iterations=validation_interval,
        reweight_interval_iterations=_reweight_interval(config, validation_interval),
        checkpoint_interval_iterations=iterations_of(config.checkpoint.interval_tokens, tokens_per_iteration),
        device=device,
        dtype=resolve_dtype(training.precision, device),
        overlap_grad_reduce=on_cuda if parallel.overlap_grad_reduce is None else parallel.overlap_grad_reduce,
        overlap_param_gather=on_cuda if parallel.overlap_param_gather is None else parallel.overlap_param_gather,
        zero_stage=parallel.zero_stage if data_parallel_size * parallel.context_parallel_size > 1 else 1,
    )


def ranks_of_replica(parallel: ParallelSection) -> int:
    """Ranks that together compute one micro-batch."""
    return parallel.tensor_model_parallel_size * parallel.context_parallel_size * parallel.pipeline_model_parallel_size


def rows_of_rank(config: RunConfig) -> int:
    """Tokens of a micro-batch on one context-parallel rank."""
    training = config.training
    return training.seq_length * training.micro_batch_size // config.parallel.context_parallel_size


def resolve_device(asked: Literal["auto", "cpu", "cuda"]) -> Device:
    """auto: cuda where the NVIDIA driver shows a card. Asks no library, so it also runs on a login node.

    A container that was given the host's third card alone has a /dev/nvidia2 and no /dev/nvidia0.
    """
    if asked != "auto":
        return asked
    has_card = Path("/dev/nvidiactl").exists() and any(Path("/dev").glob("nvidia[0-9]*"))
    return "cuda" if has_card else "cpu"


def resolve_dtype(precision: Literal["bf16", "fp32", "auto"], device: Device) -> Literal["bf16", "fp32"]:
    """auto: bf16 on a GPU, and on a CPU that multiplies bf16 in hardware; elsewhere bf16 is slower than fp32."""
    if precision != "auto":
        return precision
    return "bf16" if device == "cuda" or cpu_has_bf16() else "fp32"


def resolve_architecture(config: RunConfig) -> tuple[LlamaArchitecture, dict[str, Any]]:
    """The architecture, and the HF config.json that describes it (as it came, or made from the preset).

    Exactly one of model.preset, model.hf_config, or the folder behind init.path says it.
    Errors: ConfigError for none, two, an unknown preset, or an unreadable or unsupported config.json;
    CheckpointError if init.path holds no complete checkpoint.
    """
    model, init = config.model, config.init
    named = [key for key, value in (("preset", model.preset), ("hf_config", model.hf_config)) if value is not None]
    if len(named) == 2:
        raise ConfigError("model.preset and model.hf_config both say the architecture; keep one")
    if named and init.source != "random":
        raise ConfigError(
            f"model.{named[0]} is for init.from=random; with init.from={init.source} the architecture is read from"
            f" init.path ({init.path}); remove model.{named[0]}"
        )
    if model.preset is not None:
        if model.preset not in ARCHITECTURES:
            raise ConfigError(f"model.preset={model.preset!r} is unknown; use one of {', '.join(ARCHITECTURES)}")
        return ARCHITECTURES[model.preset], hf_config_of(ARCHITECTURES[model.preset])
    if model.hf_config is not None:
        return _from_file(model.hf_config)
    if init.source == "random":
        raise ConfigError("no architecture: with init.from=random set model.preset or model.hf_config")
    if init.path is None:
        raise ConfigError(f"init.path is missing: init.from={init.source} needs the folder to read")
    if not init.path.exists():
        raise ConfigError(f"init.path={init.path} does not exist")
    if init.source == "checkpoint":
        return _from_file(resolve_checkpoint(init.path, verify_hashes=False))
    return _from_file(init.path)


def _from_file(path: Path) -> tuple[LlamaArchitecture, dict[str, Any]]:
    hf_config = read_hf_config(path)
    where = str(path / "config.json" if path.is_dir() else path)
    return architecture_from_hf(hf_config, where=where), hf_config


def _stages(config: RunConfig) -> tuple[StagePlan, ...]:
    tokens_per_iteration = config.training.global_batch_size * config.training.seq_length
    plans: list[StagePlan] = []
    start = 0
    for stage in config.data.stages:
        iterations = -(-stage.tokens // tokens_per_iteration)
        end = start + iterations * config.training.global_batch_size
        plans.append(
            StagePlan(name=stage.name, start_sample=start, end_sample=end, tokens=iterations * tokens_per_iteration)
        )
        start = end
    return tuple(plans)


def _decay_tokens(config: RunConfig, *, total_tokens: int) -> int:
    schedule = config.lr_schedule
    match schedule.style:
        case "wsd":
            return schedule.decay_tokens
        case "cosine":
            return max(0, total_tokens - schedule.warmup_tokens)
        case "constant":
            return 0


def controller_settings(section: MixtureSection) -> ControllerSettings:
    """Errors: ConfigError naming the key of mixture.settings."""
    known = ControllerSettings.__dataclass_fields__.keys() - {"name"}
    if unknown := sorted(section.settings.keys() - known):
        raise ConfigError(f"mixture.settings has no {unknown[0]}; it has {', '.join(sorted(known))}")
    settings: dict[str, Any] = dict(section.settings)
    return ControllerSettings(name=section.controller, **settings)


def guard_settings(section: GuardSection) -> GuardSettings:
    """Errors: ConfigError naming the key of mixture.guard."""
    return GuardSettings(**{field.name: getattr(section, field.name) for field in fields(GuardSettings)})


def _reweight_interval(config: RunConfig, validation_iterations: int | None) -> int | None:
    """So many validations as the tokens say: rounded alone, 8 B beside 2 B tokens would meet no validation."""
    tokens, validation_tokens = config.mixture.reweight_interval_tokens, config.validation.interval_tokens
    if config.mixture.controller == "static" or not tokens or not validation_tokens or not validation_iterations:
        return None
    return validation_iterations * max(1, tokens // validation_tokens)


def iterations_of(interval_tokens: int | None, tokens_per_iteration: int) -> int | None:
    """The nearest whole number of iterations, at least one."""
    if interval_tokens is None:
        return None
    return max(1, (interval_tokens + tokens_per_iteration // 2) // tokens_per_iteration)
