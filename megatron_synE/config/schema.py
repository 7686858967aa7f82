"""The run configuration: one frozen, strictly validated dataclass per YAML section.

Units are in the names; a field without a default is one that only the user can know.
Rules that need more than one field live in validate.py; derived values live in derive.py and are never written back.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from data_mixers.control_settings import ControllerName

STRICT = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=1 << 62)]
"""torch takes 64 bits with a sign, and megatron-core adds to it for each rank."""
Tokens = Annotated[int, Field(gt=0)]
"""A number of tokens; load.py turns 92.5e9 and 92_500_000_000 into this int."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RunSection:
    """Which run this is."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Shown in logs and trackers; part of file names."""
    dir: Path
    """The run folder; everything the run writes lies below it. A complete checkpoint in it is always resumed."""
    seed: Seed = 1234
    """Data order and random initialisation."""
    takeover: bool = False
    """This job may take the run from a holder that shows no sign of life for 30 s, although the file system still
    counts its lock as held (its node is gone). A requeued Slurm job needs no leave to take over from its own copy."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class InitSection:
    """Where the weights come from when the run folder holds no checkpoint yet."""

    source: Annotated[Literal["hf", "checkpoint", "random"], Field(alias="from")] = "hf"
    """hf: a Hugging Face folder; checkpoint: an iter_* folder or a folder of them; random: a fresh model."""
    path: Path | None = None
    mode: Literal["init", "branch"] = "init"
    """init: weights only, optimizer starts at zero. branch: weights, optimizer and token count, with this schedule."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ModelSection:
    """The architecture, when it is not read from init.path/config.json."""

    preset: str | None = None
    """A name from megatron_synE.model.presets."""
    hf_config: Path | None = None
    """An HF config.json, or the folder that holds it."""
    attention: Literal["auto", "native", "transformer_engine"] = "auto"
    """auto takes Transformer Engine where it can be imported on a GPU."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """RMSNorm, SwiGLU and rotation of native layers. auto: Triton's on a GPU that has it, ours on a CPU."""
    make_vocab_size_divisible_by: Positive = 128
    """Rows of the embedding are padded to a multiple of this times TP; padded rows are masked. Megatron's default."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ParallelSection:
    """How the model is laid over ranks. Data parallelism is what is left of the world."""

    tensor_model_parallel_size: Positive = 1
    pipeline_model_parallel_size: Positive = 1
    virtual_pipeline_model_parallel_size: Annotated[int, Field(ge=2)] | None = None
    """Model chunks per pipeline rank (interleaved schedule)."""
    context_parallel_size: Positive = 1
    """Ranks that share each row of a micro-batch: of 2 * size equal chunks rank r has the r-th from either end. For
    sequences whose activations do not fit; unlike tensor parallelism it sends keys and values alone."""
    sequence_parallel: bool = False
    tp_comm_overlap: bool = False
    """Transformer Engine's: what tensor-parallel ranks send runs beside the products it is for."""
    zero_stage: Literal[1, 2, 3] = 1
    """1: optimizer state sharded over data-parallel ranks. 2: gradients too. 3: weights too. docs/performance.md."""
    overlap_grad_reduce: bool | None = None
    """None: on for CUDA, off for CPU, where it does not pay."""
    overlap_param_gather: bool | None = None
    """None: on for CUDA, off for CPU."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TrainingSection:
    """Batch, length and precision."""

    seq_length: Positive
    global_batch_size: Positive
    """Sequences per optimizer step over all ranks."""
    micro_batch_size: Positive = 1
    """Sequences per forward pass of one model replica; more than one are flattened into one packed row."""
    precision: Literal["bf16", "fp32", "auto"] = "bf16"
    """auto: bf16 on a GPU or a CPU with avx512_bf16 or AMX, else fp32."""
    fp8: Literal["hybrid", "e4m3"] | None = None
    """Matrix products of the layers in FP8, the head's not; masters and moments as ever. hybrid: gradients in e5m2, the
    rest in e4m3. Needs an H100 or newer; on a CPU torch computes it slowly, for tests."""
    fp8_recipe: Literal["tensorwise", "rowwise", "delayed", "blockwise", "mxfp8"] = "tensorwise"
    """Scales. tensorwise: by what a tensor holds now; rowwise: for each row, native layers alone; delayed: by what it
    held before (begins anew when a run resumes), blockwise, mxfp8: Transformer Engine alone."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation checkpointing: selective recomputes attention, full recomputes whole layers."""
    grad_reduce_in_fp32: bool = True
    """Accumulate and reduce gradients in fp32 also under bf16: what makes many micro-batches exact."""
    clip_grad: NonNegativeFloat = 1.0
    """Global gradient norm; 0 turns clipping off."""
    stop_after_iterations: Positive | None = None
    """Leave with a checkpoint after this many iterations in this job (a time slice); the schedule is unchanged."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class OptimizerSection:
    """AdamW with fp32 masters."""

    lr: PositiveFloat = 1e-5
    """Peak learning rate."""
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.95
    adam_eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    """Never on norms and biases. Ours: not published for Llama-3-SynE."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class LrScheduleSection:
    """Learning rate as a function of tokens consumed since the start of the run."""

    style: Literal["wsd", "cosine", "constant"] = "wsd"
    start_lr: NonNegativeFloat = 1e-7
    warmup_tokens: NonNegative = 0
    """Linear from start_lr to optimizer.lr."""
    decay_tokens: NonNegative = 0
    """wsd: length of the final decay, which ends at the last token; cosine decays over everything after warm-up."""
    decay_style: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt"
    min_lr: NonNegativeFloat = 0.0


@dataclass(frozen=True, config=STRICT, kw_only=True)
class CurriculumSection:
    """Difficulty buckets of `syne data sort` read in an order, by the tokens their language has consumed."""

    pacing: Literal["low_to_high", "high_to_low", "random", "warmup_then_random"] = "low_to_high"
    """warmup_then_random: first the easiest `warmup_share` in ascending order, then everything else at random."""
    languages: tuple[str, ...] = ("zh",)
    """Languages that are paced; their sources without buckets, and all other languages, are read as they are."""
    warmup_share: Share = 0.1


@dataclass(frozen=True, config=STRICT, kw_only=True)
class StageSection:
    """One stage of the recipe: how many tokens, from where."""

    name: str
    tokens: Tokens
    """Rounded up to whole global batches."""
    languages: dict[str, Share]
    """language -> share of tokens; sums to 1."""
    sources: dict[str, dict[str, Share]] = Field(default_factory=dict)
    """language -> source -> share inside the language; sums to 1 each. Missing language: by tokens present."""
    topics: dict[str, dict[str, dict[str, Share]]] = Field(default_factory=dict)
    """language -> source -> topic -> share inside the source. Missing: by tokens present."""
    curriculum: CurriculumSection | None = None
    """None: every source in random order."""
    manifests: tuple[Path, ...] = ()
    """Data that joins with this stage: earlier ones do not know it, so a stage appended to a run leaves them alone."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DataSection:
    """What is read."""

    manifests: tuple[Path, ...]
    """manifest.json files (or folders with one) written by `syne data preprocess`."""
    stages: tuple[StageSection, ...]
    document_masking: bool = True
    """Attention and positions restart at each document. The paper does not mask."""
    eod_mask_loss: bool = False
    """Leave out the loss at positions whose input is EOS (their target belongs to the next document)."""
    exhaustion: Literal["repeat", "stop", "renormalize"] = "repeat"
    """repeat: read again, up to max_epochs. stop: refuse a plan that reads any source more than once. renormalize: a
    source read max_epochs times gives its share to its kin: its topic's buckets, its source, its language. What
    skip_samples leaves out does not count there: a source may go on into its next epoch by as much."""
    max_epochs: PositiveFloat = 4.0
    """A plan that reads any source more often is refused. Ours: repetition beyond four pays little (2305.16264)."""
    skip_samples: tuple[Annotated[str, Field(pattern=r"^\d+:\d+$")], ...] = ()
    """Ranges "start:stop" of samples to leave out, e.g. after a loss spike; `syne mix append RUN --skip start:stop`
    checks one. From `start` on the run reads what came from `stop` on."""
    num_workers: Annotated[int, Field(ge=0, le=256)] = 1
    """Reader processes per rank. The order of the data does not depend on it."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GuardSection:
    """The forgetting guard: at every validation, is a language worse than at the first one, beyond its noise?"""

    language: str = "en"
    """Watched where validation.manifests hold a set of it."""
    action: Literal["warn", "raise"] = "warn"
    """warn: say it, move nothing. raise: also give the language more than its planned share."""
    step: Share = 0.02
    """Largest change of its share of all tokens by one decision."""
    max_rise: Share = 0.1
    """Largest share above the planned one."""
    noise_level: Share = 0.95
    """Level of the interval that a change must leave to count."""
    probe: Path | None = None
    """File of `syne data probe`: its accuracy is watched too. Scored whole, out of validation.max_training_share."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MixtureSection:
    """The closed loop: topics trade their tokens inside a language's source, by their held-out PPL."""

    controller: ControllerName = "static"
    """static: shares stay as planned. syne_paper: the published rule; syne: with guards."""
    sources: tuple[str, ...] = ("web",)
    """Sources whose topics trade, each inside its own language; the recipe moves web pages only."""
    stages: tuple[str, ...] | None = None
    """Names of the stages in which the controller decides; the paper has it in the first alone. None: all."""
    reweight_interval_tokens: Tokens | None = None
    """Needed by every controller but static; a multiple of validation.interval_tokens. Ours: 4e9 at 100 B tokens."""
    settings: dict[str, float | int | str | dict[str, float]] = Field(default_factory=dict)
    """Of the controller: alpha, normaliser, importance, floor, ceiling, max_shift, ema, noise_level (docs/mixer.md)."""
    guard: GuardSection = Field(default_factory=GuardSection)
    """See mixture.guard."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ValidationSection:
    """Held-out loss per topic."""

    manifests: tuple[Path, ...] = ()
    """Manifests whose sources have role validation. Empty: no validation."""
    interval_tokens: Tokens | None = None
    """None: only before the first step and after the last."""
    micro_batch_size: Positive = 1
    max_tokens_per_topic: Positive | None = None
    """Read at most this many tokens of each set (whole documents, as written). None: as max_training_share says."""
    max_training_share: Share = 0.02
    """With interval_tokens: passes, with the probe, read at most this share of the tokens trained on, but 8 documents
    of each set in any case."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class CheckpointSection:
    """When training state is written."""

    interval_tokens: Tokens | None = None
    """None: only at the end and when asked to stop."""
    keep_last: Positive | None = 2
    """Complete checkpoints kept; None keeps all. With rollback one more, where a preemption's lie between."""
    async_save: bool = True
    """Write in the background after a snapshot in host memory."""
    verify_hashes: bool = True
    """Check the sha256 of every file on resume."""
    export_hf: bool = False
    """Write <run.dir>/hf at the end of the run."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class StabilitySection:
    """What happens when loss or gradient norm leave the path; seen before the optimizer step, so weights are whole."""

    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    """Loss or gradient norm is not finite. stop: end with exit code 5. skip: leave this batch out and go on. rollback:
    go back to the newest checkpoint before the last rollback_steps, go on without their data. What is left out is an
    entry in the schedule."""
    on_spike: Literal["ignore", "stop", "skip", "rollback"] = "ignore"
    """The loss lies spike_sigma standard deviations above the mean of the last spike_window steps."""
    spike_window: Annotated[int, Field(ge=2)] = 128
    """Steps; none is a spike before so many. A new stage begins anew. As OLMo-core's SkipStepAdamW."""
    spike_sigma: PositiveFloat = 6.0
    """As OLMo-core's SkipStepAdamW."""
    rollback_steps: Positive = 100
    """Steps whose data is left out, the bad one the last. About what PaLM did (2204.02311)."""
    max_recoveries: Positive = 3
    """Skips and rollbacks without a good step beyond the bad ones; the next one ends the run with exit code 5. Ours."""
    reexecute: bool = False
    """Compute a bad step's loss again first: another result to the bit is a fault of the hardware, and is said."""

    @property
    def reach(self) -> int:
        """How many iterations before a bad one the run may have to go back to; 0 without rollback."""
        return self.rollback_steps if "rollback" in (self.on_nan, self.on_spike) else 0


@dataclass(frozen=True, config=STRICT, kw_only=True)
class OperationsSection:
    """Running unattended: hangs, restarts, slow ranks, and whom to tell."""

    watchdog_seconds: PositiveFloat | None = None
    """A run without a step for so long ends with exit code 6 and the stacks of all ranks in <run.dir>/stacks-*. None:
    ten times the median step, at least 300. The first step and a checkpoint may take an hour."""
    restart_budget: Positive = 5
    """Restarts that may begin at the same iteration with the same configuration; one more ends with exit code 7."""
    straggler_factor: Annotated[float, Field(gt=1.0, allow_inf_nan=False)] | None = 1.5
    """A rank whose own part of ten steps takes so many times the median is named. None: ranks are not compared."""
    on_event: tuple[str, ...] = ()
    """A command and its arguments, started on one rank without a shell, the event as JSON on its standard input: nan,
    spike, hardware, straggler, hang, requeue, finish (docs/operations.md)."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class LoggingSection:
    """What is reported."""

    interval_iterations: Positive = 1
    tensorboard: bool = True
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "megatron-syne"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RunConfig:
    """A whole run as the user wrote it."""

    run: RunSection
    training: TrainingSection
    data: DataSection
    init: InitSection = Field(default_factory=InitSection)
    model: ModelSection = Field(default_factory=ModelSection)
    parallel: ParallelSection = Field(default_factory=ParallelSection)
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    lr_schedule: LrScheduleSection = Field(default_factory=LrScheduleSection)
    mixture: MixtureSection = Field(default_factory=MixtureSection)
    validation: ValidationSection = Field(default_factory=ValidationSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    stability: StabilitySection = Field(default_factory=StabilitySection)
    operations: OperationsSection = Field(default_factory=OperationsSection)
    logging: LoggingSection = Field(default_factory=LoggingSection)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    preset: Literal["syne_paper", "syne_recommended"] | None = None
    """Values for everything not written here; the file and the command line win over it."""
    schema_version: Literal[1] = 1
    """Of this file. A file without it is of version 1."""
