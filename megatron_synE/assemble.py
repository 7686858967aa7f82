"""Every part of a run put together and connected: what to start from, model, optimizer, data, logs, the Trainer."""

import logging
import os
from functools import partial
from pathlib import Path

import torch.distributed as dist

from data_mixers.schedule import Schedule
from megatron_synE.attempts import Attempts, begin
from megatron_synE.build import Model, build_model, build_optimizer, layers_of
from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint.hf_folder import HfFolder, side_files
from megatron_synE.checkpoint.load import load_training_state, load_weights
from megatron_synE.checkpoint.save import Saver
from megatron_synE.checkpoint.training_state import check_masters
from megatron_synE.config.derive import RunPlan, derive
from megatron_synE.config.examine import Examination
from megatron_synE.config.load import LoadedConfig
from megatron_synE.config.schema import RunConfig
from megatron_synE.data.probe import Probe
from megatron_synE.data.scheduled_dataset import ScheduledDataset
from megatron_synE.events import Events
from megatron_synE.metrics import Metrics, truncate_after
from megatron_synE.mixing import mixture_of
from megatron_synE.model.llama import LlamaArchitecture
from megatron_synE.optim.lr_schedule import LrSchedule
from megatron_synE.progress import Progress
from megatron_synE.run_files import config_digest, lineage, write_run_files
from megatron_synE.runtime.control import Agreement, StopRequest, agreed, from_rank_zero, require_same
from megatron_synE.runtime.device import Device
from megatron_synE.runtime.distributed import Groups
from megatron_synE.runtime.run_dir import RunDir
from megatron_synE.runtime.watchdog import Watchdog
from megatron_synE.start import Start, check_resumable, find_start, mixture_to_follow
from megatron_synE.step_log import StepLog, ValidationLog
from megatron_synE.trainer import Trainer
from megatron_synE.validation import Validator, build_validator

logger = logging.getLogger(__name__)


def assemble(
    loaded: LoadedConfig, examination: Examination, device: Device, groups: Groups, run_dir: RunDir
) -> Trainer:
    """All parts of a run, built and connected, with its weights and state loaded. Collective: every rank."""
    config = loaded.resolved
    stop_request = StopRequest()
    assert examination.architecture is not None and examination.hf_config is not None
    assert examination.schedule is not None
    held_out = [[shard.bin_sha256 for s in m.sources for shard in s.shards] for m in examination.validation_manifests]
    require_same(
        groups.control,
        {
            "data": examination.schedule.digest(), "held-out data": held_out,
            "config.json of the model": examination.hf_config,
        },
    )  # fmt: skip
    plan = derive(config, examination.architecture, dist.get_world_size(), device=device.kind)
    is_writer, operations = dist.get_rank() == 0, config.operations
    agreed(groups.control, lambda: run_dir.take(takeover=config.run.takeover) if is_writer else None)
    token = from_rank_zero(groups.control, lambda: run_dir.token)
    events = Events(operations.on_event, run=config.run.name, folder=run_dir.root)
    start = find_start(config, run_dir, groups.control)
    if start.mode == "resume":
        agreed(groups.control, partial(check_resumable, config, plan.architecture, start))
    mixture = mixture_to_follow(mixture_of(config, examination.manifests), start)
    schedule = mixture.schedule

    agreed(groups.control, partial(layers_of, config, device))  # cards need not be alike
    model = build_model(config, plan, device)
    if start.mode != "resume":
        # Nodes may have copies of their own, and ranks would begin with parts of two models.
        weights = agreed(groups.control, partial(_source_of_weights, config, start.folder))
        require_same(groups.control, {"weights to begin with": weights})
    if start.mode == "init":
        agreed(groups.control, partial(_load_weights, model, config, plan.architecture, start.folder))
    optimizer = build_optimizer(config, plan, model)
    if start.folder is not None and start.state is not None and start.mode != "init":
        load_training_state(model, optimizer, start.folder, start.state)
    agreed(groups.control, partial(check_masters, model, optimizer))

    progress = Progress() if start.mode == "init" or start.state is None else Progress.after(start.state, start.mode)
    # A branch goes on counting its parent's tokens: its own stages begin where the parent stopped.
    tokens_before = progress.consumed_tokens - progress.consumed_samples * config.training.seq_length
    lr_schedule = LrSchedule(config.lr_schedule, lr=config.optimizer.lr, total_tokens=tokens_before + plan.total_tokens)
    tokenizer = examination.manifests[0].tokenizer
    _announce(plan, start, progress, lr_schedule, data_vocab_size=tokenizer.vocab_size)
    for caution in examination.cautions:
        logger.warning("%s", caution)

    attempt = partial(_begin_attempt, loaded, examination, run_dir, schedule, start, progress, plan.train_iters)
    attempts = agreed(groups.control, lambda: attempt() if is_writer else None)
    metrics = Metrics(
        config.logging,
        path=run_dir.metrics,
        run_name=config.run.name,
        enabled=is_writer,
        wandb_id=start.state.wandb_id if start.mode == "resume" and start.state else None,
        iteration=progress.iteration,
        lease=run_dir.lease,
    )
    return Trainer(
        config=config,
        plan=plan,
        device=device,
        model=model,
        optimizer=optimizer,
        mixture=mixture,
        run_dir=run_dir,
        control_group=groups.control,
        dataset=ScheduledDataset(schedule, examination.manifests),
        eos_id=tokenizer.eos_id,
        validator=agreed(groups.control, partial(_validator, config, examination, device)),
        lr_schedule=lr_schedule,
        progress=progress,
        saver=Saver(
            run_dir.checkpoints,
            groups.checkpoint,
            keep_last=config.checkpoint.keep_last,
            reach=config.stability.reach,
            source_files=side_files(_tokenizer_folder(config, start)),
            lease=run_dir.lease,
        ),
        metrics=metrics,
        step_log=StepLog(
            config=config,
            plan=plan,
            device=device,
            metrics=metrics,
            lr_schedule=lr_schedule,
            control_group=groups.control,
            events=events,
            attempts=attempts,
            metrics_path=run_dir.metrics,
        ),
        validation_log=ValidationLog(metrics),
        stop_request=stop_request,
        agreement=Agreement(groups.control),
        watchdog=Watchdog(
            run_dir.root / f"stacks-{token}",
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            timeout_seconds=operations.watchdog_seconds,
            tell=partial(_tell_hang, events),
        ),
        events=events,
        attempts=attempts,
        hf_config=examination.hf_config,
        tokenizer_digest=tokenizer.digest,
        lineage=lineage(config, examination, start),
    )


def _begin_attempt(
    loaded: LoadedConfig,
    examination: Examination,
    run_dir: RunDir,
    schedule: Schedule,
    start: Start,
    progress: Progress,
    train_iters: int,
) -> Attempts:
    """The run's files as this attempt writes them, by the one rank that writes."""
    # A run killed before its first checkpoint begins again: its rows go, also those of iteration 0.
    assert run_dir.lease is not None
    last = progress.iteration if start.mode == "resume" else -1
    truncate_after(run_dir.metrics, last, run_dir.lease, validated=progress.last_validated_iteration)
    write_run_files(loaded, run_dir, examination, schedule, start)
    return begin(
        run_dir,
        first_iteration=progress.iteration,
        is_finished=progress.iteration >= train_iters,
        config_digest=config_digest(loaded.resolved),
        restart_budget=loaded.resolved.operations.restart_budget,
    )


def _validator(config: RunConfig, examination: Examination, device: Device) -> Validator | None:
    if not examination.validation_manifests:
        return None
    return build_validator(
        examination.validation_manifests,
        seq_length=config.training.seq_length,
        micro_batch_size=config.validation.micro_batch_size,
        max_tokens_per_topic=config.validation.max_tokens_per_topic,
        max_tokens=_validation_tokens(config, examination.probe),
        device=device.torch_device,
        probe=examination.probe,
    )


def _validation_tokens(config: RunConfig, probe: Probe | None) -> int | None:
    """How many tokens of the held-out sets a validation pass may read, beside the probe; None without an interval."""
    interval = config.validation.interval_tokens
    if interval is None:
        return None
    whole = int(config.validation.max_training_share * interval)
    return max(0, whole - (0 if probe is None else probe.num_tokens))


def _source_of_weights(config: RunConfig, folder: Path | None) -> dict[str, str] | str | None:
    """What tells one source from another, as this rank sees it; None for random weights."""
    if folder is not None:
        lineage_hash: str = layout.read_manifest(folder)["lineage_hash"]
        return lineage_hash
    return HfFolder(config.init.path).sampled_hashes() if config.init.path is not None else None


def _load_weights(model: Model, config: RunConfig, architecture: LlamaArchitecture, folder: Path | None) -> None:
    is_hf = config.init.source == "hf"
    if config.init.source != "random":
        source = config.init.path if is_hf else folder
        assert source is not None
        load_weights(model, architecture, source, is_hf=is_hf)


def _announce(
    plan: RunPlan, start: Start, progress: Progress, lr_schedule: LrSchedule, *, data_vocab_size: int
) -> None:
    described = {"init": "new run", "branch": "branch", "resume": "resume"}[start.mode]
    logger.info(
        "%s%s: iteration %d of %d, %d of %d tokens",
        described, f" from {start.folder}" if start.folder else "", progress.iteration, plan.train_iters,
        progress.consumed_tokens, lr_schedule.total_tokens,
    )  # fmt: skip
    if plan.architecture.vocab_size > data_vocab_size:
        logger.info(
            "the model's vocabulary has %d rows, the data's tokenizer %d ids: the other %d rows are never trained on",
            plan.architecture.vocab_size, data_vocab_size, plan.architecture.vocab_size - data_vocab_size,
        )  # fmt: skip
    rates = [lr_schedule.at(progress.consumed_tokens + step * plan.tokens_per_iteration) for step in range(5)]
    logger.info("next five learning rates: %s", ", ".join(f"{rate:.4e}" for rate in rates))


def _tell_hang(events: Events, message: str) -> None:
    events.tell("hang", message=message)
    events.close()


def _tokenizer_folder(config: RunConfig, start: Start) -> Path:
    """Where the tokenizer and generation files come from: the HF folder, or what a checkpoint carries along."""
    if start.folder is not None:
        return start.folder / "tokenizer"
    return config.init.path if config.init.source == "hf" and config.init.path is not None else Path(os.devnull)
