"""The rules that need more than one field: every fault of a whole run, before any process starts."""

import importlib.util
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_mixers.manifest import DatasetManifest
from data_mixers.ratios import SUM_TOLERANCE
from megatron_synE.config.derive import iterations_of, ranks_of_replica
from megatron_synE.config.fault import Fault
from megatron_synE.config.float8_rules import float8_rules
from megatron_synE.config.mixture_rules import controller_rules, guard_rules, share_rules
from megatron_synE.config.schema import CurriculumSection, LrScheduleSection, RunConfig, StageSection
from megatron_synE.config.topic_rules import topic_rules
from megatron_synE.data.probe import Probe
from megatron_synE.model.llama import LlamaArchitecture


def validate(
    config: RunConfig,
    *,
    world_size: int,
    architecture: LlamaArchitecture | None,
    manifests: Sequence[DatasetManifest] | None = None,
    validation_manifests: Sequence[DatasetManifest] | None = None,
    probe: Probe | None = None,
) -> list[Fault]:
    """All faults of `config` on `world_size` ranks; empty when the run can start.

    architecture: None where it could not be read (the caller reports that); its rules are then left out.
    manifests: None where the data is not looked at.
    """
    faults = [*world_faults(config, world_size=world_size), *_lr_schedule(config), *_start(config)]
    faults += [*_stability(config), *controller_rules(config), *guard_rules(config, validation_manifests, probe)]
    if architecture is not None:
        faults += [*_model(config, architecture), *float8_rules(config, architecture)]
    for index, stage in enumerate(config.data.stages):
        faults += _shares(stage, where=f"data.stages.{index}")
    faults += _stages(config)
    shares_are_right = not any(fault.key.startswith("data.stages") for fault in faults)
    if manifests is not None:
        both = [*manifests, *(validation_manifests or ())]
        faults += _manifests(manifests, validation_manifests or ())
        faults += _tokenizers(both, architecture)
        if shares_are_right:
            faults += list(share_rules(config, manifests)) or topic_rules(config, manifests)
    return faults


def layout_faults(config: RunConfig, *, world_size: int, architecture: LlamaArchitecture) -> list[Fault]:
    """The faults of the layout alone: of the parallel sizes, the batch and the model's shape on `world_size` ranks."""
    faults = [*world_faults(config, world_size=world_size), *_model(config, architecture)]
    return [*faults, *float8_rules(config, architecture)]


def world_faults(config: RunConfig, *, world_size: int) -> list[Fault]:
    """The faults of `config` that hang on the number of ranks; needs no file of the run but its own."""
    return [*_world(config, world_size), *_batch(config, world_size)]


def divisors(number: int) -> list[int]:
    """All divisors in ascending order."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _one_of(values: Sequence[int]) -> str:
    return f"use one of {', '.join(map(str, values))}"


def _world(config: RunConfig, world_size: int) -> Iterator[Fault]:
    parallel = config.parallel
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    cp, replica = parallel.context_parallel_size, ranks_of_replica(parallel)
    if world_size % replica:
        yield Fault(
            "parallel",
            f"{world_size} ranks are not a multiple of tensor_model_parallel_size * context_parallel_size *"
            f" pipeline_model_parallel_size = {tp} * {cp} * {pp} = {replica}",
            f"start a multiple of {replica} ranks, or lower one of the three",
        )
    if parallel.virtual_pipeline_model_parallel_size is not None and pp < 2:
        yield Fault(
            "parallel.virtual_pipeline_model_parallel_size",
            f"{parallel.virtual_pipeline_model_parallel_size} model chunks per rank need a pipeline, but"
            " pipeline_model_parallel_size=1",
            "remove it, or set pipeline_model_parallel_size to 2 or more",
        )
    if parallel.sequence_parallel and tp == 1:
        yield Fault(
            "parallel.sequence_parallel",
            "true splits the sequence over tensor-parallel ranks, but tensor_model_parallel_size=1",
            "set it to false, or raise tensor_model_parallel_size",
        )
    if parallel.tp_comm_overlap and not (parallel.sequence_parallel and config.model.attention != "native"):
        yield Fault(
            "parallel.tp_comm_overlap", "true needs sequence_parallel and Transformer Engine, but sequence_parallel="
            f"{parallel.sequence_parallel} and model.attention={config.model.attention}", "set it to false, or the two",
        )  # fmt: skip
    size, held_out = config.training.micro_batch_size, config.validation
    if parallel.tp_comm_overlap and held_out.manifests and held_out.micro_batch_size != size:
        yield Fault(  # Transformer Engine's comm_gemm_overlap.cpp (copy_into_buffer): smaller rows are refused too
            "validation.micro_batch_size", f"rows of {held_out.micro_batch_size} do not fill the buffers of"
            f" parallel.tp_comm_overlap, which are made for training.micro_batch_size={size}", f"use {size}",
        )  # fmt: skip
    if config.device == "cpu" and config.model.attention == "transformer_engine":
        yield Fault("model.attention", "transformer_engine needs a GPU, but device=cpu", "use auto or native")


def _batch(config: RunConfig, world_size: int) -> Iterator[Fault]:
    parallel, training = config.parallel, config.training
    pp = parallel.pipeline_model_parallel_size
    yield from _row_length(config)
    if world_size % ranks_of_replica(parallel):
        return
    data_parallel_size = world_size // ranks_of_replica(parallel)
    sequences = training.micro_batch_size * data_parallel_size
    if training.global_batch_size % sequences:
        below = training.global_batch_size // sequences * sequences
        yield Fault(
            "training.global_batch_size",
            f"{training.global_batch_size} is not a multiple of micro_batch_size * data parallel size ="
            f" {training.micro_batch_size} * {data_parallel_size} = {sequences}",
            _one_of([size for size in (below, below + sequences) if size > 0]),
        )
        return
    num_microbatches = training.global_batch_size // sequences
    if parallel.virtual_pipeline_model_parallel_size is not None and num_microbatches % pp:
        yield Fault(
            "training.global_batch_size",
            f"{num_microbatches} micro-batches are not a multiple of pipeline_model_parallel_size={pp}, which the"
            " interleaved schedule needs",
            f"make global_batch_size a multiple of {sequences * pp}, or remove virtual_pipeline_model_parallel_size",
        )


def _row_length(config: RunConfig) -> Iterator[Fault]:
    """What is cut over tensor- and context-parallel ranks comes out even."""
    parallel, training = config.parallel, config.training
    tp, cp = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    if cp > 1 and training.seq_length % (2 * cp):
        below = training.seq_length // (2 * cp) * 2 * cp
        yield Fault(
            "training.seq_length",
            f"{training.seq_length} is not a multiple of 2 * context_parallel_size = {2 * cp}: every rank has two"
            " chunks of a row",
            _one_of([length for length in (below, below + 2 * cp) if length > 0]),
        )
        return
    over = f"tensor_model_parallel_size={tp}" + (f" * context_parallel_size={cp}" if cp > 1 else "")
    for key, micro_batch_size, cure in (
        ("training.seq_length", training.micro_batch_size, f"make it a multiple of {tp * cp}"),
        ("validation.micro_batch_size", config.validation.micro_batch_size, f"use {tp}"),
    ):
        if parallel.sequence_parallel and training.seq_length * micro_batch_size % (tp * cp):
            yield Fault(
                key,
                f"seq_length * micro_batch_size = {training.seq_length * micro_batch_size} is not a multiple of {over},"
                " which sequence_parallel needs",
                cure,
            )
            return


def _model(config: RunConfig, architecture: LlamaArchitecture) -> Iterator[Fault]:
    parallel = config.parallel
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    common = math.gcd(architecture.num_query_groups, architecture.num_attention_heads, architecture.ffn_hidden_size)
    for name in ("num_attention_heads", "num_query_groups", "ffn_hidden_size"):
        value = getattr(architecture, name)
        if value % tp:
            yield Fault(
                "parallel.tensor_model_parallel_size", f"{tp} does not divide the model's {name}={value}",
                _one_of(divisors(common)),
            )  # fmt: skip
    chunks = parallel.virtual_pipeline_model_parallel_size or 1
    if architecture.num_layers % pp:
        yield Fault(
            "parallel.pipeline_model_parallel_size",
            f"{pp} does not divide the model's num_layers={architecture.num_layers}",
            _one_of(divisors(architecture.num_layers)),
        )
    elif architecture.num_layers % (pp * chunks):
        per_stage = architecture.num_layers // pp
        choices = divisors(per_stage)[1:]
        yield Fault(
            "parallel.virtual_pipeline_model_parallel_size",
            f"{chunks} does not divide the {per_stage} layers of a pipeline stage",
            _one_of(choices) if choices else "remove it",
        )
    if config.training.seq_length > architecture.max_position_embeddings:
        yield Fault(
            "training.seq_length",
            f"{config.training.seq_length} is more than the model's max_position_embeddings="
            f"{architecture.max_position_embeddings}",
            "shorten it, or raise max_position_embeddings (with a rope scaling that reaches there) in config.json",
        )


def _lr_schedule(config: RunConfig) -> Iterator[Fault]:
    schedule, optimizer = config.lr_schedule, config.optimizer
    total = sum(stage.tokens for stage in config.data.stages)
    decay = schedule.decay_tokens if schedule.style == "wsd" else 0
    # A branch goes on after its parent's tokens, which only its checkpoint knows: its warm-up may long be over.
    is_branch = config.init.source == "checkpoint" and config.init.mode == "branch"
    if total and not is_branch and schedule.warmup_tokens + decay > total:
        yield Fault(
            "lr_schedule.warmup_tokens",
            f"warmup_tokens + decay_tokens = {schedule.warmup_tokens} + {decay} is more than the {total} tokens of"
            " all stages",
            "shorten one of them",
        )
    if schedule.style != "wsd" and schedule.decay_tokens:
        yield Fault(
            "lr_schedule.decay_tokens",
            f"{schedule.decay_tokens} has no meaning with style={schedule.style}",
            "remove it, or set lr_schedule.style=wsd",
        )
    if schedule.style != "cosine" and not decay and schedule.min_lr:
        yield Fault(
            "lr_schedule.min_lr",
            f"{schedule.min_lr:g} is never reached: with style={schedule.style} and decay_tokens="
            f"{schedule.decay_tokens} the rate stays at its peak",
            "set lr_schedule.decay_tokens with style=wsd, or remove min_lr",
        )
    if not decay and schedule.decay_style != LrScheduleSection.decay_style:
        yield Fault(
            "lr_schedule.decay_style",
            f"{schedule.decay_style} is of wsd's decay, but style={schedule.style} and decay_tokens="
            f"{schedule.decay_tokens}: there is none",
            "set lr_schedule.decay_tokens with style=wsd, or remove decay_style",
        )
    for name, value in (("start_lr", schedule.start_lr), ("min_lr", schedule.min_lr)):
        if value > optimizer.lr:
            yield Fault(
                f"lr_schedule.{name}", f"{value:g} is above the peak, optimizer.lr={optimizer.lr:g}",
                f"set it to at most {optimizer.lr:g}",
            )  # fmt: skip
    for name in ("adam_beta1", "adam_beta2"):
        if getattr(optimizer, name) >= 1.0:
            yield Fault(f"optimizer.{name}", "1.0 would never forget a gradient", "use a value below 1, e.g. 0.95")


def _start(config: RunConfig) -> Iterator[Fault]:
    init = config.init
    if init.source == "random" and init.path is not None:
        yield Fault(
            "init.path",
            f"{init.path} is not read with init.from=random",
            "remove it, or set init.from to hf or checkpoint",
        )
    if init.source != "random" and init.path is None:
        yield Fault(
            "init.path", f"missing; init.from={init.source} reads it", "name the folder, or set init.from=random"
        )
    if init.source != "random" and init.path is not None and not init.path.exists():
        yield Fault("init.path", f"{init.path} does not exist", "name an existing folder")
    if init.mode == "branch" and init.source != "checkpoint":
        yield Fault(
            "init.mode",
            f"branch takes the optimizer and the token count along, which init.from={init.source} does not have",
            "set init.from=checkpoint, or init.mode=init",
        )
    yield from _run_folder(config.run.dir)
    if config.logging.wandb != "off" and importlib.util.find_spec("wandb") is None:
        yield Fault("logging.wandb", f"{config.logging.wandb}, but wandb is not installed", "pip install wandb, or off")


def _stability(config: RunConfig) -> Iterator[Fault]:
    """Faults of the sections stability and operations."""
    stability, checkpoint = config.stability, config.checkpoint
    for key in ("on_nan", "on_spike"):
        if getattr(stability, key) != "rollback":
            continue
        interval = iterations_of(
            checkpoint.interval_tokens, config.training.global_batch_size * config.training.seq_length
        )
        if interval is None:
            yield Fault(
                f"stability.{key}",
                "rollback needs checkpoints, but checkpoint.interval_tokens is not set",
                "set it, or use skip",
            )
        elif checkpoint.keep_last is not None and (checkpoint.keep_last - 1) * interval < stability.rollback_steps:
            needed = -(-stability.rollback_steps // interval) + 1
            yield Fault(
                "stability.rollback_steps",
                f"{checkpoint.keep_last} checkpoints, one every {interval} iterations, do not reach"
                f" {stability.rollback_steps} steps back",
                f"set checkpoint.keep_last={needed}, or roll back less far",
            )
            break  # one is enough for both
    command = config.operations.on_event
    if command and shutil.which(command[0]) is None:
        yield Fault("operations.on_event", f"{command[0]} is no program that can be run here", "name one, or remove it")


def _run_folder(folder: Path) -> Iterator[Fault]:
    if re.search(r"^~|\$\{?[A-Za-z_]", str(folder)):
        # It would train into a folder of this very name.
        yield Fault("run.dir", f"{folder}: nothing stands in for ~ and $ in this file", "write the path out")
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        yield Fault("run.dir", f"{existing} is a file", "name a folder")
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield Fault("run.dir", f"{existing} cannot be written to by this user", "name a folder that can")


def _shares(stage: StageSection, *, where: str) -> Iterator[Fault]:
    """Every group of shares that is written sums to 1."""
    groups = {f"{where}.languages": stage.languages}
    groups |= {f"{where}.sources.{language}": shares for language, shares in stage.sources.items()}
    for language, sources in stage.topics.items():
        groups |= {f"{where}.topics.{language}.{source}": shares for source, shares in sources.items()}
    for key, shares in groups.items():
        if not shares:
            yield Fault(
                key,
                "is empty",
                "write name: share, or remove it" if key != f"{where}.languages" else "e.g. {zh: 0.2, en: 0.8}",
            )
        elif abs(math.fsum(shares.values()) - 1.0) > SUM_TOLERANCE:
            yield Fault(key, f"the shares sum to {math.fsum(shares.values()):g}: {shares}", "make them sum to 1")
    for language in (*stage.sources, *stage.topics):
        if stage.languages and language not in stage.languages:
            yield Fault(
                f"{where}.languages", f"{language} is divided below, but has no share here",
                f"give it one, or remove it; languages here: {', '.join(stage.languages)}",
            )  # fmt: skip


def _stages(config: RunConfig) -> Iterator[Fault]:
    names = [stage.name for stage in config.data.stages]
    if not names:
        yield Fault("data.stages", "is empty", "write at least one stage with name, tokens and languages")
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Fault("data.stages", f"two stages are called {name!r}", "give each its own name")
    for index, stage in enumerate(config.data.stages):
        paced = stage.curriculum
        if paced and paced.pacing != "warmup_then_random" and paced.warmup_share != CurriculumSection.warmup_share:
            yield Fault(
                f"data.stages.{index}.curriculum.warmup_share", f"{paced.warmup_share:g} has no meaning with pacing="
                f"{paced.pacing}", "remove it, or set pacing=warmup_then_random",
            )  # fmt: skip
    if not config.data.manifests:
        yield Fault("data.manifests", "is empty", "name the manifest.json of `syne data preprocess`")
    if config.validation.interval_tokens is not None and not config.validation.manifests:
        yield Fault(
            "validation.interval_tokens", "is set, but validation.manifests is empty",
            "name the manifests of the held-out sets, or remove it",
        )  # fmt: skip


def _manifests(
    manifests: Sequence[DatasetManifest], validation_manifests: Sequence[DatasetManifest]
) -> Iterator[Fault]:
    for manifest, key, role in (
        *((manifest, "data.manifests", "train") for manifest in manifests),
        *((manifest, "validation.manifests", "validation") for manifest in validation_manifests),
    ):
        if not any(entry.role == role for entry in manifest.sources):
            yield Fault(key, f"{manifest.folder} holds no source with role {role}", "remove it from this list")
    for key, group in (("data.manifests", manifests), ("validation.manifests", validation_manifests)):
        owners: dict[str, Path] = {}
        folders = [manifest.folder for manifest in group]
        for folder in sorted({folder for folder in folders if folders.count(folder) > 1}):
            of_stages = ", here or in the first stage that reads it" if key == "data.manifests" else ""
            yield Fault(key, f"{folder} stands twice", f"name it once{of_stages}")
        for manifest in group:
            for entry in manifest.sources:
                if entry.name in owners and owners[entry.name] != manifest.folder:
                    yield Fault(
                        key, f"source {entry.name} is in {owners[entry.name]} and in {manifest.folder}",
                        "keep one, or preprocess one of them under another source or topic name",
                    )  # fmt: skip
                owners[entry.name] = manifest.folder


def _tokenizers(manifests: Sequence[DatasetManifest], architecture: LlamaArchitecture | None) -> Iterator[Fault]:
    for manifest in manifests:
        if architecture is not None and manifest.tokenizer.vocab_size > architecture.vocab_size:
            yield Fault(
                "data.manifests",
                f"{manifest.folder} was made with a tokenizer of {manifest.tokenizer.vocab_size} ids, the model has"
                f" only {architecture.vocab_size}",
                "preprocess again with the model's own tokenizer",
            )
    first = manifests[0] if manifests else None
    for manifest in manifests[1:]:
        if first is not None and manifest.tokenizer.digest != first.tokenizer.digest:
            yield Fault(
                "data.manifests",
                f"{manifest.folder} and {first.folder} were made with different tokenizers"
                f" ({manifest.tokenizer.digest[:12]} and {first.tokenizer.digest[:12]})",
                "preprocess all of them with the model's own tokenizer",
            )
