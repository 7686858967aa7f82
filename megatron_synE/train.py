"""Entry of `syne train`: read and check the configuration, start or join the ranks, build, fit, exit code.

Reading order: this file, trainer.py, build.py, data_mixers/schedule.py.
"""

import gc
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from data_mixers.errors import UserError
from megatron_synE import exit_codes
from megatron_synE.checkpoint import layout
from megatron_synE.config.derive import derive
from megatron_synE.config.examine import Examination, examine
from megatron_synE.config.fault import require
from megatron_synE.config.load import LoadedConfig, load_config
from megatron_synE.config.schema import RunConfig
from megatron_synE.data.probe import Probe
from megatron_synE.exit_codes import HangError, OneRankError
from megatron_synE.runtime.environment import ALONE, Ranks, hide_cuda, ranks_from_environment
from megatron_synE.runtime.launch import default_nproc, launch
from megatron_synE.runtime.run_dir import RunDir

if TYPE_CHECKING:
    from megatron_synE.events import Event, Events
    from megatron_synE.start import Start
    from megatron_synE.trainer import Trainer

logger = logging.getLogger(__name__)

INTERRUPTED = 130  # what a shell reports for SIGINT


def main(config_path: Path, overrides: Sequence[str] = (), nproc: int | None = None) -> int:
    """Train as the file says. Returns an exit code; UserError is for the caller to show without a traceback.

    Under torchrun or srun this process is one rank. Alone, it starts its own local ranks: nproc, or one per GPU.
    """
    loaded = load_config(config_path, list(overrides))
    if loaded.resolved.device == "cpu":
        hide_cuda()
    ranks = ranks_from_environment()
    if ranks is None:
        world_size = nproc or default_nproc(loaded.resolved.device)
        # Everything that can be wrong is said here once, before any rank starts.
        require(examine(loaded.resolved, world_size=world_size).faults, where=str(config_path))
        RunDir(loaded.resolved.run.dir).create()
        if world_size > 1:
            return launch(["-m", "megatron_synE.train", str(config_path), *overrides], world_size)
        ranks = ALONE
    return run_rank(loaded, config_path, ranks)


def run_rank(loaded: LoadedConfig, config_path: Path, ranks: Ranks) -> int:
    """One rank of the run, from process groups to exit code. Collective: every rank."""
    from megatron_synE.runtime import distributed

    trainer: Trainer | None = None
    try:
        trainer = build_trainer(loaded, config_path, ranks)
        # What is built stays. A full collection would walk its 440,000 objects in a quarter of a second, in another
        # step on each rank, while the others wait; frozen, it takes under a millisecond.
        gc.collect()
        gc.freeze()
        with trainer.watchdog:
            code = trainer.fit()
            trainer.metrics.close()
            if code == exit_codes.FINISHED and loaded.resolved.checkpoint.export_hf:
                with trainer.watchdog.patient():
                    _export(trainer.run_dir)
        _say_goodbye(trainer, code)
    except BaseException as error:
        # An interpreter that leaves with gloo's threads running may abort and lose the exit code. With peers one
        # must not wait for them: such a rank ends in end_as_one_rank.
        if ranks.world_size == 1:
            distributed.shut_down()
        if trainer is not None and _is_lost_peer(error) and trainer.watchdog.hang_is_declared():
            trainer.watchdog.dump()
            raise HangError("another rank has found the run to hang") from error
        raise
    distributed.shut_down()
    return code


def _say_goodbye(trainer: "Trainer", code: int) -> None:
    trainer.step_log.finish()
    if trainer.run_dir.lease is not None:
        event: Event = "finish" if code == exit_codes.FINISHED else "requeue"
        trainer.events.tell(event, iteration=trainer.progress.iteration, exit_code=code)
    trainer.events.close()
    trainer.run_dir.release()


def build_trainer(loaded: LoadedConfig, config_path: Path, ranks: Ranks = ALONE) -> "Trainer":
    """Process groups, then all parts of the run with its weights and state loaded. Collective: every rank.

    Errors: UserError for everything that a person can mend.
    """
    config = loaded.resolved
    examination = examine(config, world_size=ranks.world_size)
    require(examination.faults, where=str(config_path))
    _log_to_stderr(ranks.rank)
    # Only now torch and megatron-core: what is wrong with a configuration is said in half a second.
    from megatron_synE.runtime import device as devices
    from megatron_synE.runtime import distributed

    device = devices.select(config.device, local_rank=ranks.local_rank)
    groups = distributed.initialize(device, ranks, config.parallel, seed=config.run.seed)
    run_dir = RunDir(config.run.dir)
    run_dir.create()
    return _assemble(loaded, examination, device, groups, run_dir)


def _assemble(loaded: LoadedConfig, examination: Examination, device: Any, groups: Any, run_dir: RunDir) -> "Trainer":
    import torch.distributed as dist

    from megatron_synE.attempts import Attempts, begin
    from megatron_synE.build import build_model, build_optimizer
    from megatron_synE.checkpoint.hf_folder import side_files
    from megatron_synE.checkpoint.load import load_training_state
    from megatron_synE.checkpoint.save import Saver
    from megatron_synE.checkpoint.training_state import check_masters
    from megatron_synE.data.scheduled_dataset import ScheduledDataset
    from megatron_synE.events import Events
    from megatron_synE.metrics import Metrics, truncate_after
    from megatron_synE.mixing import mixture_of
    from megatron_synE.optim.lr_schedule import LrSchedule
    from megatron_synE.progress import Progress
    from megatron_synE.run_files import config_digest, lineage, write_run_files
    from megatron_synE.runtime.control import Agreement, StopRequest, agreed, from_rank_zero
    from megatron_synE.runtime.watchdog import Watchdog
    from megatron_synE.start import check_resumable, find_start, mixture_to_follow
    from megatron_synE.step_log import StepLog, ValidationLog
    from megatron_synE.trainer import Trainer
    from megatron_synE.validation import build_validator

    config = loaded.resolved
    stop_request = StopRequest()
    assert examination.architecture is not None and examination.hf_config is not None
    assert examination.schedule is not None
    plan = derive(config, examination.architecture, dist.get_world_size(), device=device.kind)
    is_writer, operations = dist.get_rank() == 0, config.operations
    agreed(groups.control, lambda: run_dir.take(takeover=config.run.takeover) if is_writer else None)
    token = from_rank_zero(groups.control, lambda: run_dir.token)
    events = Events(operations.on_event, run=config.run.name, folder=run_dir.root)
    start = find_start(config, run_dir, groups.control)
    if start.mode == "resume":
        check_resumable(config, plan.architecture, start)
    mixture = mixture_to_follow(mixture_of(config, examination.manifests), start)
    schedule = mixture.schedule

    model = build_model(config, plan, device)
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

    def write_files() -> Attempts | None:
        if is_writer:
            # A run killed before its first checkpoint begins again: its rows go, also those of iteration 0.
            assert run_dir.lease is not None
            truncate_after(run_dir.metrics, progress.iteration if start.mode == "resume" else -1, run_dir.lease)
            write_run_files(loaded, run_dir, examination, schedule, start)
            return begin(
                run_dir,
                first_iteration=progress.iteration,
                is_finished=progress.iteration >= plan.train_iters,
                config_digest=config_digest(config),
                restart_budget=operations.restart_budget,
            )
        return None

    attempts = agreed(groups.control, write_files)
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
        validator=build_validator(
            examination.validation_manifests,
            seq_length=config.training.seq_length,
            micro_batch_size=config.validation.micro_batch_size,
            max_tokens_per_topic=config.validation.max_tokens_per_topic,
            max_tokens=_validation_tokens(config, examination.probe),
            device=device.torch_device,
            probe=examination.probe,
        )
        if examination.validation_manifests
        else None,
        lr_schedule=lr_schedule,
        progress=progress,
        saver=Saver(
            run_dir.checkpoints,
            groups.checkpoint,
            keep_last=config.checkpoint.keep_last,
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


def _validation_tokens(config: RunConfig, probe: Probe | None) -> int | None:
    """How many tokens of the held-out sets a validation pass may read, beside the probe; None without an interval."""
    interval = config.validation.interval_tokens
    if interval is None:
        return None
    whole = int(config.validation.max_training_share * interval)
    return max(0, whole - (0 if probe is None else probe.num_tokens))


def _load_weights(model: Any, config: RunConfig, architecture: Any, folder: Path | None) -> None:
    from megatron_synE.checkpoint.load import load_weights_from_checkpoint, load_weights_from_hf

    if config.init.source == "hf":
        assert config.init.path is not None
        load_weights_from_hf(model, architecture, config.init.path)
    elif config.init.source == "checkpoint":
        assert folder is not None
        load_weights_from_checkpoint(model, architecture, folder)


def _announce(plan: Any, start: "Start", progress: Any, lr_schedule: Any, *, data_vocab_size: int) -> None:
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


def _tell_hang(events: "Events", message: str) -> None:
    events.tell("hang", message=message)
    events.close()


def _tokenizer_folder(config: RunConfig, start: "Start") -> Path:
    """Where the tokenizer and generation files come from: the HF folder, or what a checkpoint carries along."""
    if start.folder is not None:
        return start.folder / "tokenizer"
    return config.init.path if config.init.source == "hf" and config.init.path is not None else Path(os.devnull)


def _export(run_dir: RunDir) -> None:
    import torch.distributed as dist

    from megatron_synE.checkpoint.hf_export import write_hf_folder

    if run_dir.lease is not None:
        run_dir.lease.check()
        write_hf_folder(layout.resolve_checkpoint(run_dir.checkpoints, verify_hashes=False), run_dir.hf)
        logger.info("exported %s", run_dir.hf)
    dist.barrier()


def _log_to_stderr(rank: int) -> None:
    """Rank 0 speaks; the others only when something is wrong, and then they name themselves."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s {'' if rank == 0 else f'[rank {rank}] '}%(message)s", "%H:%M:%S")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logging.getLogger("megatron.core").setLevel(logging.WARNING)  # at INFO it lists every parameter of every bucket


# What gloo says in a collective that did not end in time: somebody hangs (gloo/transport/tcp/pair.cc).
_TIMED_OUT = "Timed out waiting"
# What gloo says in a collective whose other end has died (gloo/transport/tcp/pair.cc).
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def _is_lost_peer(error: BaseException) -> bool:
    return any(sign in str(error) for sign in _LOST_PEER)


def end_as_one_rank(config_path: Path, overrides: Sequence[str] = ()) -> NoReturn:
    """`main` as the whole life of a rank started by launch(), torchrun or srun."""
    code = _as_one_rank(config_path, overrides)
    sys.stdout.flush()
    sys.stderr.flush()
    # A failed rank must not wait in destructors for peers that are in a collective.
    os._exit(code)


def _as_one_rank(config_path: Path, overrides: Sequence[str]) -> int:
    """The exit code; messages instead of tracebacks for what users can mend."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    try:
        return main(config_path, overrides)
    except KeyboardInterrupt:
        return INTERRUPTED
    except UserError as error:
        if _is_lost_peer(error):  # in a save, whose faults are otherwise the checkpoint's
            sys.stderr.write(f"[rank {rank}] another rank has gone; its own message says why\n")
            return 1
        # Every rank finds, or has heard of, the same fault: one saying it is enough, unless only this one knows.
        if rank == "0" or isinstance(error, OneRankError):
            sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except Exception as error:  # noqa: BLE001  # a fault of ours: shown whole, and this rank must die at once
        if _is_lost_peer(error):
            sys.stderr.write(f"[rank {rank}] another rank has gone; its own message says why\n")
            return 1
        sys.stderr.write(f"[rank {rank}]\n{traceback.format_exc()}")
        return exit_codes.HANG if _TIMED_OUT in str(error) else 1


if __name__ == "__main__":
    end_as_one_rank(Path(sys.argv[1]), sys.argv[2:])
