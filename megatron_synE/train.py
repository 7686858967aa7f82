"""Entry of `syne train`: read and check the configuration, start or join the ranks, build, fit, exit code.

Reading order: this file, assemble.py, trainer.py, build.py, data_mixers/schedule.py.
"""

import gc
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data_mixers.errors import UserError
from megatron_synE import exit_codes
from megatron_synE.checkpoint import layout
from megatron_synE.config.derive import resolve_dtype
from megatron_synE.config.examine import examine
from megatron_synE.config.fault import require
from megatron_synE.config.load import LoadedConfig, load_config, resolved_tree
from megatron_synE.exit_codes import DivergedError, HangError, OneRankError
from megatron_synE.runtime.environment import (
    ALONE,
    Ranks,
    allow_many_files,
    hide_cuda,
    keep_order_of_kernels,
    ranks_from_environment,
)
from megatron_synE.runtime.launch import default_nproc, launch
from megatron_synE.runtime.run_dir import RunDir, versions

if TYPE_CHECKING:
    from megatron_synE.events import Event
    from megatron_synE.trainer import Trainer

logger = logging.getLogger(__name__)


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

    allow_many_files()
    trainer: Trainer | None = None
    try:
        trainer = build_trainer(loaded, config_path, ranks)
        # What is built stays. A full collection would walk its 440,000 objects in a quarter of a second, in another
        # step on each rank, while the others wait; frozen, it takes under a millisecond.
        gc.collect()
        gc.freeze()
        with trainer.watchdog:
            code = _fit(trainer)
            trainer.metrics.close()
            if code == exit_codes.FINISHED and loaded.resolved.checkpoint.export_hf:
                with trainer.watchdog.patient():
                    _export(trainer.run_dir)
        _say_goodbye(trainer, code)
    except BaseException as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's; it is not imported to look for it
            error.add_note(
                f"[rank {ranks.rank}] the card's memory does not hold this layout; `syne plan --config {config_path} "
                "--card CARD` says which fits, e.g. with training.recompute=full, a smaller training.micro_batch_size "
                "or parallel.zero_stage=2"
            )
        if trainer is not None:
            trainer.events.close()  # the news is often why the run ends; a rank that leaves takes the teller with it
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


def _fit(trainer: "Trainer") -> int:
    """fit(); where it ends with a fault of weights or data, what was being saved before is a checkpoint first."""
    try:
        return trainer.fit()
    except (DivergedError, OneRankError):
        with trainer.watchdog.patient():
            try:
                trainer.saver.finish()
            except UserError as on_top:  # what ends the run is said last
                if trainer.run_dir.lease is not None:
                    logger.error("%s", on_top)
        raise


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
    if config.parallel.tensor_model_parallel_size > 1:
        keep_order_of_kernels()
    # Only now torch and megatron-core: what is wrong with a configuration is said in half a second.
    from megatron_synE.assemble import assemble
    from megatron_synE.runtime import device as devices
    from megatron_synE.runtime import distributed
    from megatron_synE.runtime.control import agreed

    device = devices.select(config.device, local_rank=ranks.local_rank)
    # Each rank reads its files by itself; packages decide which kernels are taken, and by auto the processor the type.
    precision = resolve_dtype(config.training.precision, device.kind)
    facts = {"configuration": resolved_tree(config), **versions()}
    facts["precision (auto goes by the processor: set training.precision)"] = precision
    groups = distributed.initialize(device, ranks, config.parallel, seed=config.run.seed, facts=facts)
    run_dir = RunDir(config.run.dir)
    agreed(groups.control, run_dir.create)
    return assemble(loaded, examination, device, groups, run_dir)


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
        return exit_codes.INTERRUPTED
    except Exception as error:  # noqa: BLE001  # this rank must die at once
        if _is_lost_peer(error):  # also in a save, whose faults are otherwise the checkpoint's
            sys.stderr.write(f"[rank {rank}] another rank has gone; its own message says why\n")
            return 1
        if isinstance(error, UserError):
            if _speaks(rank, error):
                sys.stderr.write(f"{'' if rank == '0' else f'[rank {rank}] '}error: {error}\n")
            return error.exit_code
        sys.stderr.write(f"[rank {rank}]\n{traceback.format_exc()}")
        return exit_codes.HANG if _TIMED_OUT in str(error) else 1


def _speaks(rank: str, error: UserError) -> bool:
    """Whether this rank says why it ends.

    Ranks that have met hear of each other's faults, and rank 0 says them, but for what only one can know. Before they
    have met each reads files by itself, and another node may see others than rank 0's: its first rank says so.
    """
    distributed = sys.modules.get("torch.distributed")  # not imported for this: it takes longer than the fault
    have_met = distributed is not None and distributed.is_initialized()
    is_first_of_node = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
    return rank == "0" or isinstance(error, OneRankError) or (is_first_of_node and not have_met)


if __name__ == "__main__":
    end_as_one_rank(Path(sys.argv[1]), sys.argv[2:])
